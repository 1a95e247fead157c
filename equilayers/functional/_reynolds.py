r"""The Reynolds operator: any function averaged over the orbit of its input."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from equilayers._checks import check_choice, check_float, check_model, check_tensor, refuse
from equilayers._modules import mapped, tensors
from equilayers.functional._hashing import mixed, odd_integers
from equilayers.groups import Group, as_group
from equilayers.groups.vectors import NAMES, check_reading, readings, turn

Move = Callable[[int, Tensor], Tensor]
REDUCTIONS = ("mean", "probabilities", "max")
OUTPUTS = ("auto", "invariant", "image", *NAMES)


def reynolds(f: Callable[[Tensor], Any], group: Group, x: Tensor, reduction: str = "mean", output: str = "auto") -> Any:
    r"""The mean over the group of what f makes of moved inputs: invariant or equivariant, whatever f is.

    `(R f)(x) = 1/|G| sum_g f(gx)`, and of images `1/|G| sum_g g^-1 f(gx)`, in one call of f on all gx of all samples.

    Args:
        f: any callable from (N, ...) to (N, ...), or to tuples, lists, dictionaries or dataclasses of such tensors.
        group: the symmetry.
        x: inputs (B, ...), floating-point, that the group acts on.
        reduction: "mean" of the outputs; "probabilities", the logarithm of the mean of their softmax over axis 1; or
            "max", the largest of each output.
        output: "image" where outputs move with the input: each is moved back before the mean, but for those with fewer
            axes, which stay; "vector", "vector:right-down" or "vector:down-right" where they turn as vectors of the
            plane, (..., 2), (N, C, 2, M), or fields (N, 2, H, W), (N, C, 2, H, W), but for those of other shapes, which
            stay; "invariant" where they do not; "auto" for rows (N,) and (N, K), which do not.

    Returns:
        (B, ...) as f returns it, of its dtype and device. Differentiable.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: an unknown reduction or output, vectors with another reduction than "mean", an x the group does not
            act on, an f that does not return a row per sample, or an output of "auto" that may move with the input.

    Law: `reynolds(f, group, act(g, x)) == reynolds(f, group, x)`, and of images `== act(g, reynolds(f, group, x))`,
        likewise of vectors:
        bitwise for "mean" and "max" of every f that repeats itself, for the samples of an orbit are put into an order
        that depends on their content alone, and so f is called on the same batch; rounding under torch.compile, and for
        images that some g leaves as they are. Two samples that differ share a 64-bit hash with a probability of 2^-64;
        only then it is rounding.

    Source: the Reynolds operator of invariant theory; Elesedy and Zaidi 2021, section 2 (arXiv:2102.10333).
    """
    caller = "reynolds"
    group = as_group(caller, group)
    check_average(caller, reduction, output)
    check_float(caller, "x", x)
    if x.ndim < 1 + group.space_ndim:
        refuse(
            caller, f"x of shape (B, ...), with {group.space_ndim} axes of space", tuple(x.shape), "Add a batch axis."
        )
    group.check_stackable(tuple(x.shape), caller)
    check_model(caller, f)
    orbit, order = _in_order(group.orbit(x))
    found, rows = f(orbit.flatten(0, 1)), orbit.shape[0] * orbit.shape[1]
    if next(tensors(found), None) is None:
        _refuse_rows(rows, type(found).__name__)

    def reduced(y: Tensor) -> Tensor:
        check_tensor(caller, "what f returns", y)
        if y.ndim < 1 or y.shape[0] != rows:
            _refuse_rows(rows, tuple(y.shape))
        if y.ndim < 2 and reduction == "probabilities":
            hint = "Add their axis."
            refuse(caller, "f to return rows of logits with reduction='probabilities'", tuple(y.shape), hint)
        y = y if y.is_floating_point() or y.is_complex() else y.to(torch.get_default_dtype())
        y = (y.log_softmax(1) if reduction == "probabilities" else y).unflatten(0, orbit.shape[:2])
        move = _move(group, x, y[0], output)
        return _reduced(y if move is None else _turned_back(group, y, order, move), reduction, move is not None)

    return mapped(reduced, found)


def check_average(caller: str, reduction: str, output: str) -> tuple[str, str]:
    r"""Both settings; ValueError where one of them is unknown."""
    check_choice(caller, "reduction", reduction, REDUCTIONS)
    if check_choice(caller, "output", output, OUTPUTS) in NAMES and reduction != "mean":
        hint = "Components of vectors change signs, and have no largest."
        refuse(caller, f"reduction='mean' with output={output!r}", repr(reduction), hint)
    return reduction, output


def _refuse_rows(samples: int, got: object) -> NoReturn:
    refuse("reynolds", f"f to return a row for each of {samples} samples", got, "Keep the batch axis.")


def _move(group: Group, x: Tensor, y: Tensor, output: str) -> Move | None:
    r"""How an output (B, ...) moves with the inputs, None if not; ValueError where that is not said nor known."""
    if output == "auto" and (y.ndim > 2 or y.shape == x.shape):
        hint = "Say whether it moves with the input: what moves is turned back before the mean."
        refuse("reynolds", "output='image' or 'invariant' for an output with axes of space", tuple(y.shape), hint)
    if output in NAMES:
        return _move_of_vectors(group, y, NAMES[output])
    image = output == "image" and y.ndim > group.space_ndim and (group.space_ndim > 1 or y.ndim >= x.ndim)
    if image:
        group.check_stackable(tuple(y.shape), "reynolds")
    return group.act if image else None


def _move_of_vectors(group: Group, y: Tensor, axes: str) -> Move | None:
    r"""How outputs move that are vectors by their shape; None for others."""
    if not readings(y.shape):
        return None
    dim, field = check_reading("reynolds", y.shape)
    if field:
        group.check_stackable(tuple(y.shape), "reynolds")
    return lambda g, v: turn(group.act(g, v) if field else v, group.vector_matrix(g, axes=axes), dim)


def _turned_back(group: Group, y: Tensor, order: Tensor, move: Move) -> Tensor:
    r"""Outputs (|G|, B, ...) for inputs that element `order[j, b]` moved, each moved back by its inverse."""
    samples = torch.arange(y.shape[1], device=y.device)
    by_element = y[order.argsort(0), samples]
    back = torch.stack([move(group.inverse(g), by_element[g]) for g in range(group.order)])
    return back[order, samples]


def _reduced(y: Tensor, reduction: str, moves: bool) -> Tensor:
    r"""Outputs (|G|, B, ...) to one (B, ...)."""
    if reduction == "probabilities":
        return y.logsumexp(0) - math.log(y.shape[0])
    if reduction == "max":
        return y.amax(0)
    # A sum one by one is the same wherever in the map an entry stands.
    return functools.reduce(torch.add, y.unbind(0)) / y.shape[0] if moves else y.mean(0)


def _in_order(orbit: Tensor) -> tuple[Tensor, Tensor]:
    r"""The samples of an orbit (|G|, B, ...) ordered by hashes of their content, and the element that moved each.

    Moved inputs have the same orbits in another order, and so the same ordered one: what is computed from it is the
    same to the last bit.
    """
    samples = torch.arange(orbit.shape[1], device=orbit.device)
    if torch.compiler.is_compiling():
        return orbit, torch.arange(len(orbit), device=orbit.device)[:, None].expand(-1, orbit.shape[1])
    with torch.no_grad():
        flat = (orbit + 0.0).flatten(2)  # minus zero equals zero
        bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]).to(torch.int64)
        keys = mixed(mixed(bits) * odd_integers(bits.shape[2], torch.int64, bits.device)).sum(2)
        order = keys.argsort(0)
    return orbit[order, samples], order
