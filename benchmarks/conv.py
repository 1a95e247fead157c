r"""GroupConv2d in its algorithms against torch's Conv2d of the same width and escnn's R2Conv of the same fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from baselines.common.tables import head_lines, row_line
from benchmarks.peers import escnn_convolution, import_escnn
from benchmarks.timing import Call, Timing, in_turn, machine, thread_count, threads
from equilayers.groups import group_from_name
from equilayers.nn import GroupConv2d

STEERED = ("C8", "C16", "D8")  # groups whose filters are steered
ALGORITHMS = ("dense", "orbit", "fourier", "auto")
PLAIN, ESCNN, ESCNN_EVAL = "torch Conv2d", "escnn, train", "escnn, eval"
COMPILED = (PLAIN, "dense", "auto")  # in graphs the others are "dense"


@dataclass(frozen=True)
class Case:
    r"""One comparison: `fields` regular features in and out, so fields · |G| channels, on maps of size x size."""

    group: str
    fields: int
    size: int
    batch: int = 8
    kernel: int = 3
    training: bool = False
    threads: int = 1
    compiled: bool = False

    def __str__(self) -> str:
        how = f"{'training step' if self.training else 'forward'}, {thread_count(self.threads)}"
        maps = f"{self.size}x{self.size}, batch {self.batch}"
        how += ", compiled" if self.compiled else ""
        return f"{self.group} {self.fields} fields {maps}, {self.kernel}x{self.kernel}, {how}"


def competitors(case: Case, names: Iterable[str] | None = None) -> dict[str, Call]:
    r"""What is timed, by name; escnn only where it is installed."""
    torch.manual_seed(0)
    group, k = group_from_name(case.group), case.kernel
    x = torch.randn(case.batch, case.fields, group.order, case.size, case.size)
    width = case.fields * group.order
    made: dict[str, tuple[Any, Tensor]] = {PLAIN: (nn.Conv2d(width, width, k, padding=k // 2), x.flatten(1, 2))}
    for name in ALGORITHMS if case.group not in STEERED else ("dense", "fourier", "auto"):
        made[name] = GroupConv2d(group, case.fields, case.fields, k, padding=k // 2, algorithm=name), x
    wanted = [*made, ESCNN, ESCNN_EVAL] if names is None else list(names)
    if case.compiled:
        wanted = [name for name in wanted if name in COMPILED]
        torch.compiler.reset()  # of one class it compiles so many layers and no more
        made = {name: (torch.compile(made[name][0], fullgraph=True), made[name][1]) for name in wanted}
    if {ESCNN, ESCNN_EVAL} & set(wanted):
        made |= _escnn(case, x.flatten(1, 2))
    return {name: call(*made[name], training=case.training) for name in wanted if name in made}


def _escnn(case: Case, x: Tensor) -> dict[str, tuple[nn.Module, Any]]:
    try:
        library = import_escnn()
    except ImportError:
        return {}
    layer = escnn_convolution(case.group, case.fields, case.fields, case.kernel)
    made: dict[str, tuple[nn.Module, Any]] = {ESCNN: (layer, library.nn.GeometricTensor(x, layer.in_type))}
    if not case.training:
        layer = escnn_convolution(case.group, case.fields, case.fields, case.kernel).eval()
        made[ESCNN_EVAL] = layer, library.nn.GeometricTensor(x, layer.in_type)
    return made


def call(model: nn.Module, x: Any, *, training: bool, input_gradient: bool = True) -> Call:
    r"""A forward pass without gradients, or a forward and a backward pass down to the input or the weights."""
    if not training:

        def forward() -> object:
            with torch.no_grad():
                return model(x)

        return forward
    leaf = (x if isinstance(x, Tensor) else x.tensor).clone().requires_grad_(input_gradient)
    given = leaf if isinstance(x, Tensor) else type(x)(leaf, x.type)
    read = (lambda y: y) if isinstance(x, Tensor) else (lambda y: y.tensor)
    upstream = torch.randn_like(read(model(given)))

    def step() -> object:
        model.zero_grad()
        leaf.grad = None
        return read(model(given)).backward(upstream)

    return step


CASES = [
    *(Case("C4", fields, 36) for fields in (4, 8, 16)),
    *(Case("C4", fields, 18) for fields in (16, 32, 64, 128)),
    *(Case("C4", fields, 9) for fields in (64, 128, 256)),
    *(Case("D4", fields, size) for fields, size in ((2, 36), (8, 36), (16, 18), (32, 18), (32, 9), (64, 9), (128, 9))),
    *(Case("C4", 64, 18, kernel=k) for k in (1, 5, 7)),
    *(Case("D4", 32, 18, kernel=k) for k in (1, 5)),
    Case("C2", 64, 18),
    Case("D1", 64, 18),
    Case("D2", 64, 18),
    *(Case("C4", 64, 18, batch=b) for b in (1, 32)),
    *(Case(group, 64, size, threads=2) for group, size in (("C4", 18), ("D4", 9))),
    Case("C4", 128, 18, threads=2),
    Case("C4", 8, 36, threads=2),
    *(Case("C4", fields, 18, compiled=True) for fields in (32, 64, 128)),
    *(Case("D4", fields, 9, compiled=True) for fields in (64, 128)),
    Case("D2", 64, 18, compiled=True),
]


def both_passes(cases: Iterable[Case]) -> list[Case]:
    r"""Each case forward, then as a training step."""
    return [replace(case, training=training) for case in cases for training in (False, True)]


def measure(case: Case, seconds: float, names: Iterable[str] | None = None) -> dict[str, Timing]:
    r"""The timings of one case, under its number of threads."""
    with threads(case.threads):
        return in_turn(competitors(case, names), seconds=seconds)


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> str:
    r"""How many times faster the second is than the first, or a dash where one of them is missing."""
    return f"{timings[slow].median / timings[fast].median:.2f}" if {slow, fast} <= set(timings) else "–"


def median(timings: Mapping[str, Timing], name: str, form: str = ".2f") -> str:
    r"""The median in milliseconds, or a dash where it is missing."""
    return f"{timings[name].median:{form}}" if name in timings else "–"


def report(seconds: float, cases: Iterable[Case] = CASES, names: Iterable[str] | None = None) -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured."""
    yield f"Machine: {machine()}. Medians in ms, competitors timed in turn. The last columns say how many times faster "
    yield "`auto` is than torch's Conv2d of the same width, and than escnn: below 1 it is slower.\n"
    columns = PLAIN, *ALGORITHMS, ESCNN, ESCNN_EVAL
    yield head_lines(["case", *columns, "Conv2d / auto", "escnn train / auto", "escnn eval / auto"])
    for case in both_passes(cases):
        timings = measure(case, seconds, names)
        ratios = (ratio(timings, peer, "auto") for peer in (PLAIN, ESCNN, ESCNN_EVAL))
        yield row_line([str(case), *(median(timings, name) for name in columns), *ratios])
