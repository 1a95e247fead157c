r"""How far each layer of a model is from following the group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from equilayers._modules import evaluation
from equilayers.groups import Group
from equilayers.testing._diagnosis.locate import ROUNDS, STRUCTURAL, runs_in_double, runs_over
from equilayers.testing._diagnosis.rounds import all_lost
from equilayers.testing._diagnosis.search import Search, Step, same_course
from equilayers.testing._diagnosis.trace import Event
from equilayers.testing._execution import Model, in_double, orbit_inputs, rounding, undisturbed
from equilayers.testing._inputs import Given, How, Inputs, Names


@dataclass(frozen=True)
class LayerError:
    r"""How the outputs of one call of a layer follow the group.

    path: of the module, as in `named_modules`, or of the one whose forward calls the function. name: its class, or the
    function. input_shape, output_shape: of its first tensors, () where there is none. parameters: how many numbers it
    has learned. action: how its first output follows the group ("image", "regular", "invariant", ...; "" if it does
    not). error: of the output that follows least, relative to its largest entry, with what was lost before. lost:
    whether the symmetry is lost here as well: fed what follows the group, it puts out what does not (`locate_breaks`).
    """

    path: str
    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    action: str
    error: float
    lost: bool


def layer_errors(
    model: Model, x: Given | Inputs, group: Group | str, *, moving: Names = None, input: How = "image"
) -> list[LayerError]:
    r"""How far the outputs of each layer are from following the group, and which layers lose the symmetry.

    The model is run on x and on every gx, in float64 where it can be, so that rounding does not show. There is a row
    for each call of a layer of torch or of this library and of any other module without modules inside, and one for
    each function called between them that loses the symmetry. What comes out of all of them is kept: take a small x.

    Args:
        model: any callable; a module is run in eval mode and put back.
        group: the symmetry, of more than one element.
        x: inputs (B, ..., H, W) that the group acts on, floating-point, moved to the model's device and dtype; two
            small ones are enough. Several inputs as for `assert_invariant`.
        moving: which of several inputs move, as for `assert_invariant`.
        input: how they move, as for `assert_invariant`.

    Returns:
        The rows in the order of the calls. None is lost where the output is equivariant, if not invariant.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group is trivial or does not act on x, or the model takes another course for gx than for x.
        RuntimeError: the model raised an exception, which is its cause.
    """
    caller = "layer_errors"
    group, inputs = orbit_inputs(caller, model, x, group, moving, input)
    with undisturbed(model):
        precise = in_double(model)
        runs = None if precise is None else runs_in_double(precise, inputs, group)
        tolerance = rounding(model, inputs.first.dtype) if runs is None else STRUCTURAL
        search = Search(group, tolerance, inputs.known(group))
        if precise is None or runs is None:
            precise, runs = model, runs_over(caller, model, inputs, group)
        with evaluation(precise):
            lost = {lost.step.event.number for lost in all_lost(precise, runs, search, ROUNDS)}
    root, *moved = runs.events
    known, rows = inputs.known(group), []
    for event, others in _calls(root, moved, lost):
        step = search.step(event, others, known)
        known += step.made
        here = any(inner.number in lost for inner in event.all())
        rows += [_row(step, here)] if here or _shown(event) else []
    return rows


def _calls(event: Event, moved: Sequence[Event], lost: set[int]) -> Iterator[tuple[Event, list[Event]]]:
    r"""The layers that an event calls, the functions between them, and what is lost, on x and on every gx."""
    module = event.module
    if (
        event.opaque
        or event.number in lost
        or (module is not None and (event.closed or not any(True for _ in module.children())))
    ):
        yield event, list(moved)
        return
    same_course(event, moved)
    for number, child in enumerate(event.inside):
        yield from _calls(child, [other.inside[number] for other in moved], lost)


def _shown(event: Event) -> bool:
    return event.module is not None and bool(event.outputs)


def _row(step: Step, lost: bool) -> LayerError:
    event = step.event
    follows = bool(step.made) and not step.broken
    return LayerError(
        event.path,
        event.name,
        tuple(event.inputs[0].shape) if event.inputs else (),
        tuple(event.outputs[0].shape) if event.outputs else (),
        sum(p.numel() for p in event.module.parameters()) if event.module is not None else 0,
        step.made[0][0].name if follows else "",
        step.error,
        lost,
    )
