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
from equilayers.functional._cost import fourier_quantities, orbit_quantities
from equilayers.functional._fourier import fourier_of

GROUPS = ("R2", "R4", "D4", "T3", "T6", "T12")
SHAPES = tuple(itertools.product((12, 36), (16, 128), (1, 16, 64, 512)))  # size, features, batch


def constants(seconds: float) -> Iterator[str]:
    r"""Lines to put into `equilayers/functional/_cost.py`, fitted to the least relative error."""
    torch.set_num_threads(1)
    rows: dict[str, list[tuple[tuple[float, ...], float]]] = {"ORBIT": [], "EXACT": [], "CYCLIC": []}
    for name, (size, features, batch) in itertools.product(GROUPS, SHAPES):
        group = group_of(name)
        fourier = fourier_of(group)
        if fourier is None:
            continue
        calls = competitors(Case(name, size, features, batch))
        timings = in_turn({key: calls[key] for key in ("orbit", "fourier")}, seconds=seconds)
        shape = batch, size * size, features, group.order
        rows["ORBIT"].append((orbit_quantities(*shape), timings["orbit"].median))
        quantities = fourier_quantities(*shape, fourier.products, not fourier.exact)
        rows["EXACT" if fourier.exact else "CYCLIC"].append((quantities, timings["fourier"].median))
    yield f"# {machine()}"
    for key, measured in rows.items():
        nanoseconds = 1e6 * np.array([median for _, median in measured])
        design = np.array([quantities for quantities, _ in measured]) / nanoseconds[:, None]
        scale = design.max(0)
        fitted = nnls(design / scale, np.ones(len(measured)))[0] / scale
        worst = np.abs(design @ fitted - 1).max()
        yield f"{key} = ({', '.join(f'{constant:.3g}' for constant in fitted)})  # within {100 * worst:.0f} %"
