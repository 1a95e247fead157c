r"""Blur and subsample: in an order of sums that rotations leave alone, or as one depthwise convolution.

Why the first is bitwise: taps of equal weight are added in pairs from both ends, which a mirror exchanges; on a square
map the mean of "rows first" and "columns first" is taken, which a quarter turn exchanges, and on any other the short
axis comes first, which it takes along. IEEE addition commutes. No product that rounds is fused with a sum, for whether
it would be depends on how the numbers lie in memory.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import in_autocast, is_exporting
from equilayers._tables import table
from equilayers.functional._index_tables import to_indices, to_tensor
from equilayers.functional._resample.axes import Axis, BlurSpec, Weights, check_grid, padded_places

Axes = tuple[Axis, Axis]


def blurred(caller: str, x: Tensor, spec: BlurSpec) -> Tensor:
    r"""Maps (..., H, W) of float32 or float64, windowed before, blurred and subsampled."""
    bitwise = spec.algorithm == "bitwise" and spec.on_grid
    if torch.compiler.is_compiling() and not is_exporting():  # sizes may be symbols: the operator is not looked into
        steps = [*spec.stride, *spec.kernel_size]
        taps = None if spec.taps is None else list(spec.taps)
        return torch.ops.equilayers.blur(x, taps, steps, spec.padding_mode, spec.exact, bitwise)
    size = x.shape[-2], x.shape[-1]
    check_grid(caller, spec, size)
    axes = spec.axes(size)
    if is_exporting() or not (bitwise or x.numel() == 0):
        return blur_densely(x, axes)
    return blur_bitwise(x, axes)


def blur_bitwise(x: Tensor, axes: Axes) -> Tensor:
    r"""Maps (..., H, W) read along both axes and divided by the sum of the weights, with derivatives of any order."""
    if x.numel() == 0:
        return x[..., : axes[0].count, : axes[1].count]
    y: Tensor = _Blur.apply(x, axes)
    return y


def blur_densely(x: Tensor, axes: Axes) -> Tensor:
    r"""The same as one depthwise convolution: the fastest, at rounding level."""
    down, right = axes
    maps, inside = _maps(x), (0, 0)
    (top, bottom), (left, rest) = down.padding, right.padding
    if down.mode == "zeros" and top == bottom >= 0 and left == rest >= 0:
        inside = top, left
    else:
        maps = _padded(maps, axes)
    filters, channels = _filters(axes, maps), maps.shape[1]
    with torch.autocast(x.device.type, enabled=False) if in_autocast(x) else contextlib.nullcontext():
        y = F.conv2d(maps, filters, None, (down.stride, right.stride), inside, groups=channels)
    return y.view(*x.shape[:-2], *y.shape[-2:])


def blur_forward(x: Tensor, axes: Axes) -> Tensor:
    r"""`blur_bitwise` without derivatives."""
    down, right = axes
    swapped = x.ndim == 5 and x.stride(1) < x.stride(2)  # channels innermost: images in channels_last, without a copy
    maps = _padded(_maps(x.transpose(1, 2) if swapped else x), axes)
    total = sum(down.weights) * sum(right.weights)
    if down.length > right.length:
        y = _read(_read(maps, -1, right), -2, down)
    else:
        y = _read(_read(maps, -2, down), -1, right)
    if down == right and down.symmetric:
        y = y.add_(_read(_read(maps, -1, right), -2, down)).mul_(1 / (2 * total))
    else:
        y = y.mul_(1 / total)
    if swapped:
        return y.unflatten(1, (x.shape[2], x.shape[1])).transpose(1, 2)
    return y.view(*x.shape[:-2], *y.shape[-2:])


def blur_adjoint(v: Tensor, axes: Axes) -> Tensor:
    r"""The transpose of both, at rounding level: the gradient by x of <v, blur(x)>."""
    maps = _maps(v)
    strides = axes[0].stride, axes[1].stride
    x = F.conv_transpose2d(maps, _filters(axes, maps), stride=strides, groups=maps.shape[1])
    for dim, axis in zip((-2, -1), axes, strict=True):
        before, after = axis.padding
        wide, x = x, F.pad(x, (-before, -after) if dim == -1 else (0, 0, -before, -after))
        if axis.mode != "zeros" and max(before, after) > 0:
            border, places = _border(axis, v.device)
            x = x.index_add_(dim, places, wide.index_select(dim, border))
    return x.reshape(*v.shape[:-2], *x.shape[-2:])


class _Blur(Function):
    r"""`blur_forward`; what its backward computes is differentiable itself."""

    @staticmethod
    def forward(x: Tensor, axes: Axes) -> Tensor:
        return blur_forward(x, axes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.axes = inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return blur_adjoint(v, ctx.axes), None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: None) -> Tensor:
        return _Blur.apply(t, ctx.axes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, axes: Axes) -> tuple[Tensor, int]:  # noqa: ARG004
        return _Blur.apply(x.movedim(in_dims[0], 0), axes), 0


def _maps(x: Tensor) -> Tensor:
    return x.reshape(1, -1, *x.shape[-2:]) if x.ndim < 4 else x.flatten(1, -3)


def _padded(maps: Tensor, axes: Axes) -> Tensor:
    r"""Images (B, C, H, W) with all that the outputs read around them, and nothing else."""
    down, right = axes
    if not any((*down.padding, *right.padding)):
        return maps
    if down.mode == "zeros" or (down.pads_once and right.pads_once):
        mode = "constant" if down.mode == "zeros" else down.mode
        return F.pad(maps, (*right.padding, *down.padding), mode=mode)
    for dim, axis in zip((-2, -1), axes, strict=True):
        before, after = axis.padding
        places = padded_places(np.arange(-before, axis.length + after), axis.length, axis.mode)
        maps = maps.index_select(dim, torch.from_numpy(places).to(maps.device))
    return maps


def _read(x: Tensor, dim: int, axis: Axis) -> Tensor:
    r"""`y[i] = sum_j weights[j] x[stride·i + j]` along `dim` of padded maps, equal weights added in pairs."""
    weights, s, k, n = axis.weights, axis.stride, len(axis.weights), axis.count
    if s == 1 or x.stride(dim) != 1:
        taps = [_every(x, dim, j, s, n) for j in range(k)]
    else:  # reading every other number of a line is slow: part the lines into their phases, once
        phases = [_every(x, dim, p, s, n + (k - 1 - p) // s).contiguous() for p in range(min(s, k))]
        taps = [phases[j % s].narrow(dim, j // s, n) for j in range(k)]
    if not axis.symmetric or k == 1:
        y = taps[0] * weights[0]
        for tap, weight in zip(taps[1:], weights[1:], strict=True):
            y.add_(tap * weight)
        return y
    y = taps[0] + taps[-1]
    if weights[0] != 1:
        y.mul_(weights[0])
    for j in range(1, k // 2):
        y.add_((taps[j] + taps[-1 - j]).mul_(weights[j]))
    if k % 2:
        middle, weight = taps[k // 2], weights[k // 2]
        exact = math.frexp(weight)[0] == 0.5  # a power of two: its product does not round
        y = y.add_(middle, alpha=weight) if exact else y.add_(middle * weight)
    return y


def _every(x: Tensor, dim: int, first: int, step: int, count: int) -> Tensor:
    chosen = slice(first, first + (count - 1) * step + 1, step)
    return x[..., chosen] if dim == -1 else x[..., chosen, :]


def _filters(axes: Axes, maps: Tensor) -> Tensor:
    r"""The weights of both axes as a depthwise filter."""
    return _filter(axes[0].weights, axes[1].weights, maps.dtype, maps.device).expand(maps.shape[1], 1, -1, -1)


@table
def _filter(down: Weights, right: Weights, dtype: torch.dtype, device: torch.device) -> Tensor:
    weights = np.outer(down, right) / (sum(down) * sum(right))
    return to_tensor(weights, device, dtype)


@table
def _border(axis: Axis, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Where the padding of an axis stands on the padded axis, and what places of the axis it repeats."""
    before, after = axis.padding
    read = np.arange(-before, axis.length + after)
    border = np.flatnonzero((read < 0) | (read >= axis.length))
    return to_indices(border, device), to_indices(padded_places(read[border], axis.length, axis.mode), device)
