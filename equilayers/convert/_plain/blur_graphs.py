r"""Blur and subsample as a graph of torch's own operations, for maps of every size, traced, scripted and exported.

Sizes are numbers that may be symbols: they know sums, products and quotients, and `slice` knows the smaller of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from equilayers.convert._plain.graphs import graph
from equilayers.functional import BlurSpec, binomial
from equilayers.functional.strides import StrideSpec


def blur(name: str, spec: BlurSpec) -> fx.GraphModule:
    r"""A module from maps (B, C, H, W) or (B, C, |G|, H, W) to blurred ones, whose windows are pooled before."""

    def compute(x: Any) -> Any:
        maps = _windows(x.flatten(1, -3), spec)
        down, right = (_blurred_axis(maps, dim, spec) for dim in (0, 1))
        filters = (down.weights[:, None] * right.weights).expand(maps.size(1), 1, -1, -1)
        for dim, axis in ((2, down), (3, right)):
            maps = axis.padded(maps, dim)
        y = F.conv2d(maps, filters, stride=spec.stride, groups=maps.size(1))
        return y.unflatten(1, x.shape[1:-2])

    return graph(name, compute)


def alignment(spec: StrideSpec) -> fx.GraphModule:
    r"""A module that makes maps ready for a strided convolution, as `equilayers.functional.strides.align` does."""

    def compute(x: Any) -> Any:
        maps = x.flatten(1, -3)
        down, right = (_aligned_axis(maps, dim, spec) for dim in (0, 1))
        filters = (down.weights[:, None] * right.weights).expand(maps.size(1), 1, -1, -1)
        for dim, axis in ((2, down), (3, right)):
            maps = axis.padded(maps, dim)
        y = F.conv2d(maps, filters, stride=spec.stride if spec.pointwise else 1, groups=maps.size(1))
        return y.unflatten(1, x.shape[1:-2])

    return graph("Aligned", compute)


class _Axis(NamedTuple):
    r"""How an axis is read, in symbols: its length, the weights of the taps, and the places that they read.

    As many taps at every size, of which the last may weigh nothing: so no shape but that of the map is a symbol.
    """

    mode: str
    length: Any
    weights: Any
    places: Any

    def padded(self, maps: Any, dim: int) -> Any:
        r"""The maps with what is read along this axis, and nothing else."""
        length, places = self.length, self.places
        if self.mode == "circular":
            return maps.index_select(dim, _around(places, length))
        if self.mode == "reflect":
            there = _around(places, 2 * length - 2 + 1 // length)  # one pixel has no mirror image
            return maps.index_select(dim, torch.minimum(there, 2 * length - 2 + 1 // length - there))
        near = places.clamp(min=0)
        near = near - (near - (length - 1)).clamp(min=0)
        if self.mode == "replicate":
            return maps.index_select(dim, near)
        outside = (near != places).view([-1, 1] if dim == 2 else [-1])
        return maps.index_select(dim, near).masked_fill(outside, 0.0)


def _blurred_axis(maps: Any, dim: int, spec: BlurSpec) -> _Axis:
    r"""What `equilayers.functional._resample.axes` says in numbers."""
    stride, mode, length = spec.stride[dim], spec.padding_mode, maps.size(dim + 2)
    offset = _smaller(maps, dim + 2, spec.kernel_size[dim]) - 1 if mode == "circular" else 0
    reach = (length - 1) // stride * stride
    twice = length - 1 - offset - reach  # 2c of the symmetric grid
    if spec.taps is None:
        odd = (stride + twice) % 2
        few, many = [*_normal(binomial(stride + 1)), 0.0], _normal(binomial(stride + 2))
        weights, taps, most = _between(few, many, odd, maps), stride + 1 + odd, stride + 2
    else:
        weights, taps, most = _tensor(_normal(spec.taps), maps), len(spec.taps), len(spec.taps)
    start = (twice - (taps - 1)) // 2 if spec.on_grid else -((taps - 1) // 2)
    return _Axis(mode, length, weights, _count(maps, reach + most) + start)


def _aligned_axis(maps: Any, dim: int, spec: StrideSpec) -> _Axis:
    r"""What `StrideSpec.axis` says in numbers."""
    stride, span, pad, length = spec.stride[dim], spec.spans[dim], spec.padding[dim], maps.size(dim + 2)
    room = length + 2 * pad - span - 1
    rest = room % stride if dim in spec.axes else 0
    weights = _between([1.0, 0.0], [0.5, 0.5], rest % 2, maps)
    count = room // stride * stride + (0 if spec.pointwise else span) + 2
    return _Axis(spec.padding_mode, length, weights, _count(maps, count) + rest // 2 - pad)


def _between(even: list[float], odd: list[float], parity: Any, like: Any) -> Any:
    r"""The first weights for a parity of 0, the second for 1."""
    return _tensor(even, like) + parity * _tensor([b - a for a, b in zip(even, odd, strict=True)], like)


def _tensor(numbers: list[float], like: Any) -> Any:
    r"""A tensor of these numbers; torch.tensor would warn where it is traced, and new_tensor cannot be scripted."""
    return torch.cat([like.new_full([1], number) for number in numbers])


def _normal(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _count(maps: Any, number: Any) -> Any:
    r"""The tensor 0, 1, ..., number - 1."""
    return maps.new_ones(number, dtype=torch.int64).cumsum(0) - 1


def _around(places: Any, period: Any) -> Any:
    r"""The remainders; by a tensor, as ONNX does not take them by a symbol."""
    return places % places.new_ones(period).sum()


def _smaller(maps: Any, dim: int, number: int) -> Any:
    r"""The smaller of the length of an axis and a number."""
    return maps[:, :, :number].size(2) if dim == 2 else maps[:, :, :, :number].size(3)


def _windows(maps: Any, spec: BlurSpec) -> Any:
    r"""All windows, pooled, as `equilayers.functional._resample.windows` does it.

    Where the map is smaller than a window, what is missing is filled with what does not count.
    """
    if spec.window is None:
        return maps
    (ph, pw), largest = spec.padding, spec.window == "max"
    nothing = -math.inf if largest else 0.0
    if ph or pw:
        maps = F.pad(maps, [pw, pw, ph, ph], value=nothing)
    height, width = spec.kernel_size
    kh, kw = _smaller(maps, 2, height), _smaller(maps, 3, width)
    scale = height * width / (kh * kw)
    if spec.padding_mode == "circular":
        if not largest:  # a window as wide as the map holds all of it, once: its mean, wherever it begins
            maps, scale = maps + (1 - kh // height) * (maps.mean(2, keepdim=True) - maps), 1.0
            maps = maps + (1 - kw // width) * (maps.mean(3, keepdim=True) - maps)
        for dim, kernel in ((2, height), (3, width)):
            maps = maps.index_select(dim, _around(_count(maps, maps.size(dim) + kernel - 1), maps.size(dim)))
    else:
        maps = F.pad(maps, [0, width - kw, 0, height - kh], value=nothing)
    if largest:
        return F.max_pool2d(maps, spec.kernel_size, 1)
    return F.avg_pool2d(maps, spec.kernel_size, 1) * scale
