r"""The constants of the cost model behind `algorithm="auto"`, measured on this machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import nnls

from baselines.models import group_of
from benchmarks.linear import Case, competitors
from benchmarks.timing import in_turn, machine
from equilayers.functional.cost import CONSTANTS, work

GROUPS = ("R2", "R4", "D4", "T3", "T6", "T12")
SHAPES = tuple(itertools.product((12, 36), (16, 128), (1, 16, 64, 512)))  # size, features, batch


def constants(seconds: float) -> Iterator[str]:
    r"""Lines to put into `equilayers/functional/cost.py`, fitted to the least relative error."""
    torch.set_num_threads(1)
    measured: dict[str, list[tuple[tuple[float, ...], float]]] = {kind: [] for kind in CONSTANTS}
    for name, (size, features, batch) in itertools.product(GROUPS, SHAPES):
        choices = work(group_of(name), batch, size * size, features)
        calls = competitors(Case(name, size, features, batch))
        timings = in_turn({algorithm: calls[algorithm] for algorithm in choices}, seconds=seconds)
        for algorithm, (kind, quantities, _) in choices.items():
            measured[kind].append((quantities, 1e6 * timings[algorithm].median))
    yield f"# {machine()}"
    for kind, samples in measured.items():
        nanoseconds = np.array([taken for _, taken in samples])
        design = np.array([quantities for quantities, _ in samples]) / nanoseconds[:, None]
        scale = design.max(0)
        fitted = nnls(design / scale, np.ones(len(samples)))[0] / scale
        worst = np.abs(design @ fitted - 1).max()
        yield f'"{kind}": ({", ".join(f"{constant:.3g}" for constant in fitted)}),  # within {100 * worst:.0f} %'
