r"""LiftingLinear in its algorithms against torch's Linear and the expanded matrix; a training step of WT against DA."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from baselines.common.tables import head_lines, row_line
from baselines.study.models import mlp, weight_tied_mlp
from benchmarks.conv import call
from benchmarks.timing import Call, in_turn, machine, thread_count, threads
from equilayers.groups import group_from_name
from equilayers.nn import LiftingLinear

ALGORITHMS = ("orbit", "dense", "fourier", "auto")


@dataclass(frozen=True)
class Case:
    r"""One comparison: an image of `size` x `size` pixels lifted to `features`."""

    group: str
    size: int = 36
    features: int = 128
    batch: int = 512
    backward: bool = False
    input_gradient: bool = False
    threads: int = 1

    def __str__(self) -> str:
        what = "forward + backward" if self.backward else "forward"
        what += f"{', input gradient too' if self.input_gradient else ''}, {thread_count(self.threads)}"
        return f"{self.group} 1x{self.size}x{self.size} -> {self.features}, batch {self.batch}, {what}"


def competitors(case: Case) -> dict[str, Call]:
    r"""What is timed: torch.nn.Linear, the expanded matrix as a ready nn.Linear, and the layer in each algorithm."""
    torch.manual_seed(0)
    group = group_from_name(case.group)
    x = torch.randn(case.batch, 1, case.size, case.size)
    pixels = math.prod(x.shape[1:])
    plain: dict[str, nn.Module] = {
        "torch Linear": nn.Sequential(nn.Flatten(), nn.Linear(pixels, case.features)),
        "expanded matrix": nn.Sequential(nn.Flatten(), nn.Linear(pixels, case.features * group.order)),
    }
    layers = {
        name: LiftingLinear(group, (1, case.size, case.size), case.features, algorithm=name) for name in ALGORITHMS
    }
    how = {"training": case.backward, "input_gradient": case.input_gradient}
    return {name: call(model, x, **how) for name, model in {**plain, **layers}.items()}


def training_step(tied: bool, group: str = "C4", batch: int = 512) -> Call:
    r"""One step of the study: forward, cross entropy, backward, Adam."""
    torch.manual_seed(0)
    model = weight_tied_mlp(group_from_name(group), (1, 36, 36), 9) if tied else mlp((1, 36, 36), 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-4, fused=True)
    x, y = torch.randn(batch, 1, 36, 36), torch.randint(9, (batch,))

    def step() -> object:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return optimizer.step()

    return step


CASES = [
    *(Case(g, backward=b, threads=t) for g in ("C4", "D4", "T3", "T36") for b in (False, True) for t in (1, 2)),
    Case("C4", backward=True, input_gradient=True),
    *(Case(g, batch=b) for g in ("C4", "D4", "T3") for b in (1, 8, 64)),
    *(Case(g, size=12, batch=32, backward=b) for g in ("C4", "T3") for b in (False, True)),
    *(Case("C4", size=n) for n in (9, 18, 35, 64)),
]


def report(seconds: float, cases: Iterable[Case] = CASES) -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured."""
    yield f"Machine: {machine()}. Medians, competitors timed in turn; below 1 means faster than the column's head.\n"
    head = "torch Linear, ms", *ALGORITHMS, "fourier / Linear", "expanded / fourier", "auto / best"
    yield head_lines(["case", *head])
    for case in cases:
        with threads(case.threads):
            ms = {name: timing.median for name, timing in in_turn(competitors(case), seconds=seconds).items()}
        best = min(ms["orbit"], ms["fourier"])  # the algorithms that keep the contract
        cells = [f"{ms[name]:.3f}" for name in ("torch Linear", *ALGORITHMS)]
        ratios = ms["fourier"] / ms["torch Linear"], ms["expanded matrix"] / ms["fourier"], ms["auto"] / best
        yield row_line([str(case), *cells, *(f"{ratio:.2f}" for ratio in ratios)])
    with threads(1):
        for group in ("C4", "T3"):
            steps = {"WT": training_step(True, group), "DA": training_step(False, group)}
            ms = {name: timing.median for name, timing in in_turn(steps, seconds=2 * seconds).items()}
            yield f"\nTraining step of the study's MLP, {group}, batch 512, 1 thread: WT {ms['WT']:.2f} ms, "
            yield f"DA {ms['DA']:.2f} ms, ratio {ms['WT'] / ms['DA']:.2f}."
