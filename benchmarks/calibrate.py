r"""The constants of the cost model behind `algorithm="auto"`, measured on this machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks import conv, linear
from benchmarks.timing import Call, in_turn, machine
from equilayers.functional.cost import Sizes, Work, constants, convolution_work, work
from equilayers.groups import group_from_name

GROUPS = ("C2", "C4", "D4", "T3", "T6", "T12")
SHAPES = tuple(itertools.product((12, 36), (16, 128), (1, 16, 64, 512)))  # size, features, batch
CONVOLUTIONS = [
    conv.Case(group, max(1, width // group_from_name(group).order), size, batch, kernel)
    for group in ("C2", "C4", "D2", "D4")
    for width, size, batch, kernel in (
        *itertools.product((16, 64, 256), (9, 18, 36), (8,), (1, 3)),
        *itertools.product((64, 256, 512), (5, 9), (1, 16), (3, 5)),
    )
]
STEERED = [
    conv.Case(group, width // group_from_name(group).order, size, batch, kernel)
    for group in conv.STEERED
    for width, size, batch, kernel in (
        *itertools.product((64, 256), (9, 18, 28), (8,), (3, 5)),
        *itertools.product((64, 256, 512), (7, 9), (1, 16), (3,)),
    )
]
Samples = dict[str, list[tuple[tuple[float, ...], float]]]


def report(seconds: float) -> Iterator[str]:
    r"""Lines to put into `equilayers/functional/cost.py`, fitted to the least relative error."""
    torch.set_num_threads(1)
    yield f"# {machine()}"
    measured: Samples = {kind: [] for kind in constants()}
    for name, (size, features, batch) in itertools.product(GROUPS, SHAPES):
        choices = work(group_from_name(name), batch, size * size, features)
        calls = linear.competitors(linear.Case(name, size, features, batch))
        _record(measured, choices, {algorithm: calls[algorithm] for algorithm in choices}, seconds)
    for case, kept in itertools.product(CONVOLUTIONS + STEERED, (True, False)):
        pixels = case.batch * case.size**2
        sizes = Sizes(pixels, pixels, case.fields, case.fields, case.kernel**2, groups=1, lifting=False, kept=kept)
        choices = convolution_work(group_from_name(case.group), sizes)
        calls = conv.competitors(replace(case, training=not kept), choices)
        _record(measured, choices, calls, seconds)
    for kind, samples in measured.items():
        nanoseconds = np.array([taken for _, taken in samples])
        design = np.array([quantities for quantities, _ in samples]) / nanoseconds[:, None]
        scale = np.maximum(design.max(0), 1e-300)
        fitted = nnls(design / scale, np.ones(len(samples)))[0] / scale
        errors = np.abs(design @ fitted - 1)
        yield (
            f'"{kind}": ({", ".join(f"{constant:.3g}" for constant in fitted)}),  '
            f"# within {100 * np.median(errors):.0f} %, at worst {100 * errors.max():.0f} %"
        )


def _record(measured: Samples, choices: dict[str, Work], calls: dict[str, Call], seconds: float) -> None:
    timings = in_turn(calls, seconds=seconds)
    for algorithm, (kind, quantities, _) in choices.items():
        measured[kind].append((quantities, 1e6 * timings[algorithm].median))
