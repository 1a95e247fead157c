r"""Blur and subsample as a graph of torch's own operations, for maps of every size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from equilayers.convert._plain.graphs import graph
from equilayers.functional import BlurSpec, binomial


def blur(name: str, spec: BlurSpec) -> fx.GraphModule:
    r"""A module from maps (B, C, H, W) or (B, C, |G|, H, W) to blurred ones, whose windows are pooled before."""

    def compute(x: Any) -> Any:
        maps = _windows(x.flatten(1, -3), spec)
        axes = [_Axis(maps, dim, spec) for dim in (0, 1)]
        down, right = axes
        filters = (down.weights[:, None] * right.weights).expand(maps.size(1), 1, -1, -1)
        padded = _padded(maps, axes, spec.padding_mode)[:, :, down.skip :, right.skip :]
        y = F.conv2d(padded, filters, stride=spec.stride, groups=maps.size(1))[..., : down.count, : right.count]
        return y.reshape(x.shape[:-2] + y.shape[-2:])

    return graph(name, compute)


class _Axis:
    r"""How an axis is read, in symbols: what `equilayers.functional._resample.axes` says in numbers.

    count: outputs. before, after: pixels of padding. most: a positive number that neither exceeds. skip: pixels that no
    output reads at the beginning.
    """

    def __init__(self, maps: Any, dim: int, spec: BlurSpec) -> None:
        stride, kernel, self.length = spec.stride[dim], spec.kernel_size[dim], maps.size(dim + 2)
        offset = torch.sym_min(kernel, self.length) - 1 if spec.padding_mode == "circular" else 0
        self.count = (self.length - 1) // stride + 1
        reach = (self.count - 1) * stride
        twice = self.length - 1 - offset - reach  # 2c of the symmetric grid
        if spec.taps is None:
            odd = (stride + twice) % 2
            rows = [[*_normal(binomial(stride + 1)), 0.0], _normal(binomial(stride + 2))]
            taps: Any = stride + 1 + odd
            self.weights = maps.new_tensor(rows)[odd][:taps]
        else:
            taps = len(spec.taps)
            self.weights = maps.new_tensor(_normal(spec.taps))
        start = (twice - (taps - 1)) // 2 if spec.on_grid else -((taps - 1) // 2)
        self.skip, self.before = torch.sym_max(start, 0), torch.sym_max(-start, 0)
        self.after = torch.sym_max(start + reach + taps - self.length, 0)
        self.most = (len(spec.taps or range(stride + 2)) + kernel) // 2


def _normal(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _windows(maps: Any, spec: BlurSpec) -> Any:
    r"""All windows, pooled, as `equilayers.functional._resample.windows` does it."""
    if spec.window is None:
        return maps
    (ph, pw), largest = spec.padding, spec.window == "max"
    if ph or pw:
        maps = F.pad(maps, [pw, pw, ph, ph], value=-math.inf if largest else 0.0)
    kh, kw = (torch.sym_min(kernel, maps.size(dim)) for dim, kernel in zip((2, 3), spec.kernel_size, strict=True))
    if spec.padding_mode == "circular":
        maps = torch.cat((maps, maps[:, :, : kh - 1]), 2)
        maps = torch.cat((maps, maps[..., : kw - 1]), 3)
    return F.max_pool2d(maps, (kh, kw), 1) if largest else F.avg_pool2d(maps, (kh, kw), 1)


def _padded(maps: Any, axes: list[_Axis], mode: str) -> Any:
    r"""The maps with what is read around them; torch itself mirrors and goes around once alone."""
    down, right = axes
    missing = [right.before, right.after, down.before, down.after]
    if mode in ("zeros", "replicate"):
        return F.pad(maps, missing, mode="constant" if mode == "zeros" else mode)
    if mode == "circular":
        maps = maps.repeat(1, 1, *((axis.most - 1) // axis.length + 1 for axis in axes))
        return F.pad(maps, missing, mode=mode)
    sizes = [right.length, right.length, down.length, down.length]
    for _ in range(max(down.most, right.most).bit_length()):  # two pixels become three, then five, ...
        amounts = [torch.sym_min(amount, size - 1) for amount, size in zip(missing, sizes, strict=True)]
        maps = F.pad(maps, amounts, mode=mode)
        missing = [amount - done for amount, done in zip(missing, amounts, strict=True)]
        across, along = amounts[0] + amounts[1], amounts[2] + amounts[3]
        sizes = [size + more for size, more in zip(sizes, (across, across, along, along), strict=True)]
    return F.pad(maps, missing, mode="replicate")  # one pixel has no mirror image
