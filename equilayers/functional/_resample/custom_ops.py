r"""What a compiler cannot look into: operators that it calls as they are, so that compiled layers keep their promises.

`equilayers::blur` and its transpose choose taps by the parity of sizes, which a compiler may hold for symbols;
`equilayers::polyphase_choice` compares norms that must not be rounded otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equilayers.functional._resample import blur as _blur
from equilayers.functional._resample.axes import Reading
from equilayers.functional._resample.selection import choose


@torch.library.custom_op("equilayers::blur", mutates_args=())
def blur(
    x: Tensor,
    caller: str,
    taps: Sequence[float] | None,
    stride: Sequence[int],
    mode: str,
    exact: bool,
    offset: Sequence[int],
    bitwise: bool,
) -> Tensor:
    r"""Blurred and subsampled maps."""
    axes = Reading.of(taps, stride, mode, exact, offset).axes(caller, (x.shape[-2], x.shape[-1]))
    return _blur.blur(x, axes) if bitwise or x.numel() == 0 else _blur.blur_densely(x, axes)


@torch.library.custom_op("equilayers::blur_spread", mutates_args=())
def spread(
    v: Tensor,
    caller: str,
    taps: Sequence[float] | None,
    stride: Sequence[int],
    mode: str,
    exact: bool,
    offset: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    r"""The transpose, for maps of this size."""
    return _blur.spread(v, Reading.of(taps, stride, mode, exact, offset).axes(caller, (size[0], size[1])))


@torch.library.custom_op("equilayers::polyphase_choice", mutates_args=())
def polyphase_choice(x: Tensor, stride: Sequence[int], norm: float) -> Tensor:
    r"""The offsets (B, 2) of the components that are kept."""
    return choose(x, (stride[0], stride[1]), norm)


@blur.register_fake
def _(x: Tensor, caller: str, taps: Any, stride: Any, *settings: Any) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-2], (x.shape[-2] - 1) // stride[0] + 1, (x.shape[-1] - 1) // stride[1] + 1)


@spread.register_fake
def _(v: Tensor, *settings: Any) -> Tensor:
    return v.new_empty(*v.shape[:-2], *settings[-1])


@polyphase_choice.register_fake
def _(x: Tensor, stride: Any, norm: float) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], 2, dtype=torch.int64)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, *ctx.settings, _ = inputs
    ctx.size = list(x.shape[-2:])


def _back(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    return spread(v, *ctx.settings, ctx.size), *[None] * 7


blur.register_autograd(_back, setup_context=_keep)
