r"""Images turned by any angle: what lies between the pixels is interpolated."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import check_choice, check_float

INTERPOLATIONS = ("bilinear", "bicubic")


def rotate(x: Tensor, degrees: float, interpolation: str = "bilinear") -> Tensor:
    r"""Images turned counter-clockwise around their centre; zeros come in from outside.

    `y(p) = x(R^-1 p)`, p from the centre, R the turn. Whole quarter turns are torch.rot90, the rest is interpolated, so
    that a quarter turn before or after it is exact.

    Args:
        x: images (..., H, W), floating-point; H == W unless the angle is a multiple of 180.
        degrees: angle of the turn.
        interpolation: "bilinear" (order 1) or "bicubic" (order 3, Keys 1981 with a = -0.75).

    Returns:
        Images of the shape, dtype and device of x; x itself for multiples of 360. Differentiable.
    """
    check_float("rotate", "x", x)
    check_choice("rotate", "interpolation", interpolation, INTERPOLATIONS)
    quarters, rest = divmod(degrees, 90.0)
    if rest:
        x = _interpolated(x, math.radians(rest), interpolation)
    return torch.rot90(x, int(quarters), (-2, -1)) if quarters % 4 else x


def _interpolated(x: Tensor, angle: float, interpolation: str) -> Tensor:
    height, width = x.shape[-2:]
    precise = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    # Places from the centre, in pixels: right and down, so that counter-clockwise is the other way around.
    down, right = (
        torch.arange(length, dtype=precise.dtype, device=x.device) - (length - 1) / 2 for length in (height, width)
    )
    cos, sin = math.cos(angle), math.sin(angle)
    across = cos * right - sin * down[:, None]
    along = sin * right + cos * down[:, None]
    grid = torch.stack((across * (2 / width), along * (2 / height)), -1)[None]
    y = F.grid_sample(precise.reshape(1, -1, height, width), grid, interpolation, "zeros", align_corners=False)
    return y.view(x.shape).to(x.dtype)
