r"""Taking the chosen polyphase component of each sample, and putting it back: two transposed maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import Pair, refuse
from equilayers.functional._resample.selection import choose, components

LARGE = 4_000  # numbers of a sample that are worth a call


def take_by_index(x: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    r"""The chosen components."""
    return components(x, strides)[torch.arange(x.shape[0], device=x.device), choice[:, 0], choice[:, 1]]


def put_by_index(y: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    r"""Maps with the chosen components."""
    x = y.new_zeros(*y.shape[:-2], y.shape[-2] * strides[0], y.shape[-1] * strides[1])
    components(x, strides)[torch.arange(y.shape[0], device=y.device), choice[:, 0], choice[:, 1]] = y
    return x


def _take(x: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    if not _by_sample(x):
        return take_by_index(x, choice, strides)
    return torch.stack([part[_offset(at, strides)] for part, at in zip(x, choice.tolist(), strict=True)])


def _put(y: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    if y.device.type == "cpu" and ((choice < 0) | (choice >= torch.tensor(strides))).any():
        caller, hint = "polyphase_unpool2d", "Pass the stride of the pooling."
        refuse(caller, f"choice within the stride {strides}", choice.tolist(), hint)
    if not _by_sample(y):
        return put_by_index(y, choice, strides)
    x = y.new_zeros(*y.shape[:-2], y.shape[-2] * strides[0], y.shape[-1] * strides[1])
    for part, value, at in zip(x, y, choice.tolist(), strict=True):
        part[_offset(at, strides)] = value
    return x


def _by_sample(x: Tensor) -> bool:
    r"""Whether samples are large enough to be worth a call each."""
    return x.device.type == "cpu" and len(x) > 0 and x[0].numel() >= LARGE


def _offset(at: list[int], strides: Pair) -> tuple[Any, ...]:
    return ..., slice(at[0], None, strides[0]), slice(at[1], None, strides[1])


class Choose(Function):
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
    def jvp(ctx: Any, *_: Any) -> None:  # noqa: ARG004
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, strides: Pair, norm: float) -> tuple[Tensor, int]:
        rows = _rows(x, in_dims[0], info.batch_size)
        return Choose.apply(rows.flatten(0, 1), strides, norm).unflatten(0, rows.shape[:2]), 0


class Take(Function):
    r"""The chosen components y of x; `Put` is its transpose, so gradients of any order are made of the two."""

    @staticmethod
    def forward(x: Tensor, choice: Tensor, strides: Pair) -> Tensor:
        return _take(x, choice, strides)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, choice, ctx.strides = inputs
        ctx.save_for_backward(choice)
        ctx.save_for_forward(choice)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return Put.apply(v, *ctx.saved_tensors, ctx.strides), None, None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, *_: None) -> Tensor:
        return Take.apply(t, *ctx.saved_tensors, ctx.strides)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, choice: Tensor, strides: Pair) -> tuple[Tensor, int]:
        return _fold(Take, info.batch_size, in_dims, x, choice, strides)


class Put(Function):
    r"""Maps with y at the chosen offsets and zeros elsewhere."""

    @staticmethod
    def forward(y: Tensor, choice: Tensor, strides: Pair) -> Tensor:
        return _put(y, choice, strides)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, choice, ctx.strides = inputs
        ctx.save_for_backward(choice)
        ctx.save_for_forward(choice)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        return Take.apply(u, *ctx.saved_tensors, ctx.strides), None, None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, *_: None) -> Tensor:
        return Put.apply(t, *ctx.saved_tensors, ctx.strides)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], y: Tensor, choice: Tensor, strides: Pair) -> tuple[Tensor, int]:
        return _fold(Put, info.batch_size, in_dims, y, choice, strides)


def _rows(x: Tensor, axis: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if axis is None else x.movedim(axis, 0)


def _fold(
    function: type[Function], size: int, in_dims: tuple[Any, ...], x: Tensor, choice: Tensor, strides: Pair
) -> tuple[Tensor, int]:
    r"""A vmap is a longer batch."""
    rows, choices = _rows(x, in_dims[0], size), _rows(choice, in_dims[1], size)
    out = function.apply(rows.flatten(0, 1), choices.flatten(0, 1), strides)
    return out.unflatten(0, rows.shape[:2]), 0
