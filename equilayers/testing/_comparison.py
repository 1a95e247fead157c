r"""Comparing the outputs of a model over an orbit, and finding out why they differ.

A comparison has three outcomes: the law holds, it does not hold, or nothing was shown, because the check could not have
failed: the group does not move the inputs, the output does not depend on them, or the tolerance is as large as what any
other input changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import refuse
from equilayers._modules import evaluation
from equilayers.groups import Group
from equilayers.metrics import equivariance_gaps
from equilayers.testing._check import Check
from equilayers.testing._diagnosis.actions import NAMED, Action, candidates, declared, distance
from equilayers.testing._diagnosis.locate import STRUCTURAL, Break, locate_breaks
from equilayers.testing._execution import Model, NarrowTensors, in_double, orbit_inputs, rounding, trying, undisturbed
from equilayers.testing._inputs import Given, How, Inputs, Names
from equilayers.testing._outputs import outputs_of

Output = str | Callable[[int, Tensor], Tensor]
ROUNDED = 1e-9  # relative, in float64: rounding stays below
FEW = 4  # samples that the diagnosis looks at all of
SHARP = 0.05  # a tolerance shows something where it is at most this share of what another input changes
PLAIN = 4  # units of rounding that a plain sum leaves; where more is left, float64 tells rounding from a break


class Allowed(NamedTuple):
    r"""How large an error may be: `relative` to the size of the output, and `absolute`; both None: by rounding."""

    relative: float | None
    absolute: float | None

    def at(self, scale: Tensor, rounded: float) -> Tensor:
        r"""The largest error of entries of that size."""
        relative = rounded if self.relative is None and self.absolute is None else self.relative or 0.0
        return relative * scale + (self.absolute or 0.0)

    @property
    def given(self) -> bool:
        r"""Whether the user said it."""
        return self.relative is not None or self.absolute is not None


def compare(
    caller: str,
    model: Model,
    x: Given | Inputs,
    group: Group | str,
    output: Output | Action,
    *,
    moving: Names = None,
    input: How = "image",
    bitwise: bool = False,
    tolerance: float | None = None,
    atol: float | None = None,
    diagnose: bool = True,
) -> Check:
    r"""Compare the outputs over the orbit, and find out why where they differ."""
    __tracebackhide__ = True
    group, inputs = orbit_inputs(caller, model, x, group, moving, input)
    if not inputs.first.numel():
        refuse(caller, "x of one sample or more", tuple(inputs.first.shape), "There is nothing to compare.")
    if bitwise and not (tolerance is atol is None):
        given = tolerance if atol is None else atol
        refuse(caller, "bitwise=True without a tolerance", given, "Bitwise allows no error: leave one of them out.")
    allowed = Allowed(0.0 if bitwise else tolerance, atol)
    with undisturbed(model), torch.no_grad():
        runs = Runs.over(caller, model, inputs, group)
        found = _judged(caller, runs, output, allowed)
        check = found.check if not found.check.passed else _shown(caller, runs, output, found)
        if check.passed or check.nothing_shown or not diagnose or check.diagnosis:
            return check
        action = _action(caller, group, output, runs.plain[check.output])
        kind, locations = _diagnosis(caller, model, inputs, group, action, check)
    return replace(check, diagnosis=kind, locations=tuple(locations))


@dataclass(frozen=True)
class Runs:
    r"""The outputs, by name, for x, for every gx but x, for noise as far from x, and for samples moved each its way.

    mixed: sample i of it is that of `moved[i % (|G| - 1)]`; None where moved inputs have other shapes, or alone.
    """

    model: Model
    x: Inputs
    group: Group
    plain: dict[str, Tensor]
    moved: list[dict[str, Tensor]]
    noisy: dict[str, Tensor]
    mixed: dict[str, Tensor] | None
    still: bool

    @classmethod
    def over(cls, caller: str, model: Model, x: Inputs, group: Group) -> Runs:
        r"""Run the model."""
        __tracebackhide__ = True
        orbit = [x.acted(group, g) for g in range(group.order)]
        outputs, copies = {}, [gx.clone() for gx in orbit]  # all alive: a model may know its inputs by their addresses
        for g, gx in enumerate(copies):
            outputs[g] = call(caller, model, gx, f"g·x for g = {g}")
        plain, *moved = outputs.values()
        pairs = [(s, t) for gx in orbit[1:] for s, t in zip(gx.movable, x.movable, strict=True)]
        still = all(torch.equal(s, t) for s, t in pairs)
        away = max(
            (float((s - t).abs().max()) for s, t in pairs if s.shape == t.shape and t.is_floating_point()), default=1
        )
        noisy = call(caller, model, x.noisy(away or 1.0), "x with noise added")
        mixed = None
        if len(x) > 1 and all(s.shape == t.shape for s, t in pairs):
            rows = [1 + i % len(moved) for i in range(len(x))]
            each = {name: torch.stack([orbit[g].parts[name][i] for i, g in enumerate(rows)]) for name in x.moving}
            copies.append(replace(x, parts=x.parts | each).clone())
            mixed = call(caller, model, copies[-1], "samples moved by different elements")
        return cls(model, x, group, plain, moved, noisy, mixed, still)

    @property
    def whole(self) -> bool:
        r"""Whether all of the input moves, so that samples differ in nothing else."""
        return len(self.x.moving) == len(self.x.parts)


def call(caller: str, model: Model, x: Inputs, what: str) -> dict[str, Tensor]:
    r"""The outputs for x, which the model may change; `what` says what x is where the model raises an exception.

    Raises:
        RuntimeError: the model raised something, which is its cause.
        TypeError: it returns no tensor.
    """
    __tracebackhide__ = True
    with trying(caller, model, what):
        out = x.run(model)
    return outputs_of(caller, out)


class Judged(NamedTuple):
    r"""The worst check of all outputs, and what it shows.

    change: how far other inputs change the outputs. sharp: by much more than is allowed. units: the error in units of
    rounding; 0 where the user said what is allowed. half: whether a unit is that of half precision.
    """

    check: Check
    change: float
    sharp: bool
    units: float
    half: bool

    @property
    def doubtful(self) -> bool:
        r"""Whether the error, or what would be allowed in half precision, is more than a plain sum leaves."""
        return self.half or self.units > PLAIN


def _judged(caller: str, runs: Runs, output: Output | Action, allowed: Allowed) -> Judged:
    found = [_judge(caller, runs, name, output, allowed) for name in runs.plain]
    worst = max((one.check for one in found), key=_badness)
    change, units = max(one.change for one in found), max(one.units for one in found)
    return Judged(worst, change, any(one.sharp for one in found), units, any(one.half for one in found))


def _badness(check: Check) -> tuple[bool, float]:
    return not check.passed, check.error / check.tolerance if check.tolerance else check.error


def _judge(caller: str, runs: Runs, name: str, output: Output | Action, allowed: Allowed) -> Judged:
    r"""The law for one of the outputs."""
    missing = [g for g, outputs in enumerate(runs.moved, start=1) if name not in outputs]
    if missing:
        refuse(
            caller,
            "the same outputs for every moved input",
            f"none of name {name!r} for g = {missing[0]}",
            "Return it.",
        )
    y, moved, noisy = runs.plain[name], [outputs[name] for outputs in runs.moved], runs.noisy.get(name)
    action = _action(caller, runs.group, output, y)
    _require_action(caller, action, runs.group, y)
    found = list(equivariance_gaps(caller, action.move, y, enumerate(moved, start=1)))
    scale = _scale([y, *moved], noisy)
    limit = allowed.at(scale, rounding(runs.model, y.dtype))
    check = _worst(action, y, moved, found, scale, limit)
    check = replace(check, output=name, dtype=str(y.dtype).removeprefix("torch."))
    if check.passed:
        check = _unmixed(caller, runs, check, limit)
    change = _change(y, noisy, others=runs.whole)
    if allowed.given:
        return Judged(check, float(change.max()), bool((change > 0).any()), 0.0, half=False)
    eps = torch.finfo(y.dtype).eps
    unit = torch.where(scale > 0, eps * scale, 1.0)
    units = max((float((off / unit).max()) for off in found if off.numel()), default=0.0)
    half = eps > torch.finfo(torch.float32).eps
    least = unit if half and units <= 1 else limit  # what would have passed as well
    sharp = (change > 0) & (least.flatten() <= SHARP * change)
    return Judged(check, float(change.max()), bool(sharp.any()), units, half)


def _unmixed(caller: str, runs: Runs, check: Check, limit: Tensor) -> Check:
    r"""A check that passed, failed where samples that are moved by different elements come out otherwise."""
    y, moved = runs.plain[check.output], [outputs[check.output] for outputs in runs.moved]
    mixed = (runs.mixed or {}).get(check.output)
    if mixed is None or not y.ndim or len(y) != len(runs.x):
        return check
    expected = torch.stack([moved[i % len(moved)][i] for i in range(len(y))])
    if mixed.shape != expected.shape:
        return check
    (off,) = equivariance_gaps(caller, lambda g, t: t, expected, [(1, mixed)])  # noqa: ARG005
    if bool((off <= limit).all()):
        return check
    sample = int(off.reshape(len(off), -1).amax(1).argmax())
    reason = (
        "the samples of a batch influence each other: the output of a sample changes when the others are moved "
        "otherwise. Batch statistics, as of batch normalisation in training mode, do that"
    )
    return replace(check, passed=False, error=float(off.max()), sample=sample, diagnosis=reason)


def _change(y: Tensor, noisy: Tensor | None, *, others: bool) -> Tensor:
    r"""How far noise, or another sample, changes each channel of the output at most, (C,); 0 where that is unknown."""
    if noisy is None or noisy.shape != y.shape or not y.numel():
        return torch.zeros(1, dtype=torch.float64, device=y.device)
    changed = [noisy, y[:1].expand_as(y)] if y.ndim and others else [noisy]
    return torch.stack([(_channels(t) - _channels(y)).abs().amax(1) for t in changed]).amax(0)


def _scale(outputs: list[Tensor], noisy: Tensor | None) -> Tensor:
    r"""The size of the outputs, channel by channel (axis 1), so that it broadcasts with them.

    That of a channel is its largest finite entry, or, if that is more, the median over the channels that vary, also
    with noise: entries that happen to be small are the sums of larger ones. A constant such as the -1e9 of a masked
    class is large for its own channel alone.
    """
    y = outputs[0]
    if not y.numel():
        return torch.ones((), dtype=torch.float64, device="cpu")
    values = torch.cat([_channels(t) for t in outputs], 1)
    size = values.abs().amax(1)
    if noisy is not None and noisy.shape == y.shape:
        values = torch.cat((values, _channels(noisy)), 1)
    varies = values.amax(1) > values.amin(1)
    if bool(varies.any()):
        size = torch.maximum(size, size[varies].median())
    return size.reshape(1, -1, *[1] * (y.ndim - 2)) if y.ndim > 1 else size.reshape(())


def _channels(t: Tensor) -> Tensor:
    r"""Finite values (C, N) in float64, others as 0."""
    wide = t.abs().double() if t.is_complex() else t.cpu().double() if t.device.type == "mps" else t.double()
    finite = torch.where(wide.isfinite(), wide, 0.0)
    return finite.movedim(1, 0).flatten(1) if t.ndim > 1 else finite.reshape(1, -1)


def _worst(
    action: Action, y: Tensor, moved: list[Tensor], found: list[Tensor], scale: Tensor, allowed: Tensor
) -> Check:
    r"""The entry whose error is largest by what is allowed there."""
    if not y.numel():
        return Check(True, 0.0, 0.0, 0.0, 1, 0, (), 0.0, 0.0)
    unit = torch.where(allowed > 0, allowed, 1.0)
    errors = [(off / unit).flatten() for off in found]
    g = max(range(len(found)), key=lambda g: float(errors[g].max()))
    off, place = found[g], int(errors[g].argmax())
    sample, *index = map(int, np.unravel_index(place, off.shape)) if off.ndim else (0,)
    there, here = (float(t.flatten()[place].real) for t in (action.move(g + 1, y), moved[g]))
    error, limit, size = (float(t.expand(off.shape).flatten()[place]) for t in (off, allowed, scale))
    passed = all(bool((gap <= allowed).all()) for gap in found)
    return Check(passed, error, size, limit, g + 1, sample, tuple(index), there, here)


def _shown(caller: str, runs: Runs, output: Output | Action, found: Judged) -> Check:
    r"""A check that passed, if it could have failed; else the check in float64, or why nothing was shown."""
    if runs.still:
        why = "the inputs are the same however they are moved"
    elif not any(bool(y.isfinite().any()) for y in runs.plain.values()):
        why = "no entry of the output is finite"
    elif not found.change:
        why = "the output is the same for every input, noise included"
    else:
        precise = None if found.sharp and not found.doubtful else _in_float64(caller, runs, output)
        if precise is not None:
            return precise
        if found.sharp and not (found.half and found.units > 1):
            return found.check
        why = (
            f"in {found.check.dtype} an error of {found.check.relative_error:.2g} may be rounding or not, and there is "
            "no copy in float64. Check the model in float32, or pass a tolerance"
            if found.sharp
            else ""
        ) or (
            f"noise changes the output by {found.change:.2g}, and a tolerance of {found.check.tolerance:.2g} for "
            f"{found.check.dtype} is not small beside that. Train the model, take other inputs, or pass a tolerance"
        )
    return replace(found.check, passed=False, nothing_shown=why)


def _in_float64(caller: str, runs: Runs, output: Output | Action) -> Check | None:
    r"""The check of a copy in float64, whose rounding is small beside any answer; None where that shows nothing."""
    precise = None if runs.x.first.dtype == torch.float64 else in_double(runs.model)
    if precise is None:
        return None
    try:
        with evaluation(precise), NarrowTensors() as narrow:
            wide = Runs.over(caller, precise, runs.x.double(), runs.group)
    except (RuntimeError, TypeError, ValueError):
        return None
    # Weights may follow the group to float32 only, and what computes in float32 all the same rounds as that.
    allowed = rounding(runs.model, torch.float32) if narrow.seen else STRUCTURAL
    found = _judged(caller, wide, output, Allowed(allowed, None))
    return found.check if found.sharp or not found.check.passed else None


def _action(caller: str, group: Group, output: Output | Action, y: Tensor) -> Action:
    if isinstance(output, Action):
        return output
    if callable(output):
        return Action("given", output)
    if output == "auto":
        output = "regular" if y.ndim in (3, 5) and y.shape[2] == group.order else "image"
    if output not in NAMED:
        named = ", ".join(map(repr, ("auto", *NAMED)))
        refuse(caller, f"output in {{{named}}} or a function", repr(output), "Pick one of those.")
    return declared(group, output)


def _require_action(caller: str, action: Action, group: Group, y: Tensor) -> None:
    r"""ValueError, in the name of `caller`, where an output cannot move as it was declared."""
    try:
        action.move(group.order - 1, y)
    except ValueError as error:
        if action.name == "given":
            raise
        hint = "Say how it moves with output=, or assert that it stays."
        refuse(caller, f"an output that moves as {action.name}", f"{tuple(y.shape)} ({error})", hint)


def _diagnosis(
    caller: str, model: Model, x: Inputs, group: Group, action: Action, check: Check
) -> tuple[str, list[Break]]:
    r"""Whether float64 makes the error go away, and where the symmetry is lost."""
    x = x if len(x) <= FEW else x.samples([check.sample, (check.sample or len(x)) - 1])
    try:
        places, lost = locate_breaks(model, x, group), ""
    except Exception as error:  # whatever it is, what the check has found is to be told
        places, lost = [], f"; no place was found: {error}"
    if places and places[0].kind == "random":
        return "random: two identical calls differ", places
    wide = _outputs_in_double(caller, model, x, group, check.output)
    if isinstance(wide, str):
        return f"structural or numerical: {wide}{lost}", places
    relative = distance(action, wide[0], wide[1:])
    left = f"in float64 the error is {relative:.2g} of the largest output"
    if relative <= ROUNDED:
        return f"numerical: {left}{lost}", places
    if relative <= STRUCTURAL:
        return f"numerical: {left}, which weights that follow the group to float32 may leave{lost}", places
    if not places and not lost:
        others = candidates(group, wide[0].shape, [])
        how = next((a.name for a in others if distance(a, wide[0], wide[1:]) <= STRUCTURAL), "in some other way")
        hint = "pool over what moves" if action.fixed else f"it does not move as declared ({action.name})"
        return f"structural: every module is equivariant, and so is the output ({how}): {hint}", []
    return f"structural: {left} as well{lost}", places


def _outputs_in_double(caller: str, model: Model, x: Inputs, group: Group, name: str) -> list[Tensor] | str:
    r"""The outputs over the orbit in float64, or why there are none."""
    precise = in_double(model)
    if precise is None:
        return "it cannot be copied to float64"
    try:
        with evaluation(precise):
            copies = [x.double().acted(group, g).clone() for g in range(group.order)]
            runs = [call(caller, precise, gx, "float64") for gx in copies]
        return [outputs[name] for outputs in runs]
    except (RuntimeError, TypeError, ValueError) as error:
        return f"it does not run in float64 ({str(error.__cause__ or error).splitlines()[0]})"
