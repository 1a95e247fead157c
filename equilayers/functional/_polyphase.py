r"""Adaptive polyphase sampling: the content of a map, not its frame, decides which of its pixels are kept.

A map falls into s·s polyphase components, `x[..., i::s, j::s]`. Ordinary striding keeps the one at (0, 0), so a shift
by one pixel keeps others. Here the component with the largest norm is kept: a shift, a turn or a mirror moves the
components about and changes the norm of none, so the same pixels are kept.

Which one that is, `_selection` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from equilayers._checks import Pair, check_float, check_tensor, is_exporting, overridable, pair_of, refuse
from equilayers.functional._resample.gather import fits, put, take
from equilayers.functional._resample.selection import choose_quickly


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


@overridable
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
    hash of its content is kept: first of a hash that turns and mirrors leave alone, then of one that turns do, half
    turns, and shifts only. Where all are equal, as in constant and periodic images, they are shifts of each other, and
    the first is kept, row by row.

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
        as well; what layers make of it that are invariant to shifts and to C2, C4 or D4 stays the same. (To mirrors
        without quarter turns, D1 or D2, an image with a quarter turn of its own may look different.)
        In graphs that leave torch (torch.export, ONNX) the norms are rounded, and of components with equal norms the
        first is kept: there the law holds wherever one norm stands out.

    Source: Chaman and Dokmanic 2021, Eq. 6 (arXiv:2011.14214); with turns, Xu et al. 2021 (arXiv:2106.05886).
    """
    caller = "polyphase_pool2d"
    strides = check_polyphase(caller, stride, norm)
    check_float(caller, "x", x)
    if x.ndim not in (4, 5) or 0 in x.shape[-2:]:
        refuse(caller, "x of shape (B, C, H, W) or (B, C, |G|, H, W)", tuple(x.shape), "Give it a batch of maps.")
    for axis, name, step in (-2, "H", strides[0]), (-1, "W", strides[1]):
        length = x.shape[axis]
        if length % step and exact:
            least = length - length % step
            sizes = f"{least} or {least + step}" if least else f"{step}"
            hint = f"Crop or pad it to {sizes}, or pass exact=False, which gives the law up."
            refuse(caller, f"{name} to be a multiple of the stride {step}", length, hint)
        if length % step:
            around = torch.arange(length + step - length % step, device=x.device) % length
            x = x.index_select(axis, around)
    fixed = x.detach()  # the choice has no derivative
    choice = (
        choose_quickly(fixed, strides, float(norm))
        if is_exporting()
        else torch.ops.equilayers.polyphase_choice(fixed, list(strides), float(norm))
    )
    y = take(x, choice, strides)
    return (y, choice) if return_choice else y


@overridable
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
    caller = "polyphase_unpool2d"
    strides = check_polyphase(caller, stride, 1.0)
    check_tensor(caller, "y", y)
    check_tensor(caller, "choice", choice)
    if y.ndim not in (4, 5):
        refuse(caller, "y of shape (B, C, H', W') or (B, C, |G|, H', W')", tuple(y.shape), "Give it a batch of maps.")
    if choice.shape != (y.shape[0], 2) or choice.dtype != torch.int64:
        hint = "Take it from polyphase_pool2d(..., return_choice=True)."
        refuse(
            caller,
            f"choice of shape ({y.shape[0]}, 2) and dtype torch.int64",
            (tuple(choice.shape), choice.dtype),
            hint,
        )
    if not fits(choice, strides):
        refuse(caller, f"choice within the stride {strides}", choice.tolist(), "Pass the stride of the pooling.")
    return put(y, choice, strides)


def check_polyphase(caller: str, stride: int | Sequence[int], norm: float) -> Pair:
    r"""The stride as a pair, of settings that make sense."""
    if isinstance(norm, bool) or not isinstance(norm, int | float):
        refuse(caller, "norm to be a number", repr(norm), "Pass 2.0 for the Euclidean norm.", TypeError)
    if not norm >= 1:
        refuse(caller, "norm to be a number >= 1 or infinity", norm, "Pass 2.0 for the Euclidean norm.")
    return pair_of(caller, "stride", stride, 1)
