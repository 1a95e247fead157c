r"""Resizing of maps whose sampling places are symmetric at every size that is accepted.

Output i of `out` pixels reads an axis of `length` pixels around `(i + 1/2)·length / out - 1/2`, or around
`i·(length - 1) / (out - 1)` with `align_corners`: both follow from the two sizes, so a mirror takes them to each other.
Places that follow from a factor, `i / scale`, would not, where the factor is no quotient of the sizes; and the nearest
pixel is symmetric where each is repeated equally often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import Pair, check_choice, check_float, check_positive, overridable, pair_of, refuse, widened
from equilayers._tables import table
from equilayers.functional._index_tables import to_indices, to_tensor

MODES = ("nearest", "bilinear", "bicubic")
ALGORITHMS = ("auto", "bitwise")
SLOPE = -0.75  # of the bicubic filter, as torch has it
Factor = float | Sequence[float]
Sizes = int | Sequence[int]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class UpsampleSpec:
    r"""The settings of a resizing, checked once: a size, or factors, or neither, and then each call says its size."""

    size: Pair | None
    scale: tuple[float, float] | None
    mode: str
    corners: bool
    algorithm: str = "auto"

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds: pixels that are repeated are not computed with."""
        return "bitwise" if self.mode == "nearest" or self.algorithm == "bitwise" else "rounding"

    @property
    def extra_repr(self) -> str:
        r"""The settings as they are given."""
        given = f"scale_factor={self.scale}, " if self.scale else f"size={self.size}, " if self.size else ""
        corners = ", align_corners=True" if self.corners else ""
        return f"{given}mode={self.mode!r}{corners}, algorithm={self.algorithm!r}"

    def with_algorithm(self, caller: str, algorithm: str) -> UpsampleSpec:
        r"""The same with another algorithm, which is checked."""
        return replace(self, algorithm=check_choice(caller, "algorithm", algorithm, ALGORITHMS))

    def at(self, caller: str, size: Sizes | None) -> UpsampleSpec:
        r"""The settings of a call that may say its size."""
        if size is None:
            return self
        if self.size is not None or self.scale is not None:
            given = "size" if self.scale is None else "scale_factor"
            refuse(caller, f"no size in a call of a layer with a {given}", size, f"Make the layer without {given}.")
        return replace(self, size=pair_of(caller, "size", size, 1))

    def out_size(self, caller: str, size: Pair) -> Pair:
        r"""Height and width of the output for an input of this size, which is checked to be symmetric."""
        if self.size is None and self.scale is None:
            refuse(caller, "a size", None, "Pass size= in the call, or size or scale_factor to the layer.")
        if self.scale is not None:
            out = _times(size[0], self.scale[0]), _times(size[1], self.scale[1])
        else:
            out = self.size or size
        for name, length, new in zip("HW", size, out, strict=True):
            if new < 1:
                refuse(caller, "a scale_factor that leaves a pixel", f"none of {name}={length}", "Take a larger one.")
            if self.mode == "nearest" and self.scale is None and new % length:
                fits = f"a size of {max(1, round(new / length)) * length} there"
                hint = f"It would repeat pixels more often on one side. What works: mode='bilinear' or {fits}."
                refuse(caller, f"a multiple of {name}={length} with mode='nearest'", new, hint)
            if self.corners and new == 1 < length:
                hint = "It would take the first one. What works: align_corners=False or a size of 2."
                refuse(caller, f"two pixels or more for {name}={length} with align_corners=True", new, hint)
        return out


