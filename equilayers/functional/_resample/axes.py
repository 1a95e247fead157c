r"""What each output of a blurred and subsampled axis reads.

Output i of an axis reads the positions `start + s·i + j`, j = 0..k-1, so its centre lies at `c + s·i` with
`c = start + (k - 1)/2`. A turn or a mirror maps this grid to itself if and only if `c = (L - 1 - (n - 1)·s) / 2`, for L
pixels and n outputs: this is whole, and then the number of taps must be odd, or halfway between, and then even.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equilayers._checks import Pair, refuse

MOST_TAPS = 7
Weights = tuple[float, ...]
Places = NDArray[np.int64]


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

    @property
    def inner(self) -> range:
        r"""The outputs that read no padding."""
        most = (self.length - len(self.weights) - self.start) // self.stride + 1
        first = min(self.count, max(0, -(self.start // self.stride)))
        return range(first, min(self.count, max(first, most)))


def binomial(taps: int) -> Weights:
    r"""A row of Pascal's triangle: the box filter of two pixels, taps - 1 times."""
    return tuple(float(math.comb(taps - 1, j)) for j in range(taps))


@dataclass(frozen=True)
class Reading:
    r"""How maps of any size are read: checked settings.

    taps: the weights along one axis, or None for as many binomial ones as the size asks for. offset: how much earlier
    the middle of what is read lies than the middle of its pixels, in halves of a pixel, height and width.
    """

    taps: Weights | None
    stride: Pair
    mode: str
    exact: bool
    offset: Pair = (0, 0)

    @classmethod
    def of(
        cls, taps: Sequence[float] | None, stride: Sequence[int], mode: str, exact: bool, offset: Sequence[int]
    ) -> Reading:
        r"""Of what `plain` gave."""
        weights = None if taps is None else tuple(taps)
        return cls(weights, (stride[0], stride[1]), mode, exact, (offset[0], offset[1]))

    @property
    def plain(self) -> tuple[Any, ...]:
        r"""The settings as an operator of torch takes them."""
        return None if self.taps is None else list(self.taps), list(self.stride), self.mode, self.exact, [*self.offset]

    def axes(self, caller: str, size: Pair) -> tuple[Axis, Axis]:
        r"""How the axes of maps of this size are read."""
        down, right = (_axis(caller, name, size[dim], dim, self) for dim, name in enumerate("HW"))
        return down, right


@functools.lru_cache(maxsize=4096)
def _axis(caller: str, name: str, length: int, dim: int, reading: Reading) -> Axis:
    r"""Symmetrically if taps is None or `exact`, else from where the published BlurPool starts."""
    stride, mode = reading.stride[dim], reading.mode
    count = (length - 1) // stride + 1
    twice = length - 1 - reading.offset[dim] - (count - 1) * stride  # 2c of the symmetric grid
    weights = binomial(stride + 1 + (stride + twice) % 2) if reading.taps is None else reading.taps
    k = len(weights)
    if reading.taps is not None and not reading.exact:
        return Axis(weights, -((k - 1) // 2), stride, count, length, mode)
    if (k - 1 - twice) % 2:
        parity = "even" if twice % 2 else "odd"
        others = " or ".join(str(taps) for taps in (k - 1, k + 1) if 1 <= taps <= MOST_TAPS)
        hint = f"A turned input would be sampled elsewhere. Take {others} taps, or taps='auto'."
        refuse(caller, f"an {parity} number of taps with exact=True at {name}={length} and stride={stride}", k, hint)
    return Axis(weights, (twice - (k - 1)) // 2, stride, count, length, mode)


def read_places(axis: Axis, outputs: Iterable[int]) -> tuple[Places, NDArray[np.bool_]]:
    r"""The places (m, k) that the outputs read, and which of them hold a zero of the padding."""
    places = axis.start + axis.stride * np.asarray([*outputs], dtype=np.int64)[:, None] + np.arange(len(axis.weights))
    outside = (places < 0) | (places >= axis.length)
    return padded_places(places, axis.length, axis.mode), outside & (axis.mode == "zeros")


def padded_places(places: Places, length: int, mode: str) -> Places:
    r"""Where a padded axis finds what stands at these places: wraps around or mirrors as often as it must."""
    if mode == "circular":
        return places % length
    if mode == "reflect" and length > 1:
        around = places % (2 * length - 2)
        return np.minimum(around, 2 * length - 2 - around)
    return places.clip(0, length - 1)
