r"""How far each layer of a model is from following the group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from equilayers.groups import Group
from equilayers.testing._diagnosis.actions import image
from equilayers.testing._diagnosis.locate import (
    STRUCTURAL,
    Search,
    Step,
    runs_in_double,
    runs_over,
    same_course,
    sources,
)
from equilayers.testing._diagnosis.trace import Event
from equilayers.testing._execution import Model, in_double, orbit_inputs, rounding, undisturbed


@dataclass(frozen=True)
class LayerError:
    r"""How the outputs of one call of a layer follow the group.

    path: of the module, as in `named_modules`, or of the one whose forward calls the function. name: its class, or the
    function. input_shape, output_shape: of its first tensors, () where there is none. parameters: how many numbers it
    has learned. action: how its first output follows the group ("image", "regular", "invariant", ...; "" if it does
    not). error: of the output that follows least, relative to its largest entry. lost: whether the symmetry is lost
    here: it is fed what follows the group, puts out what does not, and that reaches the output of the model.
    """

    path: str
    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    action: str
    error: float
    lost: bool


def layer_errors(model: Model, x: Tensor, group: Group | str) -> list[LayerError]:
    r"""How far the outputs of each layer are from following the group, and which layers lose the symmetry.

    The model is run on x and on every gx, in float64 where it can be, so that rounding does not show. There is a row
    for each call of a layer of torch or of this library and of any other module without modules inside, and one for
    each function called between them that loses the symmetry. What comes out of all of them is kept: take a small x.

    Args:
        model: any callable; a module is run in eval mode and put back.
        group: the symmetry, of more than one element.
        x: inputs (B, ..., H, W) that the group acts on, floating-point, moved to the model's device and dtype; two
            small ones are enough.

    Returns:
        The rows in the order of the calls. None is lost where the output is equivariant, if not invariant.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group is trivial or does not act on x, or the model takes another course for gx than for x.
    """
    caller = "layer_errors"
    group, x, _ = orbit_inputs(caller, model, x, group)
    with undisturbed(model):
        precise = in_double(model)
        runs = None if precise is None else runs_in_double(precise, x, group)
        search = Search(group, rounding(model, x.dtype) if runs is None else STRUCTURAL)
        root, *moved = runs or runs_over(model, x, group)
    whole = search.step(root, moved, [(image(group), root.inputs[0].shape)])
    known, steps = list(whole.fed), []
    for event, others in _calls(root, moved):
        steps.append(search.step(event, others, known))
        known += steps[-1].made
    lost = {id(step) for step, _ in sources(steps, set(whole.broken))} if whole.broken else set()
    return [_row(step, id(step) in lost) for step in steps if id(step) in lost or _shown(step.event)]


def _calls(event: Event, moved: Sequence[Event]) -> Iterator[tuple[Event, list[Event]]]:
    r"""The layers that an event calls, and the functions between them, on x and on every gx."""
    module = event.module
    if event.opaque or (module is not None and (event.closed or not any(True for _ in module.children()))):
        yield event, list(moved)
        return
    same_course(event, moved)
    for number, child in enumerate(event.inside):
        yield from _calls(child, [other.inside[number] for other in moved])


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
