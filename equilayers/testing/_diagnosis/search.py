r"""The search for the calls that lose the symmetry, in runs on x and on every gx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers._checks import refuse
from equilayers.groups import Group
from equilayers.testing._diagnosis.actions import Action, candidates, distance
from equilayers.testing._diagnosis.trace import Event

Known = list[tuple[Action, torch.Size]]


def course(event: Event) -> list[tuple[str, str, int, int]]:
    return [(e.path, e.name, len(e.inputs), len(e.outputs)) for e in event.inside]


def same_course(event: Event, moved: Sequence[Event]) -> None:
    r"""Refuse runs that did not call the same modules and functions."""
    mine = course(event)
    for theirs in map(course, moved):
        if mine != theirs:
            both = min(len(mine), len(theirs))
            at = next((i for i in range(both) if mine[i] != theirs[i]), both)
            got = " and ".join(repr(names[at][1]) if at < len(names) else "nothing more" for names in (mine, theirs))
            hint = "Its course depends on the values of the input; take an input on which it does not."
            where = event.path or "forward"
            refuse("locate_break", f"a model that calls the same functions for x and gx in {where}", got, hint)


@dataclass(frozen=True)
class Step:
    r"""A call on x and on all gx: the ids of the inputs and outputs that do not follow the group, and how others do.

    error: of the output that follows the group least.
    """

    event: Event
    moved: list[Event]
    fed: Known
    broken_inputs: set[int]
    broken: dict[int, float]
    made: Known
    error: float


class Lost(NamedTuple):
    r"""A call that loses the symmetry, and the error of the output that it breaks."""

    step: Step
    error: float


class Search:
    r"""Looks for events that are fed what follows the group and put out what does not.

    given: how the inputs move. elements: all but 0 if ().
    """

    def __init__(self, group: Group, tolerance: float, given: Known, elements: Sequence[int] = ()) -> None:
        self.group = group
        self.tolerance = tolerance
        self.given = given
        self.elements = elements or range(1, group.order)

    def lost(self, runs: Sequence[Event]) -> list[Lost]:
        r"""The calls that lose it in the runs on x, on g=1 of it (or the first of the elements), and so on."""
        root, *moved = runs
        step = self.step(root, moved, self.given)
        return self.descend(step, set(step.broken)) if step.broken else []

    def descend(self, step: Step, wanted: set[int]) -> list[Lost]:
        r"""The calls within that break the wanted outputs, or the call itself."""
        if not step.event.opaque:
            same_course(step.event, step.moved)
            known, steps = list(step.fed), []
            for number, child in enumerate(step.event.inside):
                steps.append(self.step(child, [other.inside[number] for other in step.moved], known))
                known += steps[-1].made
            found = sources(steps, wanted)
            if found:
                return [lost for inner, guilty in found for lost in self.descend(inner, guilty)]
        return [Lost(step, max(step.broken[t] for t in wanted))]

    def behind(self, runs: Sequence[Event], ends: set[int]) -> list[Lost]:
        r"""The calls without others inside that lose it, on the way to the output or to the inputs of some calls."""
        root, *moved = runs
        whole = self.step(root, moved, self.given)
        known, steps = list(whole.fed), []
        for event, *others in zip(root.all(), *(run.all() for run in moved), strict=True):
            if event.opaque and event is not root:
                steps.append(self.step(event, others, known))
                known += steps[-1].made
        wanted = set(whole.broken).union(*(step.broken_inputs for step in steps if step.event.number in ends))
        found = sources(steps, wanted) if wanted else []
        return [Lost(step, max(step.broken[t] for t in guilty)) for step, guilty in found]

    def step(self, event: Event, moved: list[Event], known: Known) -> Step:
        r"""How inputs and outputs follow the group, first of all in the ways that are known."""
        known = known[-8:] + known[:1]
        fed, broken_inputs, _ = self.follow(event.inputs, [other.inputs for other in moved], known)
        made, broken, error = self.follow(event.outputs, [other.outputs for other in moved], fed or known)
        return Step(event, moved, fed, set(broken_inputs), broken, made, error)

    def follow(
        self, tensors: list[Tensor], moved: Sequence[list[Tensor]], known: Known
    ) -> tuple[Known, dict[int, float], float]:
        r"""The actions of the tensors that follow the group, the errors of the others, and the largest of all."""
        actions: Known = []
        broken: dict[int, float] = {}
        worst = 0.0
        for number, tensor in enumerate(tensors):
            after, least = [run[number] for run in moved], float("inf")
            for action in candidates(self.group, tensor.shape, known):
                least = min(least, distance(action, tensor, after, self.elements))
                if least <= self.tolerance:
                    actions.append((action, tensor.shape))
                    break
            else:
                broken[id(tensor)] = least
            worst = max(worst, least)
        return actions, broken, worst


def sources(steps: list[Step], wanted: set[int]) -> list[tuple[Step, set[int]]]:
    r"""The steps that break what becomes of the wanted tensors, fed with what follows the group, and what each breaks.

    Back from the end, from what is broken to what it was made of. Where a tensor was changed through a view of it, that
    path ends; then it is the first step of all that breaks something others read.
    """
    found, last = [], set(wanted)
    for step in reversed(steps):
        if guilty := wanted & set(step.broken):
            wanted = (wanted - guilty) | step.broken_inputs
            found += [] if step.broken_inputs else [(step, guilty)]
    if found and not wanted:
        return found[::-1]
    read = last.union(*(step.event.reads() for step in steps))
    guilty_steps = ((step, read & set(step.broken)) for step in steps if not step.broken_inputs)
    return [(step, guilty) for step, guilty in guilty_steps if guilty][:1]
