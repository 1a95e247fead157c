r"""The search for the call in which samples of a batch influence each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from equilayers._modules import Model
from equilayers.testing._diagnosis.actions import largest
from equilayers.testing._diagnosis.rounds import Runs
from equilayers.testing._diagnosis.search import course
from equilayers.testing._diagnosis.trace import Event, trace


def first_mixing(model: Model, runs: Runs, tolerance: float) -> tuple[Event, float] | None:
    r"""The first call that makes another row of the same row where other samples are moved otherwise, and its error.

    Sample i is moved by an element of its own, and has to be what it is where all are moved by that element.
    """
    x, moved = runs.x, runs.events[1:]
    if len(x) < 2 or any(run.inputs[0].shape != runs.events[0].inputs[0].shape for run in moved):
        return None
    chosen = [moved[i % len(moved)] for i in range(len(x))]
    parts = {name: torch.stack([run.inputs[k][i] for i, run in enumerate(chosen)]) for k, name in enumerate(x.moving)}
    mixed = trace(model, replace(x, parts=x.parts | parts))
    error = _error(mixed.outputs, [run.outputs for run in chosen])
    return (_descend(mixed, chosen, tolerance), error) if error > tolerance else None


def _descend(event: Event, chosen: Sequence[Event], tolerance: float) -> Event:
    r"""The first call within whose inputs are right and whose outputs are not, or the call itself."""
    if all(course(run) == course(event) for run in chosen):
        for number, inner in enumerate(event.inside):
            others = [run.inside[number] for run in chosen]
            fed = _error(inner.inputs, [run.inputs for run in others])
            if fed <= tolerance < _error(inner.outputs, [run.outputs for run in others]):
                return _descend(inner, others, tolerance)
    return event


def _error(tensors: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> float:
    r"""The largest difference of a row to that of the run of its sample, by the largest entry; of batches alone."""
    worst = 0.0
    for number, t in enumerate(tensors):
        rows = [run[number] for run in others]
        if t.ndim and len(t) == len(rows) and all(row.shape == t.shape for row in rows):
            expected = torch.stack([row[i] for i, row in enumerate(rows)])
            off = torch.where(t == expected, 0, t - expected)
            worst = max(worst, largest(off, finite=False) / (largest(expected) or 1.0))
    return worst
