r"""What a compiler cannot look into: operators that it calls as they are, so that compiled layers keep their promises.

`equilayers::blur` and its transpose choose taps by the parity of sizes, which a compiler may hold for symbols;
`equilayers::polyphase_choice` compares norms that must not be rounded otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._resample.axes import Axis, BlurSpec, check_grid
from equilayers.functional._resample.blur import blur_adjoint, blur_densely, blur_forward
from equilayers.functional._resample.selection import choose

# Written out, since older torches read no annotation with `|`.
SETTINGS = "float[]? taps, SymInt[] steps, str mode, bool exact"
BLUR = f"(Tensor x, {SETTINGS}, bool bitwise) -> Tensor"
ADJOINT = f"(Tensor v, {SETTINGS}, SymInt[] size) -> Tensor"
CHOICE = "(Tensor x, SymInt[] stride, float norm) -> Tensor"


@torch.library.custom_op("equilayers::blur", mutates_args=(), schema=BLUR)
def blur(
    x: Tensor, taps: Sequence[float] | None, steps: Sequence[int], mode: str, exact: bool, bitwise: bool
) -> Tensor:
    r"""Blurred and subsampled maps; steps are the stride and the kernel size, height before width."""
    axes = _axes((x.shape[-2], x.shape[-1]), taps, steps, mode, exact)
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-2], axes[0].count, axes[1].count)
    return blur_forward(x, axes) if bitwise else blur_densely(x, axes)


@torch.library.custom_op("equilayers::blur_adjoint", mutates_args=(), schema=ADJOINT)
def adjoint(
    v: Tensor, taps: Sequence[float] | None, steps: Sequence[int], mode: str, exact: bool, size: Sequence[int]
) -> Tensor:
    r"""The transpose, for maps of this size."""
    axes = _axes((size[0], size[1]), taps, steps, mode, exact)
    return blur_adjoint(v, axes) if v.numel() else v.new_empty(*v.shape[:-2], *size)


def _axes(size: Pair, taps: Sequence[float] | None, steps: Sequence[int], mode: str, exact: bool) -> tuple[Axis, Axis]:
    weights, (sh, sw, kh, kw) = None if taps is None else tuple(taps), steps
    spec = BlurSpec(weights, (sh, sw), mode, exact, kernel_size=(kh, kw))
    check_grid("blur_pool2d", spec, size)
    return spec.axes(size)


@torch.library.custom_op("equilayers::polyphase_choice", mutates_args=(), schema=CHOICE)
def polyphase_choice(x: Tensor, stride: Sequence[int], norm: float) -> Tensor:
    r"""The offsets (B, 2) of the components that are kept."""
    return choose(x, (stride[0], stride[1]), norm)


@polyphase_choice.register_vmap
def _(info: Any, in_dims: Any, x: Tensor, stride: Any, norm: float) -> tuple[Tensor, int]:  # noqa: ARG001
    rows = x.movedim(in_dims[0], 0)
    choice: Tensor = polyphase_choice(rows.flatten(0, 1), stride, norm)
    return choice.unflatten(0, rows.shape[:2]), 0


@blur.register_fake
def _(x: Tensor, taps: Any, steps: Any, *settings: Any) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-2], (x.shape[-2] - 1) // steps[0] + 1, (x.shape[-1] - 1) // steps[1] + 1)


@adjoint.register_fake
def _(v: Tensor, *settings: Any) -> Tensor:
    return v.new_empty(*v.shape[:-2], *settings[-1])


@polyphase_choice.register_fake
def _(x: Tensor, stride: Any, norm: float) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], 2, dtype=torch.int64)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, taps, steps, mode, exact, _ = inputs
    ctx.settings, ctx.size = {"taps": taps, "steps": steps, "mode": mode, "exact": exact}, list(x.shape[-2:])


def _back(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    return adjoint(v, **ctx.settings, size=ctx.size), None, None, None, None, None


blur.register_autograd(_back, setup_context=_keep)
