r"""What each output of a blurred and subsampled axis reads.

Output i of an axis reads the positions `start + s·i + j`, j = 0..k-1, so its centre lies at `c + s·i` with
`c = start + (k - 1)/2`. A turn or a mirror maps this grid to itself if and only if `c = (L - 1 - (n - 1)·s) / 2`, for L
pixels and n outputs: this is whole, and then the number of taps must be odd, or halfway between, and then even.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equilayers._checks import refuse

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
    def centred(self) -> bool:
        r"""Whether reading commutes with a mirror."""
        ends = 2 * self.start + len(self.weights) + (self.count - 1) * self.stride
        return ends == self.length and self.weights == self.weights[::-1]

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


@functools.lru_cache(maxsize=4096)
def axis_of(who: str, name: str, length: int, taps: Weights | None, stride: int, mode: str, exact: bool) -> Axis:
    r"""How an axis is read: symmetrically if taps is None or `exact`, else from where the published BlurPool starts."""
    count = (length - 1) // stride + 1
    twice = length - 1 - (count - 1) * stride  # 2c of the symmetric grid
    weights = binomial(stride + 1 + (stride + twice) % 2) if taps is None else taps
    k = len(weights)
    if taps is not None and not exact:
        return Axis(weights, -((k - 1) // 2), stride, count, length, mode)
    if (k - 1 - twice) % 2:
        parity = "even" if twice % 2 else "odd"
        todo = f"A turned input would be sampled elsewhere. Take {k - 1 or 2} or {k + 1} taps, or taps='auto'."
        refuse(who, f"an {parity} number of taps with exact=True at {name}={length} and stride={stride}", k, todo)
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
