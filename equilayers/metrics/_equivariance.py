r"""How far a model is from moving its output along with its input, element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equilayers._checks import check_choice, refuse
from equilayers._modules import evaluation
from equilayers.groups import Group
from equilayers.metrics._orbit import Model, chunks, compared_elements
from equilayers.metrics._shift import REDUCTIONS, reduced

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
    check_choice("equivariance_error", "reduction", reduction, REDUCTIONS)
    errors, dtype = element_errors(
        "equivariance_error", model, x, group, action_in, action_out, relative, batch_size, include_identity
    )
    return reduced(errors, reduction).to(dtype)


def element_errors(
    caller: str,
    model: Model,
    x: Tensor,
    group: Group | str,
    action_in: Action | None,
    action_out: Action | None,
    relative: bool,
    batch_size: int | None,
    include_identity: bool,
) -> tuple[Tensor, torch.dtype]:
    r"""The error of each element and sample, (elements, B) in float64, and the dtype of the outputs."""
    group, elements = compared_elements(caller, group, include_identity)
    check_actions(caller, action_in, action_out)
    parts = chunks(caller, x, batch_size)
    move = group.act if action_in is None else action_in
    found: list[Tensor] = []
    with evaluation(model), torch.no_grad():
        for part in parts:
            f = _output(caller, model(part), part)
            act = action_out or _usual_action(caller, group, f)
            gaps = [_gap(caller, _output(caller, model(move(g, part)), part), act(g, f), f, relative) for g in elements]
            found.append(torch.stack(gaps))
    return torch.cat(found, 1), f.dtype


def check_actions(caller: str, action_in: Action | None, action_out: Action | None) -> None:
    r"""TypeError unless each action is None or can be called."""
    for name, action in (("action_in", action_in), ("action_out", action_out)):
        if action is not None and not callable(action):
            hint = "Pass a function of an element and a tensor."
            refuse(caller, f"{name} to be callable or None", repr(action), hint, TypeError)


def _output(caller: str, out: object, x: Tensor) -> Tensor:
    if not isinstance(out, Tensor) or out.ndim < 1 or len(out) != len(x):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        refuse(caller, f"model outputs of shape ({len(x)}, ...)", got, "Return one output per sample.")
    return out


def _usual_action(caller: str, group: Group, f: Tensor) -> Action:
    r"""How the group moves outputs of this number of axes."""
    if f.ndim == 4:
        return group.act
    if f.ndim not in (3, 5) or f.shape[2] != group.order:
        wanted = f"model outputs (B, K, H, W), or regular features with axis 2 of length {group.order}"
        refuse(caller, wanted, tuple(f.shape), "Pass action_out to say how these move.")
    return group.act_regular


def _gap(caller: str, moved: Tensor, expected: Tensor, f: Tensor, relative: bool) -> Tensor:
    r"""`||moved - expected|| / ||f||` per sample, (B,) in float64; 0 where both are zero."""
    if moved.shape != expected.shape:
        hint = "Pass an action_out that fits the model."
        refuse(caller, f"f(g x) of the shape of g f(x), {tuple(expected.shape)}", tuple(moved.shape), hint)
    difference = rows(moved) - rows(expected)
    # Against the size of f(x), which an action given by the user need not keep.
    return relative_norm(difference, rows(f)) if relative else difference.norm(dim=1)


def rows(f: Tensor) -> Tensor:
    r"""Outputs (B, ...), or (B,), as float64 rows (B, N)."""
    return f.double().unsqueeze(-1).flatten(1)


def relative_norm(difference: Tensor, size: Tensor) -> Tensor:
    r"""`||difference|| / ||size||` of rows, (B,); 0 where both are zero."""
    above, below = difference.norm(dim=1), size.norm(dim=1)
    return above / torch.where((above == 0) & (below == 0), 1.0, below)
