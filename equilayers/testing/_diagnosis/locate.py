r"""Finding the first place in a model where the symmetry is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equilayers._checks import refuse
from equilayers._modules import evaluation
from equilayers.groups import Group
from equilayers.testing._diagnosis.actions import Action, candidates, distance, image
from equilayers.testing._diagnosis.advice import Advice, advice
from equilayers.testing._diagnosis.trace import Event, trace
from equilayers.testing._execution import Model, in_double, orbit_inputs, rounding, undisturbed

STRUCTURAL = 1e-6  # relative, in float64: what float32 weights leave of a symmetry is smaller


@dataclass(frozen=True)
class Break:
    r"""Where a model loses the symmetry.

    path: of the module, as in `named_modules`, or of the one whose forward calls the function. name: its class, or the
    function. description: as it was called. input_shape: of its first input. kind: "structural", "numerical", "random",
    or "structural or numerical" for what does not run in float64. error: relative to the largest entry. why,
    suggestion: in words.
    """

    path: str
    name: str
    description: str
    input_shape: tuple[int, ...]
    kind: str
    error: float
    why: str
    suggestion: str

    def __str__(self) -> str:
        where = self.path or "the model itself"
        return f"{where}: {self.description} on {self.input_shape}: {self.why}. {self.suggestion}."


def locate_break(model: Model, x: Tensor, group: Group | str, *, tolerance: float = STRUCTURAL) -> Break | None:
    r"""The first module, or function called in one, that is fed what moves with the input and puts out what does not.

    The model is run on x and on every gx, in float64 where it can be, and what goes into and comes out of each module
    and each torch function is compared. A tensor may follow the group in any of the usual ways: as an image, as a
    regular feature (also flattened into channels), with its channels last, as tokens, reshaped, or not at all. What
    comes out of all of them is kept: take a small x.

    Args:
        model: any callable; a module is run in eval mode and put back.
        group: the symmetry, of more than one element.
        x: inputs (B, ..., H, W) that the group acts on, floating-point, moved to the model's device and dtype; two
            small ones are enough.
        tolerance: relative error up to which a tensor follows the group.

    Returns:
        A `Break`, or None where nothing is lost: then the output is equivariant, if not invariant.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group is trivial or does not act on x, or the model takes another course for gx than for x.
    """
    caller = "locate_break"
    group, x, _ = orbit_inputs(caller, model, x, group)
    with undisturbed(model):
        random = _random(model, x)
        if random is not None:
            return random
        precise = in_double(model)
        runs = None if precise is None else runs_in_double(precise, x, group)
        if runs is not None:
            found = Search(group, tolerance).first(runs, "structural")
            if found is not None:
                return found
        kind = "structural or numerical" if runs is None else "numerical"
        return Search(group, rounding(model, x.dtype)).first(runs_over(model, x, group), kind)


def runs_over(model: Model, x: Tensor, group: Group) -> list[Event]:
    return [trace(model, group.act(g, x)) for g in range(group.order)]


def runs_in_double(model: Model, x: Tensor, group: Group) -> list[Event] | None:
    r"""None where it does not run in float64."""
    try:
        with evaluation(model):
            return runs_over(model, x.double(), group)
    except (RuntimeError, TypeError, ValueError):
        return None


def _random(model: Model, x: Tensor) -> Break | None:
    r"""The first event that differs between two identical calls."""
    first, second = trace(model, x), trace(model, x)
    if not _differ(first, second):
        return None
    while not first.opaque and _course(first) == _course(second):
        pairs = zip(first.inside, second.inside, strict=True)
        found = next(((a, b) for a, b in pairs if _differ(a, b)), None)
        if found is None:
            break
        first, second = found
    hint = "Switch its randomness off in eval mode: dropout takes training=self.training"
    return _break(first, "random", float("nan"), Advice("two identical calls differ", hint))


def _differ(a: Event, b: Event) -> bool:
    def equal(s: Tensor, t: Tensor) -> bool:
        return s.shape == t.shape and bool(((s == t) | ((s != s) & (t != t))).all())  # noqa: PLR0124  NaN is not itself

    return len(a.outputs) != len(b.outputs) or not all(map(equal, a.outputs, b.outputs))


def _course(event: Event) -> list[tuple[str, str, int, int]]:
    return [(e.path, e.name, len(e.inputs), len(e.outputs)) for e in event.inside]


def same_course(event: Event, moved: Sequence[Event]) -> None:
    r"""Refuse runs that did not call the same modules and functions."""
    mine = _course(event)
    for theirs in map(_course, moved):
        if mine != theirs:
            both = min(len(mine), len(theirs))
            at = next((i for i in range(both) if mine[i] != theirs[i]), both)
            got = " and ".join(repr(names[at][1]) if at < len(names) else "nothing more" for names in (mine, theirs))
            hint = "Its course depends on the values of the input; take an input on which it does not."
            where = event.path or "forward"
            refuse("locate_break", f"a model that calls the same functions for x and gx in {where}", got, hint)


def _break(event: Event, kind: str, error: float, what: Advice) -> Break:
    described = str(event.module) if event.module is not None else f"{event.name}({event.arguments})"
    if "\n" in described:
        described = event.name
    shape = tuple(event.inputs[0].shape) if event.inputs else ()
    return Break(event.path, event.name, described, shape, kind, error, what.why, what.hint)


Known = list[tuple[Action, torch.Size]]


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


class Search:
    r"""Looks for the first event that is fed what follows the group and puts out what does not."""

    def __init__(self, group: Group, tolerance: float) -> None:
        self.group = group
        self.tolerance = tolerance

    def first(self, runs: Sequence[Event], kind: str) -> Break | None:
        r"""What is found in the runs on x, on g=1 of it, and so on."""
        root, *moved = runs
        step = self.step(root, moved, [(image(self.group), root.inputs[0].shape)])
        if not step.broken:
            return None
        event, error = self.descend(step, set(step.broken))
        return _break(event, kind, error, advice(event, self.group, numerical=kind == "numerical"))

    def descend(self, step: Step, wanted: set[int]) -> tuple[Event, float]:
        r"""The event within that breaks the wanted outputs, or the event itself, and its error."""
        if not step.event.opaque:
            same_course(step.event, step.moved)
            known, steps = list(step.fed), []
            for number, child in enumerate(step.event.inside):
                steps.append(self.step(child, [other.inside[number] for other in step.moved], known))
                known += steps[-1].made
            found = sources(steps, wanted)
            if found:
                return self.descend(*found[0])
        return step.event, max(step.broken[t] for t in wanted)

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
                least = min(least, distance(action, tensor, after))
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
