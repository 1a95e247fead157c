r"""The Reynolds operator: any function averaged over the orbit of its input."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from equilayers._checks import check_choice, check_float, check_model, check_tensor, refuse
from equilayers.functional._hashing import mixed, odd_integers
from equilayers.groups import Group, as_group

REDUCTIONS = ("mean", "probabilities", "max")


def reynolds(f: Callable[[Tensor], Tensor], group: Group, x: Tensor, reduction: str = "mean") -> Tensor:
    r"""The mean of `f(gx)` over the group: invariant, whatever f is.

    `(R f)(x) = 1/|G| sum_g f(gx)`, in one call of f on all gx of all samples.

    Args:
        f: any callable from (N, ...) to (N, ...).
        group: the symmetry.
        x: inputs (B, ...), floating-point, that the group acts on.
        reduction: "mean" of the outputs; "probabilities", the logarithm of the mean of their softmax over axis 1; or
            "max", the largest of each output.

    Returns:
        (B, ...) as f returns it, of its dtype and device. Differentiable.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: an unknown reduction, an x the group does not act on, or an f that does not return a row per sample.

    Law: `reynolds(f, group, act(g, x)) == reynolds(f, group, x)`: bitwise for "mean" and "max" of every f that repeats
        itself, for the samples of an orbit are put into an order that depends on their content alone, and so f is
        called on the same batch; rounding under torch.compile. Two samples that differ share a 64-bit hash with a
        probability of 2^-64; only then it is rounding.

    Source: the Reynolds operator of invariant theory; Elesedy and Zaidi 2021, section 2 (arXiv:2102.10333).
    """
    caller = "reynolds"
    group = as_group(caller, group)
    check_choice(caller, "reduction", reduction, REDUCTIONS)
    check_float(caller, "x", x)
    if x.ndim < 1 + group.space_ndim:
        refuse(
            caller, f"x of shape (B, ...), with {group.space_ndim} axes of space", tuple(x.shape), "Add a batch axis."
        )
    group.check_stackable(tuple(x.shape), caller)
    orbit = _in_order(group.orbit(x))
    check_model(caller, f)
    y = f(orbit.flatten(0, 1))
    if not isinstance(y, Tensor) or y.ndim < 1 or y.shape[0] != group.order * x.shape[0]:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        refuse(caller, f"f to return a row for each of {group.order * x.shape[0]} samples", got, "Keep the batch axis.")
    check_tensor(caller, "what f returns", y)
    y = y if y.is_floating_point() or y.is_complex() else y.to(torch.get_default_dtype())
    if y.ndim < 2 and reduction == "probabilities":
        refuse(caller, "f to return rows of logits with reduction='probabilities'", tuple(y.shape), "Add their axis.")
    if reduction == "probabilities":
        return y.log_softmax(1).unflatten(0, orbit.shape[:2]).logsumexp(0) - math.log(group.order)
    outputs = y.unflatten(0, orbit.shape[:2])
    return outputs.mean(0) if reduction == "mean" else outputs.amax(0)


def _in_order(orbit: Tensor) -> Tensor:
    r"""The samples of an orbit (|G|, B, ...) ordered by hashes of their content, each sample by itself.

    Moved inputs have the same orbits in another order, and so the same ordered one: what is computed from it is the
    same to the last bit.
    """
    if torch.compiler.is_compiling():
        return orbit
    with torch.no_grad():
        flat = (orbit + 0.0).flatten(2)  # minus zero equals zero
        bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]).to(torch.int64)
        keys = mixed(mixed(bits) * odd_integers(bits.shape[2], torch.int64, bits.device)).sum(2)
        order = keys.argsort(0)
    return orbit[order, torch.arange(orbit.shape[1], device=orbit.device)]