def upsample_spec(
    caller: str, size: Sizes | None, scale_factor: Factor | None, mode: str, align_corners: bool | None, algorithm: str
) -> UpsampleSpec:
    r"""The checked settings of a resizing; TypeError or ValueError where they make no sense."""
    check_choice(caller, "mode", mode, MODES)
    if size is not None and scale_factor is not None:
        refuse(caller, "size or scale_factor", "both", "Leave one of them out.")
    if align_corners is not None and mode == "nearest":
        refuse(caller, "no align_corners with mode='nearest'", align_corners, "Take mode='bilinear' or 'bicubic'.")
    scale = None if scale_factor is None else _factors(caller, scale_factor)
    if scale is not None and mode == "nearest" and not all(s.is_integer() for s in scale):
        hint = "It would repeat pixels more often on one side. What works: mode='bilinear' or "
        hint += f"scale_factor={max(1, round(max(scale)))}."
        refuse(caller, "a whole scale_factor with mode='nearest'", scale_factor, hint)
    sizes = None if size is None else pair_of(caller, "size", size, 1)
    check_choice(caller, "algorithm", algorithm, ALGORITHMS)
    return UpsampleSpec(sizes, scale, mode, bool(align_corners), algorithm)


def _times(length: int, factor: float) -> int:
    r"""Whole factors in whole numbers: a length may be a symbol."""
    return length * int(factor) if factor.is_integer() else math.floor(length * factor)


def _factors(caller: str, given: Factor) -> tuple[float, float]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != 2:
            refuse(caller, "scale_factor to be a number or a pair (height, width)", given, "Pass one or two numbers.")
        return check_positive(caller, "scale_factor", given[0]), check_positive(caller, "scale_factor", given[1])
    factor = check_positive(caller, "scale_factor", given)
    return factor, factor


def upsample2d(
    x: Tensor,
    size: Sizes | None = None,
    scale_factor: Factor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    *,
    algorithm: str = "auto",
) -> Tensor:
    r"""Resize maps, at places that are symmetric at every size.

    Args:
        x: maps (..., H, W), floating-point: images (B, C, H, W) or regular features (B, C, |G|, H, W).
        size: H' and W', an int or a pair.
        scale_factor: or how many times as large, a number or a pair; `floor(H·scale)` pixels, whose places follow from
            both sizes as with torch's `recompute_scale_factor=True`.
        mode: "nearest", "bilinear" or "bicubic".
        align_corners: whether the middles of the corner pixels stay, as in torch.
        algorithm: "auto", or "bitwise" for sums in an order that the group leaves alone.

    Returns:
        (..., H', W'), of the dtype and device of x; the numbers of torch.nn.functional.interpolate.

    Raises:
        TypeError: x is not floating-point, or a number is none.
        ValueError: x without a map, an unknown mode, no size or two; sizes that could not be sampled symmetrically:
            "nearest" to anything but a multiple, align_corners to a single pixel. The message says what works.

    Law: `upsample2d(act(g, x)) == act(g, upsample2d(x))` for every rotation and mirror, at every size: bitwise with
        "nearest" and with algorithm="bitwise" (CPU, float32 and float64), rounding otherwise.
    """
    caller = "upsample2d"
    return upsample(caller, x, upsample_spec(caller, size, scale_factor, mode, align_corners, algorithm))


@overridable
def upsample(caller: str, x: Tensor, spec: UpsampleSpec) -> Tensor:
    r"""Resizing by checked settings."""
    check_float(caller, "x", x)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        hint = "Resize images (B, C, H, W) or features (B, C, |G|, H, W)."
        refuse(caller, "x of shape (..., H, W), H and W positive", tuple(x.shape), hint)
    size = x.shape[-2], x.shape[-1]
    out = spec.out_size(caller, size)
    if spec.mode == "nearest":
        return _repeated(x, size, out)
    precise = widened(x)
    if torch.compiler.is_compiling() or (spec.algorithm == "auto" and _has_exact_places(spec, size, out)):
        return _by_torch(precise, spec, out).to(x.dtype)
    height, width = ((dim - 2, size[dim], out[dim]) for dim in (0, 1))
    if height[1:] != width[1:] or spec.algorithm == "auto":  # what a quarter turn takes along comes first
        first, second = (height, width) if height[1:] <= width[1:] else (width, height)
        return _read(_read(precise, first, spec), second, spec).to(x.dtype)
    y = _read(_read(precise, height, spec), width, spec) + _read(_read(precise, width, spec), height, spec)
    return (y / 2).to(x.dtype)


