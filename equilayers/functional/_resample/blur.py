r"""Blur and subsample, axis by axis: a map and its transpose.

Why it is bitwise: taps of equal weight are added in pairs from both ends, which a mirror exchanges; on a square map the
mean of "rows first" and "columns first" is taken, which a quarter turn exchanges. IEEE addition commutes. No product
that rounds is fused with a sum, for whether it would be depends on how the numbers lie in memory.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import in_autocast, is_exporting
from equilayers.functional._index_tables import to_tensor
from equilayers.functional._resample.axes import Axis, BlurSpec, Weights, check_grid, padded_places, read_places


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
    if is_exporting():
        return blur_plainly(x, axes)
    y: Tensor = Blur.apply(x, axes) if bitwise or x.numel() == 0 else blur_densely(x, axes)
    return y


def blur(x: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    r"""The map (..., H, W) read along both axes and divided by the sum of the weights."""
    down, right = axes
    total = sum(down.weights) * sum(right.weights)
    y = _read(_read(x, -2, down), -1, right)
    if down == right and down.symmetric:
        return y.add_(_read(_read(x, -1, right), -2, down)).mul_(1 / (2 * total))
    return y.mul_(1 / total)


def spread(v: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    r"""The transpose of `blur`, and of `blur_densely`."""
    down, right = axes
    return _spread(_spread(v * (1 / (sum(down.weights) * sum(right.weights))), -1, right), -2, down)


def blur_plainly(x: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    r"""`blur` by operations that a compiler can fuse and derive."""
    for dim, axis in zip((-2, -1), axes, strict=True):
        places, outside = read_places(axis, range(axis.count))
        weights = torch.tensor(axis.weights, dtype=x.dtype) / sum(axis.weights)
        weights = torch.where(torch.from_numpy(outside), 0, weights).to(x.device)
        taps = x.index_select(dim, torch.from_numpy(places).flatten().to(x.device)).unflatten(dim, places.shape)
        x = (taps * (weights if dim == -1 else weights[:, :, None])).sum(dim)
    return x


def blur_densely(x: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    r"""`blur` as one depthwise convolution: the fastest, at rounding level."""
    down, right = axes
    maps = x.reshape(1, -1, *x.shape[-2:]) if x.ndim < 4 else x.flatten(1, -3)
    (top, bottom), (left, rest) = down.padding, right.padding
    inside = 0, 0
    if down.mode == "zeros" and top == bottom >= 0 and left == rest >= 0:
        inside = top, left
    elif down.mode == "zeros" or all(axis.pads_once for axis in axes):
        maps = F.pad(maps, (left, rest, top, bottom), mode="constant" if down.mode == "zeros" else down.mode)
    else:
        for dim, axis in zip((-2, -1), axes, strict=True):
            before, after = axis.padding
            places = np.arange(-before, axis.length + after)
            maps = maps.index_select(dim, torch.from_numpy(padded_places(places, axis.length, axis.mode)).to(x.device))
    channels = maps.shape[1]
    filters = _filter(down.weights, right.weights, x.dtype, x.device).expand(channels, 1, -1, -1)
    with torch.autocast(x.device.type, enabled=False) if in_autocast(x) else contextlib.nullcontext():
        y = F.conv2d(maps, filters, None, (down.stride, right.stride), inside, groups=channels)
    return y.view(*x.shape[:-2], *y.shape[-2:])


@functools.lru_cache(maxsize=64)
def _filter(down: Weights, right: Weights, dtype: torch.dtype, device: torch.device) -> Tensor:
    weights = np.outer(down, right) / (sum(down) * sum(right))
    return to_tensor(weights, device, dtype)


class Blur(Function):
    r"""`blur`; its transpose is `_Spread`, so gradients of any order are made of the two."""

    @staticmethod
    def forward(x: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
        return blur(x, axes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.axes = inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(v, ctx.axes), None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: None) -> Tensor:
        return Blur.apply(t, ctx.axes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, axes: tuple[Axis, Axis]) -> tuple[Tensor, int]:  # noqa: ARG004
        return Blur.apply(x.movedim(in_dims[0], 0), axes), 0


class _Spread(Function):
    r"""The x-gradient of <v, blur(x)>."""

    @staticmethod
    def forward(v: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
        return spread(v, axes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.axes = inputs[1]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        return Blur.apply(u, ctx.axes), None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: None) -> Tensor:
        return _Spread.apply(t, ctx.axes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], v: Tensor, axes: tuple[Axis, Axis]) -> tuple[Tensor, int]:  # noqa: ARG004
        return _Spread.apply(v.movedim(in_dims[0], 0), axes), 0


def _read(x: Tensor, dim: int, axis: Axis) -> Tensor:
    r"""`y[i] = sum_j weights[j] x[start + stride·i + j]` along `dim`, -2 or -1."""
    y, inner = _like(x, dim, axis.count), axis.inner
    if len(inner):
        _combine(_taps(x, dim, axis), axis.weights, y.narrow(dim, inner.start, len(inner)))
    if len(inner) < axis.count:
        places, outside = _borders(axis, x.device)
        taps = x.index_select(dim, places.flatten())
        if outside is not None:
            taps = taps.masked_fill(outside.flatten() if dim == -1 else outside.flatten()[:, None], 0)
        border = _like(x, dim, len(places))
        _combine(taps.unflatten(dim, places.shape).unbind(dim), axis.weights, border)
        for ours, theirs in _border_slices(axis, dim):
            y[theirs] = border[ours]
    return y


def _spread(v: Tensor, dim: int, axis: Axis) -> Tensor:
    r"""The transpose of `_read`."""
    x, inner, s, k = _like(v, dim, axis.length).zero_(), axis.inner, axis.stride, len(axis.weights)
    if len(inner):
        first, middle = axis.start + s * inner.start, v.narrow(dim, inner.start, len(inner))
        for phase in range(min(s, k)):
            part = _like(v, dim, len(inner) + (k - 1 - phase) // s).zero_()
            for j in range(phase, k, s):
                part.narrow(dim, j // s, len(inner)).add_(middle, alpha=axis.weights[j])
            _every(x, dim, first + phase, s, part.shape[dim]).copy_(part)
    if len(inner) < axis.count:
        places, outside = _borders(axis, v.device)
        weights = torch.tensor(axis.weights, dtype=v.dtype, device=v.device)
        border = torch.cat([v[theirs] for _, theirs in _border_slices(axis, dim)], dim).unsqueeze(dim % v.ndim + 1)
        border = border * (weights if dim == -1 else weights[:, None])
        if outside is not None:  # zeros of the padding take nothing, not even of what is infinite
            border.masked_fill_(outside if dim == -1 else outside[:, :, None], 0)
        x.index_add_(dim, places.flatten(), border.flatten(dim - 1, dim))
    return x


def _like(x: Tensor, dim: int, length: int) -> Tensor:
    r"""Memory for x with another length along `dim`, its axes in the same order."""
    size = [*x.shape]
    size[dim] = length
    if x.is_contiguous():
        return x.new_empty(size)
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return torch.empty_permuted(size, order, dtype=x.dtype, device=x.device)


def _every(x: Tensor, dim: int, first: int, step: int, count: int) -> Tensor:
    chosen = slice(first, first + (count - 1) * step + 1, step)
    return x[..., chosen] if dim == -1 else x[..., chosen, :]


def _taps(x: Tensor, dim: int, axis: Axis) -> list[Tensor]:
    r"""For each j the numbers `x[start + stride·i + j]` of the inner outputs i."""
    inner, s, k = axis.inner, axis.stride, len(axis.weights)
    first, m = axis.start + s * inner.start, len(inner)
    if s == 1 or x.stride(dim) != 1:
        return [_every(x, dim, first + j, s, m) for j in range(k)]
    # Reading every other number of a line is slow: part the lines into their phases, once.
    phases = [_every(x, dim, first + p, s, m + (k - 1 - p) // s).contiguous() for p in range(min(s, k))]
    return [phases[j % s].narrow(dim, j // s, m) for j in range(k)]


def _combine(taps: list[Tensor] | tuple[Tensor, ...], weights: Weights, out: Tensor) -> None:
    r"""Write `sum_j weights[j] taps[j]`, equal weights added in pairs from both ends."""
    k = len(taps)
    if weights != weights[::-1]:
        out.copy_(taps[0]).mul_(weights[0])
        for tap, weight in zip(taps[1:], weights[1:], strict=True):
            out.add_(tap * weight)
        return
    if k == 1:
        out.copy_(taps[0]).mul_(weights[0])
        return
    torch.add(taps[0], taps[-1], out=out)
    if weights[0] != 1:
        out.mul_(weights[0])
    for j in range(1, k // 2):
        out.add_((taps[j] + taps[-1 - j]).mul_(weights[j]))
    if k % 2:
        middle, weight = taps[k // 2], weights[k // 2]
        exact = math.frexp(weight)[0] == 0.5  # a power of two: its product does not round
        out.add_(middle, alpha=weight) if exact else out.add_(middle * weight)


@functools.lru_cache(maxsize=1024)
def _borders(axis: Axis, device: torch.device) -> tuple[Tensor, Tensor | None]:
    outputs = [*range(axis.inner.start), *range(axis.inner.stop, axis.count)]
    places, outside = read_places(axis, outputs)
    return to_tensor(places, device), to_tensor(outside, device) if outside.any() else None


def _border_slices(axis: Axis, dim: int) -> list[tuple[Any, Any]]:
    r"""Where the low and the high border stand among the border outputs, and where among all."""
    low, high = axis.inner.start, axis.inner.stop
    pieces = [(slice(0, low), slice(0, low)), (slice(low, low + axis.count - high), slice(high, axis.count))]
    after = () if dim == -1 else (slice(None),)
    return [((..., ours, *after), (..., theirs, *after)) for ours, theirs in pieces]
