r"""Adaptive polyphase sampling: the content of a map, not its frame, decides which of its pixels are kept.

A map falls into s·s polyphase components, `x[..., i::s, j::s]`. Ordinary striding keeps the one at (0, 0), so a shift
by one pixel keeps others. Here the component with the largest norm is kept: a shift, a turn or a mirror moves the
components about and changes the norm of none, so the same pixels are kept.

Which one that is, `_selection` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import check_float, refuse
from equilayers.functional._geometry import Pair, pair_of
from equilayers.functional._selection import choose, choose_quickly, components

LARGE = 4_000  # numbers of a sample that are worth a call


@overload
def polyphase_pool2d(
    x: Tensor,
    stride: int | Sequence[int] = 2,
    norm: float = 2.0,
    *,
    exact: bool = True,
    return_choice: Literal[False] = False,
) -> Tensor: ...


@overload
def polyphase_pool2d(
    x: Tensor, stride: int | Sequence[int] = 2, norm: float = 2.0, *, exact: bool = True, return_choice: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def polyphase_pool2d(
    x: Tensor,
    stride: int | Sequence[int] = 2,
    norm: float = 2.0,
    *,
    exact: bool = True,
    return_choice: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Keep the polyphase component with the largest norm, sample by sample.

    `y[b] = x[b, ..., i_b::s, j_b::s]`, `(i_b, j_b) = argmax over (i, j) of ||x[b, ..., i::s, j::s]||`

    The norm is taken over channels, fiber and map together. Of components with equal norms the one with the largest
    hash of its content is kept, first a hash that turns and mirrors leave alone, then one that only shifts do; where
    these are equal too, as in constant and periodic images, the first, row by row: then they are shifts of each other.

    Args:
        x: (B, C, H, W) or regular features (B, C, |G|, H, W), floating-point.
        stride: pixels between samples, an int or a pair (height, width).
        norm: p >= 1 of the p-norm, or infinity.
        exact: whether H and W must be multiples of the stride. If not, a map of another size is continued periodically
            to the next multiple, and the law holds no more.
        return_choice: whether to return (i_b, j_b) as well.

    Returns:
        (B, C, ceil(H / s), ceil(W / s)) with the fiber between if there was one, of the dtype and device of x; with
        return_choice also the choice (B, 2), int64.

    Raises:
        TypeError: x is not floating-point.
        ValueError: x of other axes, a stride below 1, a norm below 1, or a map that the stride does not divide.

    Law: for cyclic shifts by (dy, dx), `pool(roll(x)) == roll(pool(x))`, rolled by `((i + dy) // s, (j + dx) // s)`;
        for turns and mirrors g, `pool(act(g, x)) == act(g, pool(x))` (`act_regular` for features): bitwise. Where two
        components are images of each other, as in an image that is its own mirror image, the output may be that image
        as well; what is made of it by invariant layers stays the same.

    Source: Chaman and Dokmanic 2021, Eq. 6 (arXiv:2011.14214); with turns, Xu et al. 2021 (arXiv:2106.05886).
    """
    who = "polyphase_pool2d"
    strides = check_polyphase(who, stride, norm)
    check_float(who, "x", x)
    if x.ndim not in (4, 5) or 0 in x.shape[-2:]:
        refuse(who, "x of shape (B, C, H, W) or (B, C, |G|, H, W)", tuple(x.shape), "Give it a batch of maps.")
    for axis, name, step in (-2, "H", strides[0]), (-1, "W", strides[1]):
        length = x.shape[axis]
        if length % step and exact:
            least = length - length % step
            sizes = f"{least} or {least + step}" if least else f"{step}"
            todo = f"Crop or pad it to {sizes}, or pass exact=False, which gives the law up."
            refuse(who, f"{name} to be a multiple of the stride {step}", length, todo)
        if length % step:
            around = torch.arange(length + step - length % step, device=x.device) % length
            x = x.index_select(axis, around)
    if torch.compiler.is_compiling():
        choice = choose_quickly(x.detach(), strides, float(norm))
        y = components(x, strides)[torch.arange(len(x), device=x.device), choice[:, 0], choice[:, 1]]
    else:
        choice = _Choose.apply(x, strides, float(norm))
        y = _Take.apply(x, choice, strides)
    return (y, choice) if return_choice else y


