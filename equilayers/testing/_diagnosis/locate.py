r"""Finding the places in a model where the symmetry is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from equilayers._modules import evaluation
from equilayers.groups import Group
from equilayers.testing._diagnosis.advice import Advice, advice
from equilayers.testing._diagnosis.mixing import first_mixing
from equilayers.testing._diagnosis.rounds import Runs, all_lost
from equilayers.testing._diagnosis.search import Lost, Search, course
from equilayers.testing._diagnosis.trace import Event, trace
from equilayers.testing._execution import Model, in_double, orbit_inputs, rounding, trying, undisturbed
from equilayers.testing._inputs import Given, How, Inputs, Names

STRUCTURAL = 1e-6  # relative, in float64: what float32 weights leave of a symmetry is smaller
ROUNDS = 24  # how often the search goes on behind what it has found


MIXING = Advice(
    "it makes something else of a sample when the other samples of the batch are moved otherwise",
    "Take batch statistics in training alone, or statistics of each sample",
)


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


def locate_break(
    model: Model,
    x: Given | Inputs,
    group: Group | str,
    *,
    moving: Names = None,
    input: How = "image",
    tolerance: float = STRUCTURAL,
) -> Break | None:
    r"""The first module, or function called in one, that is fed what moves with the input and puts out what does not.

    The model is run on x and on every gx, in float64 where it can be, and what goes into and comes out of each module
    and each torch function is compared. A tensor may follow the group in any of the usual ways: as an image, as a
    regular feature (also flattened into channels), with its channels last, as tokens, reshaped, as vectors of the
    plane or fields of them, as places in the plane, or not at all. What comes out of all of them is kept: take a small
    x.

    Args:
        model: any callable; a module is run in eval mode and put back, also one that a function, method or partial
            calls.
        group: the symmetry, of more than one element.
        x: inputs (B, ..., H, W) that the group acts on, floating-point, moved to the model's device and dtype; two
            small ones are enough. Several inputs as for `assert_invariant`.
        moving: which of several inputs move, as for `assert_invariant`.
        input: how they move, as for `assert_invariant`.
        tolerance: relative error up to which a tensor follows the group.

    Returns:
        A `Break`, or None where nothing is lost: then the output is equivariant, if not invariant.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group is trivial or does not act on x, or the model takes another course for gx than for x.
        RuntimeError: the model raised an exception, which is its cause.
    """
    return next(iter(_located("locate_break", model, x, group, Depth(tolerance, 1, moving, input))), None)


def locate_breaks(
    model: Model,
    x: Given | Inputs,
    group: Group | str,
    *,
    moving: Names = None,
    input: How = "image",
    tolerance: float = STRUCTURAL,
) -> list[Break]:
    r"""All modules and functions that lose the symmetry, in the order of their calls; the first as `locate_break`.

    Each is judged by itself, on what it is fed in the run on x: what earlier ones put out for gx is replaced by what
    they would put out if they followed the group, until nothing more is lost. Of what is random, or lost to rounding
    alone, the first is found.

    Args:
        model: as for `locate_break`.
        group: as for `locate_break`.
        x: as for `locate_break`.
        moving: as for `locate_break`.
        input: as for `locate_break`.
        tolerance: as for `locate_break`.

    Returns:
        The breaks, none where nothing is lost. A layer that breaks in several calls on the same shape is there once.

    Raises:
        TypeError, ValueError: as `locate_break`.
    """
    return _located("locate_breaks", model, x, group, Depth(tolerance, ROUNDS, moving, input))


class Depth(NamedTuple):
    r"""How exact a search is, how often it goes on behind what it has found, which inputs move, and how."""

    tolerance: float
    rounds: int
    moving: Names
    input: How


def _located(caller: str, model: Model, x: Given | Inputs, group: Group | str, depth: Depth) -> list[Break]:
    group, inputs = orbit_inputs(caller, model, x, group, depth.moving, depth.input)
    with undisturbed(model):
        random = _random(caller, model, inputs)
        if random is not None:
            return [random]
        precise = in_double(model)
        runs = None if precise is None else runs_in_double(precise, inputs, group)
        if precise is not None and runs is not None:
            with evaluation(precise):
                found = all_lost(precise, runs, Search(group, depth.tolerance, inputs.known(group)), depth.rounds)
                mixing = None if found else first_mixing(precise, runs, depth.tolerance)
            if found:
                return _breaks(found, "structural", group)
            if mixing is not None:
                return [_break(mixing[0], "structural", mixing[1], MIXING)]
        kind, rounds = ("structural or numerical", depth.rounds) if runs is None else ("numerical", 1)
        runs = runs_over(caller, model, inputs, group)
        search = Search(group, rounding(model, inputs.first.dtype), inputs.known(group))
        return _breaks(all_lost(model, runs, search, rounds), kind, group)


def runs_over(caller: str, model: Model, x: Inputs, group: Group) -> Runs:
    r"""The inputs, and the runs on x and on every gx."""
    with trying(caller, model, "g·x"):
        return Runs(x, [trace(model, x.acted(group, g)) for g in range(group.order)])


def runs_in_double(model: Model, x: Inputs, group: Group) -> Runs | None:
    r"""None where it does not run in float64."""
    try:
        with evaluation(model):
            return runs_over("", model, x.double(), group)
    except RuntimeError:
        return None


def _random(caller: str, model: Model, x: Inputs) -> Break | None:
    r"""The first event that differs between two identical calls."""
    with trying(caller, model, "x"):
        first, second = trace(model, x), trace(model, x)
    if not _differ(first, second):
        return None
    while not first.opaque and course(first) == course(second):
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


def _breaks(found: Iterable[Lost], kind: str, group: Group) -> list[Break]:
    r"""What was found in words, each call of a layer on the same shape once."""
    made: dict[tuple[str, str, tuple[int, ...]], Break] = {}
    for step, error in found:
        what = advice(step.event, [action for action, _ in step.fed], group, numerical=kind == "numerical")
        one = _break(step.event, kind, error, what)
        made.setdefault((one.path, one.description, one.input_shape), one)
    return list(made.values())


def _break(event: Event, kind: str, error: float, what: Advice) -> Break:
    described = str(event.module) if event.module is not None else f"{event.name}({event.arguments})"
    if "\n" in described:
        described = event.name
    shape = tuple(event.inputs[0].shape) if event.inputs else ()
    return Break(event.path, event.name, described, shape, kind, error, what.why, what.hint)
