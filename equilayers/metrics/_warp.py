r"""Smooth displacement fields, how much they deform, and images deformed by them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import check_int, check_values, refuse

# Steps of the fixed-point iteration towards an inverse field: 0.95^400 of the first error is left, 1e-9.
STEPS = 400


def warp(x: Tensor, tau: Tensor) -> Tensor:
    r"""The deformed image `D_tau x(u) = x(u - tau(u))`: a constant field moves the content by tau, down and right.

    Bilinear between pixels; beyond the border the border's pixels go on.

    Args:
        x: images (..., H, W), floating-point.
        tau: displacements in pixels, `tau[..., 0, :, :]` down and `tau[..., 1, :, :]` to the right: (2, H, W) for all
            images, or (B, 2, H, W), one for each sample of x (B, ..., H, W).

    Returns:
        Images of the shape, dtype and device of x. Differentiable in x, and in tau between whole pixels.

    Raises:
        TypeError: x or tau is not floating-point.
        ValueError: tau is no field for x.

    Law: tau = 0 gives x, and whole pixels give the entries of x they point to, bitwise: there is no coordinate grid to
        round, as in torch.nn.functional.grid_sample.

    Source: Mallat 2012, section 1 (arXiv:1101.2286).
    """
    caller = "warp"
    check_values(caller, "x", x)
    check_field(caller, tau)
    height, width = tau.shape[-2:]
    if x.shape[-2:] != tau.shape[-2:] or tau.ndim > 4 or (tau.ndim == 4 and (x.ndim < 3 or len(x) != len(tau))):
        hint = "Pass one field (2, H, W), or one for each sample, (B, 2, H, W)."
        refuse(caller, f"tau that fits x of shape {tuple(x.shape)}", tuple(tau.shape), hint)
    fields = tau.reshape(-1, 2, height, width).to(x.device)
    channels = math.prod(x.shape[:-2] if tau.ndim == 3 else x.shape[1:-2])
    flat = x.reshape(len(fields), channels, height * width)
    whole = (-fields).floor()
    part = (-fields - whole).to(x.dtype).flatten(2)
    i, j = (_taps(whole[:, axis], axis) for axis in (0, 1))

    def at(down: int, right: int) -> Tensor:
        index = (i[down] * width + j[right]).flatten(1)
        return flat.gather(2, index[:, None].expand(-1, channels, -1))

    upper, lower = (_between(at(down, 0), at(down, 1), part[:, 1:]) for down in (0, 1))
    return _between(upper, lower, part[:, :1]).reshape(x.shape)


def _taps(whole: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    r"""The two pixels next to each place along an axis, (B, H, W) each, held inside the image."""
    length = whole.shape[axis + 1]
    pixel = torch.arange(length, device=whole.device)
    pixel = pixel[:, None] if axis == 0 else pixel
    first = pixel + whole.nan_to_num(0.0).clamp(-length, length).long()
    return first.clamp(0, length - 1), (first + 1).clamp(0, length - 1)


def _between(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    r"""`a + part (b - a)`; a itself where part is 0, whatever b is."""
    return torch.where(part == 0, a, a + part * (b - a))


def displacement_gradient_norm(tau: Tensor) -> Tensor:
    r"""How much a field deforms: `sup over u of ||grad tau(u)||`, the operator norm.

    The supremum is over the bilinear field between the pixels, hence its Lipschitz constant inside: in a cell the
    gradient is an affine function of the place, and its norm is largest in a corner, where it is a difference of
    neighbours down and one to the right.

    Args:
        tau: displacements (..., 2, H, W) in pixels, as `warp` takes them.

    Returns:
        Tensor (...) of the dtype and device of tau, without unit. Under 1 the deformation does not fold.

    Raises:
        TypeError: tau is not floating-point.
        ValueError: tau is not of shape (..., 2, H, W).

    Law: the operator norm of A for tau(u) = A u + b.

    Source: Mallat 2012, section 1 (arXiv:1101.2286).
    """
    check_field("displacement_gradient_norm", tau)
    if 1 in tau.shape[-2:]:  # nothing changes along an axis of one pixel
        tau = tau.repeat(*[1] * (tau.ndim - 2), *(2 if n == 1 else 1 for n in tau.shape[-2:]))
    down, right = tau.diff(dim=-2), tau.diff(dim=-1)
    corners = [
        _operator_norm(d[..., 0, :, :], r[..., 0, :, :], d[..., 1, :, :], r[..., 1, :, :]).amax((-2, -1))
        for d in (down[..., :-1], down[..., 1:])
        for r in (right[..., :-1, :], right[..., 1:, :])
    ]
    return torch.stack(corners).amax(0)


def _operator_norm(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    r"""The largest singular value of [[a, b], [c, d]], in closed form."""
    return (torch.hypot(a + d, b - c) + torch.hypot(a - d, b + c)) / 2


def random_displacement(
    count: int, size: tuple[int, int], magnitude: float, *, cutoff: int = 3, seed: int = 0
) -> Tensor:
    r"""Random smooth displacement fields that keep the border of the image where it is.

    `tau(i, j) = s · sum_{k,l} c_kl sin(pi k i / (H-1)) sin(pi l j / (W-1))`, k, l in 1..cutoff, for each of the two
    directions, c_kl normal of variance 1 / (k^2 + l^2), and s such that `sup ||grad tau||` is the magnitude. Because
    the border rests, a deformed image is the image of the same square, and nothing comes in from outside.

    Args:
        count: number of fields.
        size: (H, W), in pixels, each at least cutoff + 2.
        magnitude: `displacement_gradient_norm` of each field, in [0, 1): at 1 it begins to fold.
        cutoff: the highest frequency, in half waves per side; low is smooth.
        seed: sets the fields; field k depends on the seed, the size and the cutoff alone, not on count, and fields of
            two magnitudes differ by a factor.

    Returns:
        Tensor (count, 2, H, W), float64, on the CPU, in pixels.

    Raises:
        TypeError: a number of another kind.
        ValueError: a number out of range.

    Law: `displacement_gradient_norm` of it is the magnitude, up to rounding.

    Source: Petrini, Favero, Geiger, Wyart 2021 (arXiv:2105.02468), where k^2 + l^2 is cut off instead.
    """
    caller = "random_displacement"
    return check_magnitude(caller, "magnitude", magnitude) * unit_fields(caller, count, size, cutoff, seed)


def unit_fields(caller: str, count: int, size: tuple[int, int], cutoff: int, seed: int) -> Tensor:
    r"""Random fields whose gradient norm is 1, (count, 2, H, W), float64."""
    check_int(caller, "the number of fields", count, 1)
    check_int(caller, "seed", seed, 0)
    if len(size) != 2 or min(size) < 3:
        refuse(caller, "images of at least 3 x 3 pixels", tuple(size), "The border rests: smaller ones cannot move.")
    check_int(caller, "cutoff", cutoff, 1, min(size) - 2)
    k = np.arange(1, cutoff + 1)
    c = np.random.default_rng(seed).standard_normal((count, 2, cutoff, cutoff)) / np.hypot(k[:, None], k)
    waves = [np.sin(np.pi * k[:, None] * np.arange(n) / (n - 1)) for n in size]
    for wave in waves:
        wave[:, -1] = 0  # the sine of k pi as computed is not quite
    fields = torch.from_numpy(np.einsum("nakl,ki,lj->naij", c, *waves))
    return fields / displacement_gradient_norm(fields)[:, None, None, None]


def inverse(tau: Tensor) -> Tensor:
    r"""The fields that undo fields (B, 2, H, W): warping there and back gives the image but for the interpolation.

    The deformed image is read at `v = u - sigma(u)` with `v - tau(v) = u`, so `sigma(u) = -tau(u - sigma(u))`, a
    contraction by the gradient norm, which has to be under 1.
    """
    sigma = torch.zeros_like(tau)
    for _ in range(STEPS):
        before, sigma = sigma, -warp(tau, sigma)
        if (sigma - before).abs().max() < 1e-9:
            break
    return sigma


def check_field(caller: str, tau: Tensor) -> None:
    r"""Raise unless tau is a field (..., 2, H, W) of some pixels."""
    check_values(caller, "tau", tau)
    if tau.ndim < 3 or tau.shape[-3] != 2 or 0 in tau.shape[-2:]:
        refuse(
            caller, "tau of shape (..., 2, H, W)", tuple(tau.shape), "Stack the displacements down and to the right."
        )


def check_magnitude(caller: str, name: str, value: object) -> float:
    r"""`value` as a float in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(caller, f"{name} to be a number", repr(value), "Pass, for example, 0.1.", TypeError)
    if not 0 <= value < 1:
        refuse(caller, f"{name} in [0, 1)", value, "At 1 a deformation begins to fold the image.")
    return float(value)
