r"""The transform of a group convolution as operators that a compiler calls as they are.

They work in blocks that the caches hold, as outside a compiler. Of the same sums in ordinary operations Inductor makes
code for whole batches, and takes a minute for one layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._convolution.pattern_kernel import PatternKernel
from equilayers.functional._fourier.transforms import Butterflies, fast_fourier_of
from equilayers.groups import group_from_name

# sizes: (height, width) of the kernel, stride, padding, dilation, and of the input.
CONVOLUTION = "(Tensor x, Tensor weight, Tensor? bias, str group, SymInt[] sizes) -> Tensor"
ADJOINT = "(Tensor v, Tensor weight, str group, SymInt[] sizes) -> Tensor"
GRADIENT = "(Tensor v, Tensor x, str group, SymInt[] sizes) -> Tensor"


def pattern_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    r"""The group convolution of x (B, C, |G|, H, W) with zero padding, channel group by channel group."""
    sizes = [*spec.kernel_size, *spec.stride, *spec.padding, *spec.dilation, *x.shape[-2:]]
    group, groups = spec.group.name, spec.groups
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    made = [pattern_conv(part, w, b, group, sizes) for part, w, b in parts]
    return made[0] if groups == 1 else torch.cat(made, 1)


@torch.library.custom_op("equilayers::pattern_conv", mutates_args=(), schema=CONVOLUTION)
def pattern_conv(x: Tensor, weight: Tensor, bias: Tensor | None, group: str, sizes: Sequence[int]) -> Tensor:
    r"""`PatternKernel.correlate`."""
    return _kernel(group, tuple(sizes)).correlate(x, weight, bias)


@torch.library.custom_op("equilayers::pattern_conv_adjoint", mutates_args=(), schema=ADJOINT)
def adjoint(v: Tensor, weight: Tensor, group: str, sizes: Sequence[int]) -> Tensor:
    r"""`PatternKernel.input_adjoint`."""
    kernel = _kernel(group, tuple(sizes))
    x = kernel.input_adjoint(v, weight)
    return x if kernel.spec.stride == (1, 1) else x.clone(memory_format=torch.channels_last_3d)


@torch.library.custom_op("equilayers::pattern_conv_gradient", mutates_args=(), schema=GRADIENT)
def gradient(v: Tensor, x: Tensor, group: str, sizes: Sequence[int]) -> Tensor:
    r"""`PatternKernel.weight_gradient`."""
    return _kernel(group, tuple(sizes)).weight_gradient(v, x)


@functools.lru_cache(maxsize=256)
def _kernel(group: str, sizes: tuple[int, ...]) -> PatternKernel:
    kernel, stride, padding, dilation, size = zip(sizes[::2], sizes[1::2], strict=True)
    spec = ConvSpec(group_from_name(group), False, kernel, stride, padding, dilation, algorithm="fourier")
    return PatternKernel(spec, cast(Butterflies, fast_fourier_of(spec.group)), size)


@pattern_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, group: str, sizes: Any) -> Tensor:  # noqa: ARG001
    out = [(sizes[8 + i] + 2 * sizes[4 + i] - sizes[6 + i] * (sizes[i] - 1) - 1) // sizes[2 + i] + 1 for i in range(2)]
    return _feature(x, (x.shape[0], weight.shape[0], x.shape[2], *out))


@adjoint.register_fake
def _(v: Tensor, weight: Tensor, group: str, sizes: Any) -> Tensor:  # noqa: ARG001
    return _feature(v, (v.shape[0], weight.shape[1], v.shape[2], *sizes[-2:]))


@gradient.register_fake
def _(v: Tensor, x: Tensor, group: str, sizes: Any) -> Tensor:  # noqa: ARG001
    return v.new_empty(v.shape[1], *x.shape[1:3], *sizes[:2])


def _feature(like: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])
    ctx.group, ctx.sizes = inputs[-2:]


# The three are each other's derivatives, see `_fourier.autograd`.
def _of_convolution(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), needed = ctx.saved_tensors, ctx.needs_input_grad
    dx = adjoint(v, weight, ctx.group, ctx.sizes) if needed[0] else None
    dw = gradient(v, x, ctx.group, ctx.sizes) if needed[1] else None
    return dx, dw, v.sum((0, 2, 3, 4)) if needed[2] else None, None, None


def _of_adjoint(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    (v, weight), needed = ctx.saved_tensors, ctx.needs_input_grad
    dv = pattern_conv(u, weight, None, ctx.group, ctx.sizes) if needed[0] else None
    return dv, gradient(v, u, ctx.group, ctx.sizes) if needed[1] else None, None, None


def _of_gradient(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    (v, x), needed = ctx.saved_tensors, ctx.needs_input_grad
    dv = pattern_conv(x, u, None, ctx.group, ctx.sizes) if needed[0] else None
    return dv, adjoint(v, u, ctx.group, ctx.sizes) if needed[1] else None, None, None


pattern_conv.register_autograd(_of_convolution, setup_context=_keep)
adjoint.register_autograd(_of_adjoint, setup_context=_keep)
gradient.register_autograd(_of_gradient, setup_context=_keep)
