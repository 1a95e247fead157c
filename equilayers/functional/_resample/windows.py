r"""The maximum and the mean of every window of a map, at stride 1; rotations and mirrors permute them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import Pair, widened
from equilayers.functional._resample.axes import Axis, BlurSpec
from equilayers.functional._resample.blur import blur_bitwise


def windows(x: Tensor, spec: BlurSpec) -> Tensor:
    r"""The maxima or means over all windows of maps (..., H, W), which are cut to the map where that is smaller.

    With "circular" padding windows go around: as many as there are pixels, beginning with each.
    """
    if spec.window is None:
        return x
    ph, pw = spec.padding
    if ph or pw:
        x = F.pad(x, (pw, pw, ph, ph), value=-math.inf if spec.window == "max" else 0.0)
    kh, kw = min(spec.kernel_size[0], x.shape[-2]), min(spec.kernel_size[1], x.shape[-1])
    if spec.padding_mode == "circular":
        x = torch.cat((x, x[..., : kh - 1, :]), -2)
        x = torch.cat((x, x[..., : kw - 1]), -1)
    return (window_max if spec.window == "max" else window_mean)(x, (kh, kw))


def window_max(x: Tensor, window: Pair) -> Tensor:
    r"""The maximum over every window of maps (..., H, W): (..., H - kh + 1, W - kw + 1). Equal ones share the gradient.

    torch's max_pool2d takes two to ten times as long at stride 1, and gives the gradient to the first of equal ones.
    """
    if torch.compiler.is_compiling():
        return _by_torch(F.max_pool2d, x, window)
    top: Tensor = _WindowMax.apply(x, window)
    return top


def window_mean(x: Tensor, window: Pair) -> Tensor:
    r"""The mean over every window of maps (..., H, W), bitwise."""
    if torch.compiler.is_compiling():
        return _by_torch(F.avg_pool2d, x, window)
    precise = widened(x)
    down, right = (
        Axis((1.0,) * k, 0, 1, length - k + 1, length, "zeros") for k, length in zip(window, x.shape[-2:], strict=True)
    )
    return blur_bitwise(precise, (down, right)).to(x.dtype)


def _by_torch(pool: Callable[..., Tensor], x: Tensor, window: Pair) -> Tensor:
    y = pool(x.reshape(1, -1, *x.shape[-2:]), window, 1)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


class _WindowMax(Function):
    @staticmethod
    def forward(x: Tensor, window: Pair) -> Tensor:
        for dim, length in zip((-2, -1), window, strict=True):
            seen = 1
            while seen < length:  # by doubling
                step = min(seen, length - seen)
                rest = x.shape[dim] - step
                x = torch.maximum(x.narrow(dim, 0, rest), x.narrow(dim, step, rest))
                seen += step
        return x if max(window) > 1 else x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.window = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        x, top = ctx.saved_tensors
        places = _places(top.shape, ctx.window)
        hits = [(x[place] == top).to(v.dtype) for place in places]
        share = v / sum(hits[1:], hits[0])
        out = v.new_zeros(x.shape)
        for place, hit in zip(places, hits, strict=True):
            out[place].add_(hit * share)
        return out, None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: None) -> Tensor:
        x, top = ctx.saved_tensors
        places = _places(top.shape, ctx.window)
        hits = [(x[place] == top).to(t.dtype) for place in places]
        moved = [hit * t[place] for hit, place in zip(hits, places, strict=True)]
        return sum(moved[1:], moved[0]) / sum(hits[1:], hits[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, window: Pair) -> tuple[Tensor, int]:  # noqa: ARG004
        return _WindowMax.apply(x.movedim(in_dims[0], 0), window), 0


def _places(size: torch.Size, window: Pair) -> list[tuple[Any, ...]]:
    r"""For each place in a window, where the pixels are that stand there."""
    height, width = size[-2:]
    return [(..., slice(i, i + height), slice(j, j + width)) for i in range(window[0]) for j in range(window[1])]
