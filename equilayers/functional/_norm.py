r"""Normalisation of regular features over channels and fiber, position by position."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import check_float, check_tensor, refuse


def group_layer_norm(f: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    r"""Layer normalisation of a regular feature: mean and variance over C and the fiber at each position.

    `y[b, c, h, s] = weight_c (f[b, c, h, s] - mean) / sqrt(variance + eps) + bias_c`

    Args:
        f: regular feature (B, C, |G|, *S), floating-point.
        weight: (C,) or None, shared over the fiber.
        bias: (C,) or None.
        eps: added to the variance.

    Returns:
        Feature of the shape, dtype and device of f.

    Raises:
        TypeError: f is not floating-point.
        ValueError: f has no fiber, or a parameter is not (C,).

    Law: `group_layer_norm(act_regular(g, f)) == act_regular(g, group_layer_norm(f))` for all g, to rounding: the fiber
        permutes what is summed.

    Source: Ba, Kiros and Hinton 2016 (arXiv:1607.06450).
    """
    x, n = _rows("group_layer_norm", f, weight, bias)
    weight, bias = (None if p is None else p.repeat(n) for p in (weight, bias))
    return _feature(F.layer_norm(x, x.shape[-1:], weight, bias, eps), n)


def group_rms_norm(f: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    r"""Root mean square normalisation of a regular feature, over C and the fiber at each position.

    `y[b, c, h, s] = weight_c f[b, c, h, s] / sqrt(mean square + eps)`

    Args:
        f: regular feature (B, C, |G|, *S), floating-point.
        weight: (C,) or None, shared over the fiber.
        eps: added to the mean square; the machine epsilon if None, as in torch.nn.RMSNorm.

    Returns:
        Feature of the shape, dtype and device of f.

    Raises:
        TypeError, ValueError: as `group_layer_norm`.

    Law: as `group_layer_norm`.

    Source: Zhang and Sennrich 2019 (arXiv:1910.07467).
    """
    x, n = _rows("group_rms_norm", f, weight, None)
    return _feature(F.rms_norm(x, x.shape[-1:], None if weight is None else weight.repeat(n), eps), n)


def _rows(caller: str, f: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, int]:
    r"""The feature as (B, *S, |G|·C), a view where C is innermost in memory and the fiber next, and |G|."""
    check_float(caller, "f", check_tensor(caller, "f", f))
    if f.ndim < 3:
        refuse(caller, "f of shape (B, C, |G|, *positions)", tuple(f.shape), "Lift the input first.")
    for name, parameter in ("weight", weight), ("bias", bias):
        if parameter is not None and parameter.shape != (f.shape[1],):
            hint = "One entry per channel, shared over the fiber."
            refuse(caller, f"{name} of shape ({f.shape[1]},)", tuple(parameter.shape), hint)
    return f.movedim(1, -1).movedim(1, -2).flatten(-2), f.shape[2]


def _feature(x: Tensor, n: int) -> Tensor:
    return x.unflatten(-1, (n, -1)).movedim(-2, 1).movedim(-1, 1)
