r"""The search behind what was found: runs in which that follows the group, until nothing more is lost."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equilayers._modules import Model
from equilayers.testing._diagnosis.actions import Action, candidates, distance
from equilayers.testing._diagnosis.search import Lost, Search, Step
from equilayers.testing._diagnosis.trace import Event, trace
from equilayers.testing._inputs import Inputs

# Layers whose commutation nothing behind them brings back: they are judged by themselves, which saves rounds.
SAMPLING = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool2d),
)
Mended = dict[int, list[tuple[Action, Tensor]]]  # by the number of the event: its outputs for x, and how they move


class Runs(NamedTuple):
    r"""What the model was run on, and what happened on x and on every gx."""

    x: Inputs
    events: list[Event]


def all_lost(model: Model, runs: Runs, search: Search, rounds: int) -> list[Lost]:
    r"""All calls that lose the symmetry, in their order; with one round the first ones alone.

    In each round the runs on gx are repeated. What was found before puts out `act(g, y)` there, where y is its output
    for x, so that what comes after it is fed what follows the group.
    """
    plain, *moved = runs.events
    found = {lost.step.event.number: lost for lost in search.lost(runs.events)}
    fresh = list(found.values())
    mended: Mended = {}
    group, tolerance = search.group, search.tolerance
    for _ in range(rounds - 1):
        if not fresh or not _alike(plain, moved):
            break
        alone = [lost for lost in _alone(search, plain, moved) if lost.step.event.number not in found]
        found |= {lost.step.event.number: lost for lost in alone}
        for lost in sorted((*fresh, *alone), key=lambda lost: lost.step.event.number):
            mended[lost.step.event.number] = _mended(search, lost.step, mended)
        search = Search(group, tolerance, search.given, group.generating_set())
        try:
            moved = [_again(model, runs.x, search, mended, g) for g in search.elements]
            behind = search.behind([plain, *moved], set(found))
        except Exception:  # a model of others may raise anything on what it is fed so
            break
        fresh = [lost for lost in behind if lost.step.event.number not in found]
        found |= {lost.step.event.number: lost for lost in fresh}
    return [found[number] for number in sorted(found)]


def _alike(plain: Event, moved: Sequence[Event]) -> bool:
    r"""Whether all runs called the same, in the same order."""
    names = [(event.path, event.name) for event in plain.all()]
    return all([(event.path, event.name) for event in run.all()] == names for run in moved)


def _again(model: Model, x: Inputs, search: Search, mended: Mended, g: int) -> Event:
    r"""The run on gx in which some calls put out what they should."""
    return trace(
        model,
        x.acted(search.group, g),
        {number: [way.move(g, y) for way, y in made] for number, made in mended.items()},
    )


def _mended(search: Search, step: Step, before: Mended) -> list[tuple[Action, Tensor]]:
    r"""How each output moves, or should: as what goes in or came out before, if it can, or as its shape allows."""
    earlier = max((number for number in before if number < step.event.number), default=-1)
    names = [action.name for action, _ in step.fed] or [way.name for way, _ in before.get(earlier, [])]
    made = []
    for number, y in enumerate(step.event.outputs):
        after = [run.outputs[number] for run in step.moved]
        ways = [way for way in candidates(search.group, y.shape, step.fed) if not way.anywhere]
        error = {way: distance(way, y, after, search.elements) for way in ways}
        if id(y) in step.broken:
            ways.sort(key=lambda way: (error[way] == math.inf, way.name not in names, way.fixed != (y.ndim <= 2)))
        else:
            ways.sort(key=error.__getitem__)
        made.append((ways[0], y))
    return made


def _alone(search: Search, plain: Event, moved: Sequence[Event]) -> list[Lost]:
    r"""The layers that are fed what does not follow the group, and would lose it if they were fed what does."""
    found = []
    for event, *others in zip(plain.all(), *(run.all() for run in moved), strict=True):
        if isinstance(event.module, SAMPLING) and event.inputs and event.outputs and not _pointwise(event.module):
            _, broken_inputs, _ = search.follow(event.inputs, [other.inputs for other in others], [])
            if broken_inputs and (error := _error_alone(search, event, event.module)) > search.tolerance:
                broken = {id(event.outputs[0]): error}
                found.append(Lost(Step(event, others, [], set(), broken, [], error), error))
    return found


def _pointwise(module: nn.Module) -> bool:
    r"""Whether it reads and writes each pixel by itself."""
    settings = (getattr(module, name, ()) for name in ("kernel_size", "stride"))
    return all(all(number == 1 for number in (one if isinstance(one, tuple) else (one,))) for one in settings)


@torch.no_grad()
def _error_alone(search: Search, event: Event, module: nn.Module) -> float:
    r"""The least error of its output, over the ways its input may move; 0 where that is not known."""
    t, y = event.inputs[0][:1], event.outputs[0][:1]  # one sample is enough
    elements, errors = search.group.generating_set(), []
    try:
        layer = copy.deepcopy(module).to(t.dtype)
    except (RuntimeError, TypeError):
        return 0.0
    for way in candidates(search.group, t.shape, []):
        if way.fixed or way.anywhere:
            continue
        try:
            after = [layer(way.move(g, t)) for g in elements]
        except (RuntimeError, ValueError, TypeError):
            continue
        ways = candidates(search.group, y.shape, [(way, t.shape)])
        errors.append(min(distance(out, y, after, elements) for out in ways))
        if errors[-1] <= search.tolerance:
            break
    return min(errors, default=0.0)