def polyphase_unpool2d(y: Tensor, choice: Tensor, stride: int | Sequence[int] = 2) -> Tensor:
    r"""Put each sample back to where `polyphase_pool2d` took it from, with zeros between.

    Args:
        y: (B, C, H', W') or (B, C, |G|, H', W').
        choice: (B, 2), int64, as returned with return_choice=True.
        stride: that of the pooling.

    Returns:
        (..., H'·s, W'·s), of the dtype and device of y.

    Raises:
        ValueError: shapes that do not fit, or a choice outside 0..s-1.

    Law: `polyphase_pool2d` with the same choice undoes it exactly, and it is the transpose of that.

    Source: Chaman and Dokmanic 2022, *Truly shift-equivariant convolutional neural networks with adaptive polyphase
        upsampling* (arXiv:2105.04040).
    """
    who = "polyphase_unpool2d"
    strides = check_polyphase(who, stride, 1.0)
    if y.ndim not in (4, 5):
        refuse(who, "y of shape (B, C, H', W') or (B, C, |G|, H', W')", tuple(y.shape), "Give it a batch of maps.")
    if choice.shape != (len(y), 2) or choice.dtype != torch.int64:
        todo = "Take it from polyphase_pool2d(..., return_choice=True)."
        refuse(who, f"choice of shape ({len(y)}, 2) and dtype torch.int64", (tuple(choice.shape), choice.dtype), todo)
    if torch.compiler.is_compiling():
        return _put(y, choice, strides)
    if len(y) and ((choice < 0).any() or (choice >= choice.new_tensor(strides)).any()):
        refuse(who, f"choice within the stride {strides}", choice.tolist(), "Pass the stride of the pooling.")
    x: Tensor = _Put.apply(y, choice, strides)
    return x


def check_polyphase(who: str, stride: int | Sequence[int], norm: float) -> Pair:
    r"""The stride as a pair, of settings that make sense."""
    if not norm >= 1:
        refuse(who, "norm to be a number >= 1 or infinity", norm, "Pass 2.0 for the Euclidean norm.")
    return pair_of(who, "stride", stride, 1)


def _take(x: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    if _by_sample(x):
        return torch.stack([part[_offset(at, strides)] for part, at in zip(x, choice.tolist(), strict=True)])
    return components(x, strides)[torch.arange(len(x), device=x.device), choice[:, 0], choice[:, 1]]


def _put(y: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    sh, sw = strides
    x = y.new_zeros(*y.shape[:-2], y.shape[-2] * sh, y.shape[-1] * sw)
    if _by_sample(x):
        for part, value, at in zip(x, y, choice.tolist(), strict=True):
            part[_offset(at, strides)] = value
    else:
        components(x, strides)[torch.arange(len(y), device=y.device), choice[:, 0], choice[:, 1]] = y
    return x


def _by_sample(x: Tensor) -> bool:
    r"""Whether samples are large enough to be worth a call each."""
    return x.device.type == "cpu" and len(x) > 0 and x[0].numel() >= LARGE


def _offset(at: list[int], strides: Pair) -> tuple[Any, ...]:
    return ..., slice(at[0], None, strides[0]), slice(at[1], None, strides[1])


class _Choose(Function):
    r"""The choice, which has no derivative."""

    @staticmethod
    def forward(x: Tensor, strides: Pair, norm: float) -> Tensor:
        return choose(x, strides, norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[None, ...]:  # noqa: ARG004
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, strides: Pair, norm: float) -> tuple[Tensor, int]:
        rows = _rows(x, in_dims[0], info.batch_size)
        return _Choose.apply(rows.flatten(0, 1), strides, norm).unflatten(0, rows.shape[:2]), 0


class _Take(Function):
    r"""The chosen components y of x; `_Put` is its transpose, so gradients of any order are made of the two."""

    @staticmethod
    def forward(x: Tensor, choice: Tensor, strides: Pair) -> Tensor:
        return _take(x, choice, strides)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, choice, ctx.strides = inputs
        ctx.save_for_backward(choice)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return _Put.apply(v, *ctx.saved_tensors, ctx.strides), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, choice: Tensor, strides: Pair) -> tuple[Tensor, int]:
        return _fold(_Take, info.batch_size, in_dims, x, choice, strides)


class _Put(Function):
    r"""Maps with y at the chosen offsets and zeros elsewhere."""

    @staticmethod
    def forward(y: Tensor, choice: Tensor, strides: Pair) -> Tensor:
        return _put(y, choice, strides)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, choice, ctx.strides = inputs
        ctx.save_for_backward(choice)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        return _Take.apply(u, *ctx.saved_tensors, ctx.strides), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], y: Tensor, choice: Tensor, strides: Pair) -> tuple[Tensor, int]:
        return _fold(_Put, info.batch_size, in_dims, y, choice, strides)


def _rows(x: Tensor, axis: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if axis is None else x.movedim(axis, 0)


def _fold(
    function: type[Function], size: int, in_dims: tuple[Any, ...], x: Tensor, choice: Tensor, strides: Pair
) -> tuple[Tensor, int]:
    r"""A vmap is a longer batch."""
    rows, choices = _rows(x, in_dims[0], size), _rows(choice, in_dims[1], size)
    out = function.apply(rows.flatten(0, 1), choices.flatten(0, 1), strides)
    return out.unflatten(0, rows.shape[:2]), 0
