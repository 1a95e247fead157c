r"""Comparing the outputs of a model over an orbit, and finding out why they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers._modules import evaluation
from equilayers.groups import Group, as_group
from equilayers.metrics import equivariance_gaps
from equilayers.testing._diagnosis.actions import Action, candidates, declared, distance, largest
from equilayers.testing._diagnosis.locate import STRUCTURAL, Break, locate_break
from equilayers.testing._execution import Model, in_double, orbit_inputs, rounding, undisturbed

__all__ = ["Check", "Model", "Output", "compare", "name_of", "output_of", "require"]

Output = str | Callable[[int, Tensor], Tensor]
ROUNDED = 1e-9  # relative, in float64: rounding stays below
FEW = 4  # samples that the diagnosis looks at all of


@dataclass(frozen=True)
class Check:
    r"""What comparing `f(gx)` with `act(g, f(x))` over all g found.

    error: largest absolute difference. scale: largest absolute entry of the outputs. tolerance: largest error allowed.
    element, sample, index: where the error is largest; expected, found: the two numbers there. location: filled in by
    the diagnosis of a failed check.
    """

    passed: bool
    error: float
    scale: float
    tolerance: float
    element: int
    sample: int
    index: tuple[int, ...]
    expected: float
    found: float
    diagnosis: str = ""
    location: Break | None = None

    @property
    def relative_error(self) -> float:
        r"""The error by the largest output."""
        return self.error / self.scale if self.scale else self.error

    def __str__(self) -> str:
        where = f"g = {self.element}, sample {self.sample}, output {self.index}"
        lines = [
            f"worst:     {where}: {self.found:.6g} in the place of {self.expected:.6g}",
            f"error:     {self.error:.3g}, {self.relative_error:.2g} of the largest output "
            f"{self.scale:.3g}; tolerance {self.tolerance:.3g}",
        ]
        if self.diagnosis:
            lines.append(f"diagnosis: {self.diagnosis}")
        if self.location is not None:
            lines.append(f"lost at:   {self.location}")
        return "\n".join(lines)


def name_of(model: Model) -> str:
    r"""What a model is called in messages and reports."""
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "the model")


def require(check: Check, caller: str, model: Model, group: Group | str) -> None:
    r"""Raise AssertionError, in the name of `caller`, unless the check passed."""
    if not check.passed:
        what = caller.removeprefix("assert_")
        raise AssertionError(f"{caller}: {name_of(model)} is not {what} under {as_group(caller, group)!r}\n{check}")


def compare(
    caller: str,
    model: Model,
    x: Tensor,
    group: Group | str,
    output: Output | Action,
    *,
    bitwise: bool = False,
    tolerance: float | None = None,
    diagnose: bool = True,
) -> Check:
    r"""Compare the outputs over the orbit, and find out why where they differ."""
    group, x, elements = orbit_inputs(caller, model, x, group)
    if not x.numel():
        refuse(caller, "x of one sample or more", tuple(x.shape), "There is nothing to compare.")
    if bitwise and tolerance is not None:
        refuse(caller, "bitwise=True without tolerance", tolerance, "Bitwise allows no error: leave one of them out.")
    with undisturbed(model), torch.no_grad():
        y, *moved = (output_of(caller, model(group.act(g, x).clone())) for g in (0, *elements))
        action = output if isinstance(output, Action) else _action(caller, group, output, y)
        if tolerance is None:
            tolerance = 0.0 if bitwise else rounding(model, y.dtype)
        check = _worst(caller, action, y, moved, tolerance)
        if check.passed or not diagnose:
            return check
        kind, location = _diagnosis(model, x, group, action, check, caller)
    return replace(check, diagnosis=kind, location=location)


def output_of(caller: str, out: Any) -> Tensor:
    r"""The tensor a model puts out, also as `logits` of something larger."""
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor):
        refuse(caller, "model to return a tensor", type(out).__name__, "Wrap it: lambda x: model(x)[0].", TypeError)
    return out if out.is_floating_point() else out.double()


def _action(caller: str, group: Group, output: Output, y: Tensor) -> Action:
    if callable(output):
        return Action("given", output)
    if output == "auto":
        output = "regular" if y.ndim in (3, 5) and y.shape[2] == group.order else "image"
    if output not in ("image", "regular"):
        refuse(caller, "output in {'auto', 'image', 'regular'} or a function", repr(output), "Pick one of those.")
    return declared(group, output)


def _worst(caller: str, action: Action, y: Tensor, moved: list[Tensor], relative: float) -> Check:
    scale = max(map(largest, (y, *moved)))
    worst, element, place = -1.0, 1, 0
    found = equivariance_gaps(caller, action.move, y, enumerate(moved, start=1))
    for g, off in enumerate(map(torch.flatten, found), start=1):
        if off.numel() and float(off.max()) > worst:
            worst, element, place = float(off.max()), g, int(off.argmax())
    sample, *index = (int(i) for i in torch.unravel_index(torch.tensor(place), y.shape)) if y.numel() else (0,)
    there, here = (
        float(t.flatten()[place]) if y.numel() else 0.0 for t in (action.move(element, y), moved[element - 1])
    )
    worst, allowed = max(worst, 0.0), relative * scale
    return Check(worst <= allowed, worst, scale, allowed, element, sample, tuple(index), there, here)


def _diagnosis(
    model: Model, x: Tensor, group: Group, action: Action, check: Check, caller: str
) -> tuple[str, Break | None]:
    r"""Whether float64 makes the error go away, and where the symmetry is lost."""
    x = x if len(x) <= FEW else x[[check.sample, check.sample - 1]]
    try:
        location = locate_break(model, x, group)
        lost = ""
    except Exception as error:  # whatever it is, what the check has found is to be told
        location, lost = None, f"; no place was found: {error}"
    if location is not None and location.kind == "random":
        return "random: two identical calls differ", location
    wide = _in_double(model, x, group, caller)
    if isinstance(wide, str):
        return f"structural or numerical: {wide}{lost}", location
    relative = distance(action, wide[0], wide[1:])
    left = f"in float64 the error is {relative:.2g} of the largest output"
    if relative <= ROUNDED:
        return f"numerical: {left}{lost}", location
    if relative <= STRUCTURAL:
        return f"numerical: {left}, which weights that follow the group to float32 may leave{lost}", location
    if location is None and not lost:
        others = candidates(group, wide[0].shape, [])
        how = next((a.name for a in others if distance(a, wide[0], wide[1:]) <= STRUCTURAL), "in some other way")
        hint = "pool over what moves" if action.fixed else f"it does not move as declared ({action.name})"
        return f"structural: every module is equivariant, and so is the output ({how}): {hint}", None
    return f"structural: {left} as well{lost}", location


def _in_double(model: Model, x: Tensor, group: Group, caller: str) -> list[Tensor] | str:
    r"""The outputs over the orbit in float64, or why there are none."""
    precise = in_double(model)
    if precise is None:
        return "it cannot be copied to float64"
    try:
        with evaluation(precise):
            return [output_of(caller, precise(group.act(g, x.double()).clone())) for g in range(group.order)]
    except (RuntimeError, TypeError, ValueError) as error:
        return f"it does not run in float64 ({str(error).splitlines()[0]})"
