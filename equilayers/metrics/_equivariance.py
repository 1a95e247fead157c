r"""How far a model is from moving its output along with its input, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from equilayers._checks import check_choice, refuse
from equilayers._modules import Model, evaluation
from equilayers.groups import Group
from equilayers.metrics._orbit import REDUCTIONS, Compare, Total, chunks, compared_elements, output_of

Action = Callable[[int, Tensor], Tensor]


def equivariance_error(
    model: Model,
    x: Tensor,
    group: Group | str,
    *,
    action_in: Action | None = None,
    action_out: Action | None = None,
    relative: bool = True,
    reduction: str = "mean",
    batch_size: int | None = None,
    include_identity: bool = False,
) -> Tensor:
    r"""How far the output is from moving along with the input, for each element of the group.

    `error[g] = ||f(g x) - g f(x)|| / ||f(x)||`, the mean or the maximum over samples.

    Args:
        model: any callable from (B, ...) to outputs (B, ...); a module is run in eval mode and put back afterwards.
        x: inputs (B, ...), floating-point.
        group: the symmetry.
        action_in: `action_in(g, x)`, how it moves the input: `group.act` when None, `group.act_regular` for a model
            from regular features.
        action_out: `action_out(g, f)`, how it moves the output. When None, `group.act` for dense outputs
            (B, K, H, W), `group.act_regular` for regular features (B, C, |G|) and (B, C, |G|, H, W).
        relative: divide by the size of the output, so that a small output cannot pass for an equivariant one.
        reduction: "mean" or "max" over samples.
        batch_size: samples per call of the model, a bound on memory; all at once when None. Each element of the group
            is a call of its own, on a batch of one shape, so that an exact model is reported as exact.
        include_identity: begin with g = e, whose error is 0.

    Returns:
        Tensor (|G| - 1,) for g = 1, 2, ..., or (|G|,) with the identity, of the dtype of the outputs, on the device of
        x. 0 exactly for a bitwise equivariant model. Relative errors where f(x) = 0: 0 if f(g x) is 0 too, else
        infinite. NaN when an output is NaN or there is no sample.

    Raises:
        TypeError: x is not floating-point, group is no group, or an action is not callable.
        ValueError: the group does not act on x or is trivial, an unknown reduction, or outputs of another form.

    Source: the two sides of the law of equivariance, Cohen and Welling 2016, Eq. 1 (arXiv:1602.07576).
    """
    caller = "equivariance_error"
    check_choice(caller, "reduction", reduction, REDUCTIONS)
    return equivariance_total(
        caller, model, x, group, action_in, action_out, relative, reduction, batch_size, include_identity
    ).value()


def equivariance_total(
    caller: str,
    model: Model,
    x: Tensor,
    group: Group | str,
    action_in: Action | None,
    action_out: Action | None,
    relative: bool,
    reduction: str,
    batch_size: int | None,
    include_identity: bool,
) -> Total:
    r"""The sum or maximum behind `equivariance_error`, one for each element."""
    group, elements = compared_elements(caller, group, include_identity)
    check_actions(caller, action_in, action_out)
    parts, move = chunks(caller, x, batch_size), action_in or group.act
    found: list[Tensor] = []
    with evaluation(model), torch.no_grad():
        for part in parts:
            f = output_of(caller, model, part)
            act, size = action_out or _usual_action(caller, group, f), rows(f)

            def gap(moved: Tensor, expected: Tensor, size: Tensor = size) -> Tensor:
                difference = rows(moved) - rows(expected)
                # Against the size of f(x), which an action given by the user need not keep.
                return relative_norm(difference, size) if relative else difference.norm(dim=1)

            moved = (output_of(caller, model, move(g, part)) for g in elements)
            found.append(torch.stack(list(equivariance_gaps(caller, act, f, zip(elements, moved, strict=True), gap))))
    return Total.over(torch.cat(found, 1), f.dtype.to_real(), reduction)


def entry_gaps(found: Tensor, expected: Tensor) -> Tensor:
    r"""Absolute differences: 0 where the two are equal, infinite or not, and infinity where one is NaN."""
    off = (found - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return off.masked_fill_(found == expected, 0.0)


def equivariance_gaps(
    caller: str, act: Action, y: Tensor, moved: Iterable[tuple[int, Tensor]], gap: Compare = entry_gaps
) -> Iterator[Tensor]:
    r"""The equivariance error: `gap(f(g x), act(g, f(x)))`, one tensor for each element.

    Every error of equivariance and invariance that this library measures between tensors comes from here.

    Args:
        caller: for the message of an error.
        act: how elements move the output; `lambda g, y: y` for invariance.
        y: f(x).
        moved: pairs of g and f(g x).
        gap: compares two tensors of one shape.

    Raises:
        ValueError: f(g x) is of another shape than g f(x).
    """
    for g, after in moved:
        expected = act(g, y)
        if expected.shape != after.shape:
            got = f"{tuple(after.shape)} for g = {g} in the place of {tuple(expected.shape)}"
            refuse(caller, "outputs of one shape, however the input is moved", got, "Say how the output moves.")
        yield gap(after, expected)


def check_actions(caller: str, action_in: Action | None, action_out: Action | None) -> None:
    r"""TypeError unless each action is None or can be called."""
    for name, action in (("action_in", action_in), ("action_out", action_out)):
        if action is not None and not callable(action):
            hint = "Pass a function of an element and a tensor."
            refuse(caller, f"{name} to be callable or None", repr(action), hint, TypeError)


def _usual_action(caller: str, group: Group, f: Tensor) -> Action:
    if f.ndim == 4:
        return group.act
    if f.ndim not in (3, 5) or f.shape[2] != group.order:
        wanted = f"model outputs (B, K, H, W), or regular features with axis 2 of length {group.order}"
        refuse(caller, wanted, tuple(f.shape), "Pass action_out to say how these move.")
    return group.act_regular


def rows(f: Tensor) -> Tensor:
    r"""Outputs (B, ...), or (B,), as float64 rows (B, N); of complex numbers both parts."""
    f = torch.view_as_real(f.resolve_conj()) if f.is_complex() else f
    return f.double().unsqueeze(-1).flatten(1)


def relative_norm(difference: Tensor, size: Tensor) -> Tensor:
    r"""`||difference|| / ||size||` of rows, (B,); 0 where both are zero."""
    above, below = difference.norm(dim=1), size.norm(dim=1)
    return above / torch.where((above == 0) & (below == 0), 1.0, below)
