r"""Rotation of images by any angle, with interpolation between the pixels."""

from __future__ import annotations

import itertools
import math
from numbers import Real

import torch
from torch import Tensor

from equilayers._checks import check_choice, check_float, refuse, widened

INTERPOLATIONS = ("bilinear", "bicubic")


def rotate(x: Tensor, degrees: float, interpolation: str = "bilinear") -> Tensor:
    r"""Rotate images counter-clockwise around their centre; zeros come in from outside.

    `y(p) = x(R^-1 p)`, p from the centre, R the rotation. Whole quarter turns are torch.rot90, the rest is
    interpolated, so that a quarter turn before or after it is exact.

    Args:
        x: images (..., H, W), floating-point; H == W unless the angle is a multiple of 90.
        degrees: angle of the rotation.
        interpolation: "bilinear" (order 1) or "bicubic" (order 3, Keys 1981 with a = -1/2).

    Returns:
        Images of the dtype and device of x, and of its shape, but that odd quarter turns carry (H, W) to (W, H); x
        itself for multiples of 360. Differentiable.

    Raises:
        TypeError: x is not floating-point.
        ValueError: images that are not square, an angle that is no finite number, an unknown interpolation.
    """
    check_float("rotate", "x", x)
    check_choice("rotate", "interpolation", interpolation, INTERPOLATIONS)
    if not isinstance(degrees, Real) or not math.isfinite(degrees):
        refuse("rotate", "degrees to be a finite number", degrees, "Rotate by one angle at a time.")
    if x.ndim < 2 or (x.shape[-1] != x.shape[-2] and degrees % 90):
        refuse("rotate", "x of shape (..., H, H)", tuple(x.shape), "Crop or pad the images to squares.")
    quarters, rest = divmod(degrees, 90.0)
    if rest:
        x = _interpolated(x, math.radians(rest), interpolation)
    return torch.rot90(x, int(quarters), (-2, -1)) if quarters % 4 else x


def _interpolated(x: Tensor, angle: float, interpolation: str) -> Tensor:
    r"""`y(p) = sum_{i,j} w_i w_j x(q_i, q_j)`, the q next to R^-1 p; what lies outside counts as zero."""
    height, width = x.shape[-2:]
    precise = widened(x)
    # Places from the centre, right and down, in float64: only whole numbers and weights are left of them.
    down, right = (torch.arange(n, dtype=torch.float64, device="cpu") - (n - 1) / 2 for n in (height, width))
    cos, sin = math.cos(angle), math.sin(angle)
    rows = _taps(sin * right + cos * down[:, None] + (height - 1) / 2, height, interpolation)
    columns = _taps(cos * right - sin * down[:, None] + (width - 1) / 2, width, interpolation)
    flat, y = precise.flatten(-2), torch.zeros_like(precise)
    for (i, v), (j, w) in itertools.product(rows, columns):
        taken = flat.index_select(-1, (i * width + j).flatten().to(x.device)).view(x.shape)
        y = y + (v * w).to(precise) * taken
    return y.to(x.dtype)


def _taps(places: Tensor, length: int, interpolation: str) -> list[tuple[Tensor, Tensor]]:
    r"""The pixels next to places along an axis, and their weights."""
    first = places.floor()
    t = places - first
    if interpolation == "bilinear":
        weights = {0: 1 - t, 1: t}
    else:  # Keys 1981, a = -1/2, the one choice of third order
        weights = {
            -1: t * (t * (1 - t / 2) - 1 / 2),
            0: 1 + t**2 * (1.5 * t - 2.5),
            1: t * (1 / 2 + t * (2 - 1.5 * t)),
            2: t**2 * (t - 1) / 2,
        }
    found = []
    for offset, weight in weights.items():
        pixel = first.long() + offset
        inside = (pixel >= 0) & (pixel < length)
        found.append((pixel.clamp(0, length - 1), weight * inside))
    return found
