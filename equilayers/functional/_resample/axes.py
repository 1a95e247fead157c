r"""What each output of a blurred and subsampled axis reads.

Output i of an axis reads the positions `start + s·i + j`, j = 0..k-1, so its centre lies at `c + s·i` with
`c = start + (k - 1)/2`. A turn or a mirror maps this grid to itself if and only if `c = (L - 1 - (n - 1)·s) / 2`, for L
pixels and n outputs: this is whole, and then the number of taps must be odd, or halfway between, and then even.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import PADDING_MODES, Pair, check_choice, check_int, pair_of, refuse

ALGORITHMS = ("auto", "bitwise", "dense")
MOST_TAPS = 7
Ints = int | Sequence[int]
Places = NDArray[np.int64]
Taps = int | str | Sequence[float]
Weights = tuple[float, ...]


@dataclass(frozen=True)
class BlurSpec:
    r"""The settings of a blur pooling, checked once; pairs are (height, width), as in torch.

    taps: the weights along one axis, or None for as many binomial ones as the size asks for. exact: whether fixed taps
    must sample symmetrically. window: what is taken of every window of kernel_size pixels before the blur, "max" or
    "mean"; None where pixels are blurred themselves.
    """

    taps: Weights | None = None
    stride: Pair = (2, 2)
    padding_mode: str = "reflect"
    exact: bool = False
    algorithm: str = "bitwise"
    window: str | None = None
    kernel_size: Pair = (1, 1)
    padding: Pair = (0, 0)

    @property
    def on_grid(self) -> bool:
        r"""Whether the samples are symmetric at every size that is accepted."""
        return self.taps is None or self.exact

    @property
    def exactness(self) -> str:
        r"""The level at which the pooling commutes with rotations and mirrors."""
        if not self.on_grid or (self.taps is not None and self.taps != self.taps[::-1]):
            return "approximate"
        return "bitwise" if self.algorithm == "bitwise" else "rounding"

    def with_algorithm(self, caller: str, algorithm: str) -> BlurSpec:
        r"""The same with another algorithm, which is checked."""
        return replace(self, algorithm=check_choice(caller, "algorithm", algorithm, ALGORITHMS))

    def of_windows(self, caller: str, window: str, kernel_size: Pair, padding: Ints) -> BlurSpec:
        r"""The same after windows of this size, with a padding that leaves every window a pixel of the map."""
        pads = pair_of(caller, "padding", padding, 0)
        for pad, kernel in zip(pads, kernel_size, strict=True):
            check_int(caller, "padding", pad, 0, 0 if self.padding_mode == "circular" else kernel // 2)
        return replace(self, window=window, kernel_size=kernel_size, padding=pads)

    def axes(self, size: Pair) -> tuple[Axis, Axis]:
        r"""How both axes of windowed maps of this size are read."""
        return _axis(self, 0, size[0]), _axis(self, 1, size[1])


def blur_spec(
    caller: str, taps: Taps, stride: Ints, padding_mode: str, *, exact: bool = False, algorithm: str = "bitwise"
) -> BlurSpec:
    r"""The checked settings of a blur; TypeError or ValueError where they make no sense."""
    return BlurSpec(
        _weights(caller, taps),
        pair_of(caller, "stride", stride, 1),
        check_choice(caller, "padding_mode", padding_mode, PADDING_MODES),
        exact,
        check_choice(caller, "algorithm", algorithm, ALGORITHMS),
    )


def check_grid(caller: str, spec: BlurSpec, size: Pair) -> None:
    r"""ValueError where fixed taps have to sample windowed maps of this size symmetrically and cannot."""
    if spec.taps is None or not spec.exact:
        return
    k = len(spec.taps)
    for dim, name in enumerate("HW"):
        centre = _twice_the_centre(spec, dim, size[dim])
        if (k - 1 - centre) % 2:
            parity = "even" if centre % 2 else "odd"
            others = " or ".join(str(taps) for taps in (k - 1, k + 1) if 1 <= taps <= MOST_TAPS)
            hint = f"A rotated input would be sampled elsewhere. Take {others} taps, or taps='auto'."
            at = f"{name}={size[dim]} and stride={spec.stride[dim]}"
            refuse(caller, f"an {parity} number of taps with exact=True at {at}", k, hint)


def binomial(taps: int) -> Weights:
    r"""A row of Pascal's triangle: the box filter of two pixels, taps - 1 times."""
    return tuple(float(math.comb(taps - 1, j)) for j in range(taps))