def _repeated(x: Tensor, size: Pair, out: Pair) -> Tensor:
    r"""Every pixel as often as it fits."""
    down, right = out[0] // size[0], out[1] // size[1]
    cells = x[..., :, None, :, None].expand(*x.shape[:-2], size[0], down, size[1], right)
    return cells.reshape(*x.shape[:-2], *out)


def _has_exact_places(spec: UpsampleSpec, size: Pair, out: Pair) -> bool:
    r"""Whether the places are sums of powers of two, which torch computes without rounding them."""
    fractions = [Fraction(length, new) for length, new in zip(size, out, strict=True)]
    return not spec.corners and all(f.denominator & (f.denominator - 1) == 0 for f in fractions)


def _by_torch(x: Tensor, spec: UpsampleSpec, out: Pair) -> Tensor:
    r"""Torch's own resizing, of features in the order in which they lie in memory."""
    swapped = x.ndim == 5 and x.stride(1) < x.stride(2)  # channels innermost: images in channels_last, without a copy
    maps = x.transpose(1, 2) if swapped else x
    maps = maps.flatten(1, -3) if x.ndim > 3 else maps.reshape(1, -1, *maps.shape[-2:])
    y = F.interpolate(maps, out, mode=spec.mode, align_corners=spec.corners)
    if swapped:
        return y.unflatten(1, (x.shape[2], x.shape[1])).transpose(1, 2)
    return y.reshape(*x.shape[:-2], *out)


def _read(x: Tensor, axis: tuple[int, int, int], spec: UpsampleSpec) -> Tensor:
    r"""An axis (its dimension, its length, and the new one) resized: taps that a mirror exchanges are added first."""
    dim, length, out = axis
    places, weights = _taps(Reading(length, out, spec.mode, spec.corners), x.dtype, x.device)
    shape = (-1, 1) if dim == -2 else (-1,)
    taps = [x.index_select(dim, p) * w.view(shape) for p, w in zip(places, weights, strict=True)]
    pairs = [taps[i] + taps[-1 - i] for i in range(len(taps) // 2)]
    return sum(pairs[1:], pairs[0])


class Reading(NamedTuple):
    r"""How an axis is resized: from `length` pixels to `out`."""

    length: int
    out: int
    mode: str
    corners: bool


@table
def _taps(axis: Reading, dtype: torch.dtype, device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    r"""For each tap the places (out,) that it reads and its weights, those of a mirrored place mirrored bit by bit.

    A place is `left + rest / unit` in whole numbers; every weight is a function of a distance that is a quotient of
    whole numbers as well, and a mirror exchanges the distances of the taps.
    """
    steps = np.arange(axis.out)
    if axis.corners:
        place, unit = steps * (axis.length - 1), max(1, axis.out - 1)
    else:
        place, unit = (2 * steps + 1) * axis.length - axis.out, 2 * axis.out
    left = place // unit
    rest = place - left * unit
    bilinear = axis.mode == "bilinear"
    offsets = (0, 1) if bilinear else (-1, 0, 1, 2)
    distances = [rest, unit - rest] if bilinear else [unit + rest, rest, unit - rest, 2 * unit - rest]
    weigh = _tent if bilinear else _cubic
    places = tuple(to_indices((left + offset).clip(0, axis.length - 1), device) for offset in offsets)
    return places, tuple(to_tensor(weigh(distance / unit), device, dtype) for distance in distances)


def _tent(distance: Array) -> Array:
    r"""Of bilinear resizing."""
    return 1 - distance


def _cubic(distance: Array) -> Array:
    r"""Of bicubic resizing: Keys's filter, whose slope at distance 1 is torch's."""
    near = ((SLOPE + 2) * distance - (SLOPE + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * SLOPE - 4 * SLOPE
    return np.where(distance <= 1, near, far)
