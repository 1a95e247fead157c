r"""Token-wise layers and transformer blocks against torch's of the same width, the expanded matrices, and irreps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.common.tables import head_lines, row_line
from baselines.vit.models import vit
from benchmarks.irreps_peer import IrrepBlock
from benchmarks.memory import allocated_peak
from benchmarks.timing import Call, in_turn, machine, thread_count, threads
from equilayers.groups import group_from_name
from equilayers.nn import GroupConv2d, GroupLinear, GroupTransformerEncoderLayer

PLAIN, OURS, DENSE, IRREPS = "torch", "ours", "dense", "irreps"
NAMES = OURS, DENSE, IRREPS


@dataclass(frozen=True)
class Block:
    r"""An encoder layer of this width, pre-norm, gelu, 64 numbers a head, on `tokens` tokens of `batch` samples."""

    group: str
    width: int
    tokens: int = 196
    batch: int = 4

    def __str__(self) -> str:
        return f"block {self.group} {self.width}, {self.batch}x{self.tokens} tokens"

    def modules(self) -> dict[str, tuple[nn.Module, Tensor]]:
        r"""The competitors and their inputs."""
        order = group_from_name(self.group).order
        features, heads = self.width // order, self.width // 64
        plain = nn.TransformerEncoderLayer(
            self.width, heads, 4 * self.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        x = torch.randn(self.batch, self.tokens, order, features)
        f = x.permute(0, 3, 2, 1)
        ours = {
            name: (GroupTransformerEncoderLayer(self.group, features, heads, algorithm=algorithm), f)
            for name, algorithm in ((OURS, "auto"), (DENSE, "dense"))
        }
        peer = {IRREPS: (IrrepBlock(features, heads), x)} if self.group == "D4" else {}
        return {PLAIN: (plain, x.flatten(2)), **ours, **peer}


@dataclass(frozen=True)
class Linear:
    r"""A linear layer on 1576 tokens, from one width to another."""

    group: str
    width: int
    out: int
    tokens: int = 1576

    def __str__(self) -> str:
        return f"linear {self.group} {self.width} -> {self.out}, {self.tokens} tokens"

    def modules(self) -> dict[str, tuple[nn.Module, Tensor]]:
        r"""The competitors and their inputs."""
        order = group_from_name(self.group).order
        x = torch.randn(1, self.tokens, order, self.width // order)
        sizes = self.width // order, self.out // order
        ours = {
            name: (GroupLinear(self.group, *sizes, algorithm=algorithm), x.permute(0, 3, 2, 1))
            for name, algorithm in ((OURS, "auto"), (DENSE, "dense"))
        }
        return {PLAIN: (nn.Linear(self.width, self.out), x.flatten(2)), **ours}


@dataclass(frozen=True)
class Pointwise:
    r"""A 1x1 group convolution of `fields` features on 18 x 18 pixels, batch 8."""

    group: str
    fields: int

    def __str__(self) -> str:
        return f"1x1 convolution {self.group}, {self.fields} fields, 8x18x18"

    def modules(self) -> dict[str, tuple[nn.Module, Tensor]]:
        r"""The competitors and their inputs."""
        order = group_from_name(self.group).order
        x = torch.randn(8, 18, 18, order, self.fields)
        width = order * self.fields
        ours = {
            name: (GroupConv2d(self.group, self.fields, self.fields, 1, algorithm=algorithm), x.permute(0, 4, 3, 1, 2))
            for name, algorithm in ((OURS, "auto"), (DENSE, "dense"))
        }
        image = x.flatten(3).permute(0, 3, 1, 2)
        return {PLAIN: (nn.Conv2d(width, width, 1), image), **ours}


@dataclass(frozen=True)
class Vision:
    r"""A whole vision transformer on images of 224 x 224 pixels, patches of 16."""

    group: str
    size: str
    batch: int

    def __str__(self) -> str:
        return f"ViT-{self.size}/16 {self.group}, {self.batch}x224x224"

    def modules(self) -> dict[str, tuple[nn.Module, Tensor]]:
        r"""The competitors and their inputs."""
        x = torch.randn(self.batch, 3, 224, 224)
        return {PLAIN: (vit(self.size), x), OURS: (vit(self.size, self.group), x)}


Case = Block | Linear | Pointwise | Vision
CASES: tuple[Case, ...] = (
    *(Block(group, width) for group in ("D4", "C4") for width in (192, 384, 768, 1024)),
    *(Linear(group, c, o) for group in ("D4", "C4") for c, o in ((192, 192), (384, 1536), (768, 768), (768, 3072))),
    *(Vision(group, size, batch) for group in ("D4", "C4") for size, batch in (("S", 1), ("B", 1), ("B", 8), ("L", 1))),
    *(Pointwise(group, fields) for group, fields in (("D4", 96), ("C4", 128), ("D4", 8), ("C4", 8))),
)


def forward(model: nn.Module, x: Tensor) -> Call:
    r"""The model without gradients."""
    model.eval()

    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def step(model: nn.Module, x: Tensor) -> Call:
    r"""Forward and backward, with the gradient of the input, without an optimizer."""
    model.train()
    x = x.detach().requires_grad_()

    def run() -> object:
        model.zero_grad()
        x.grad = None
        model(x).square().mean().backward()
        return x.grad

    return run


def calls(case: Case, *, training: bool, compiled: bool = False) -> dict[str, Call]:
    r"""What is timed."""
    torch.manual_seed(0)
    made = {}
    for name, (model, x) in case.modules().items():
        chosen = torch.compile(model, fullgraph=True) if compiled else model
        made[name] = (step if training else forward)(chosen, x)  # type: ignore[arg-type]
    return made


def gigaflops(model: nn.Module, x: Tensor) -> float:
    r"""Floating-point operations of a forward pass in its matrix products, in 10^9."""
    model = model.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x.to("meta"))
    return counter.get_total_flops() / 1e9


def peak(model: nn.Module, x: Tensor) -> float:
    r"""Peak of what a training step allocates, gradients included, in megabytes; the parameters are there before."""
    run = step(model, x)
    run()  # tables and buffers are made at first
    model.zero_grad(set_to_none=True)
    return allocated_peak(run)


def timings(seconds: float, counts: Iterable[int] = (1, 2)) -> Iterator[str]:
    r"""The lines of the table of times, with so many threads."""
    yield f"Machine: {machine()}. Medians, competitors timed in turn; ratios above 1: faster than torch's layer.\n"
    yield head_lines(["case", "threads", "what", "torch, ms", *(f"{name}, ms" for name in NAMES), *NAMES])
    torch.backends.mha.set_fastpath_enabled(False)  # the same operations in eval mode and in training
    for count in counts:
        for case in CASES:
            if isinstance(case, Vision) and count > 1:
                continue
            rounds = {"warmup": 1, "rounds": 3} if isinstance(case, Vision) else {}  # calls of seconds
            for training in (False, True):
                with threads(count):
                    timed = in_turn(calls(case, training=training), seconds=seconds, **rounds)
                yield _row(case, thread_count(count), "step" if training else "forward", timed)


def report(seconds: float) -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured."""
    yield from timings(seconds)
    yield "\nCompiled, 1 thread.\n"
    yield head_lines(["case", "threads", "what", "torch, ms", *(f"{name}, ms" for name in NAMES), *NAMES])
    for block in (Block("D4", 768), Block("C4", 768)):
        for training in (False, True):
            with threads(1):
                timed = in_turn(calls(block, training=training, compiled=True), seconds=seconds)
            yield _row(block, thread_count(1), "step" if training else "forward", timed)
    yield "\nSizes: parameters, and the peak of what a training step allocates beside them, gradients included.\n"
    yield head_lines(["case", "layer", "parameters", "GFLOP forward", "parameters, MB", "step, MB", "sum, MB"])
    for case in CASES:
        for name, (model, x) in case.modules().items():
            parameters = sum(p.numel() for p in model.parameters())
            own, added = 4e-6 * parameters, peak(model, x)
            cells = f"{parameters:,}", f"{gigaflops(model, x):.2f}", f"{own:.1f}", f"{added:.1f}", f"{own + added:.1f}"
            yield row_line([str(case), name, *cells])


def _row(case: Case, count: str, what: str, timed: object) -> str:
    ms = {name: timing.median for name, timing in timed.items()}  # type: ignore[attr-defined]
    figures = (f"{ms[name]:.2f}" if name in ms else "" for name in (PLAIN, *NAMES))
    ratios = (f"{ms[PLAIN] / ms[name]:.2f}" if name in ms else "" for name in NAMES)
    return row_line([str(case), count, what, *figures, *ratios])