def _weights(caller: str, taps: Taps) -> Weights | None:
    r"""The weights along one axis; None for "auto"."""
    hint = f"Pass 'auto', a number of taps from 1 to {MOST_TAPS}, or the weights along one axis."
    if isinstance(taps, str):
        if taps != "auto":
            refuse(caller, "taps to be 'auto', an int or weights", repr(taps), hint)
        return None
    if not isinstance(taps, Sequence | Tensor | np.ndarray) or isinstance(taps, bytes):
        return binomial(check_int(caller, "taps", taps, 1, MOST_TAPS))
    try:
        weights = tuple(float(weight) for weight in taps)
    except (TypeError, ValueError, RuntimeError):
        refuse(caller, "taps to be a list of numbers", repr(taps), hint)
    size = sum(map(abs, weights))
    if not weights or not math.isfinite(size) or abs(sum(weights)) <= 1e-6 * size:
        refuse(caller, "taps to be finite weights that do not sum to zero", weights, hint)
    return weights


@dataclass(frozen=True)
class Axis:
    r"""How an axis of `length` pixels is read: output i < count is `sum_j weights[j] x[start + stride·i + j]`."""

    weights: Weights
    start: int
    stride: int
    count: int
    length: int
    mode: str

    @property
    def symmetric(self) -> bool:
        r"""Whether the weights are, so that sums of both ends commute with a mirror."""
        return self.weights == self.weights[::-1]

    @property
    def padding(self) -> tuple[int, int]:
        r"""How many pixels are read before the first and after the last; negative where that many are not read."""
        last = self.start + self.stride * (self.count - 1) + len(self.weights)
        return -self.start, last - self.length

    @property
    def pads_once(self) -> bool:
        r"""Whether torch's own padding does: it neither wraps around nor mirrors more than once."""
        most = {"reflect": self.length - 1, "circular": self.length}.get(self.mode, max(self.padding))
        return min(self.padding) >= 0 and max(self.padding) <= most


def _twice_the_centre(spec: BlurSpec, dim: int, length: int) -> int:
    r"""2c of the symmetric grid; circular windows begin at each pixel, so their middles lie k - 1 half pixels later."""
    count = (length - 1) // spec.stride[dim] + 1
    late = min(spec.kernel_size[dim], length) - 1 if spec.padding_mode == "circular" else 0
    return length - 1 - late - (count - 1) * spec.stride[dim]


@functools.lru_cache(maxsize=4096)
def _axis(spec: BlurSpec, dim: int, length: int) -> Axis:
    r"""Symmetric on the grid, else from where the published BlurPool starts."""
    stride, centre = spec.stride[dim], _twice_the_centre(spec, dim, length)
    weights = binomial(stride + 1 + (stride + centre) % 2) if spec.taps is None else spec.taps
    reach = len(weights) - 1
    start = (centre - reach) // 2 if spec.on_grid else -(reach // 2)
    return Axis(weights, start, stride, (length - 1) // stride + 1, length, spec.padding_mode)


def padded_places(places: Places, length: int, mode: str) -> Places:
    r"""Where a padded axis finds what stands at these places: wraps around or mirrors as often as it must."""
    if mode == "circular":
        return places % length
    if mode == "reflect" and length > 1:
        around = places % (2 * length - 2)
        return np.minimum(around, 2 * length - 2 - around)
    return places.clip(0, length - 1)
