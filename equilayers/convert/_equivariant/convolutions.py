r"""The equivariant convolution that takes the place of a plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equilayers.convert._equivariant.dataflow import IMAGE, MIXED, Role
from equilayers.convert._equivariant.fiber_layers import FiberConv2d, FiberMean
from equilayers.groups import Group
from equilayers.nn import BlurPool2d, GroupConv2d, LiftingConv2d

if TYPE_CHECKING:
    from equilayers.convert._equivariant.to_equivariant import Conversion


def convolution(path: str, module: nn.Conv2d, role: Role, how: Conversion) -> nn.Module | str:
    r"""Of a plain convolution; of a strided one it is followed by a blur, and a 1x1 one is preceded by it."""
    if role.fed.kind == MIXED:
        return "it reads the image and features side by side"
    kernel, stride, padding = module.kernel_size, module.stride, module.padding
    if kernel[0] != kernel[1] or (isinstance(padding, tuple) and padding[0] != padding[1]) or stride[0] != stride[1]:
        return "its kernel, stride or padding is not square"
    if module.dilation[0] != module.dilation[1]:
        return "its dilation is not square"
    if padding == "same" and module.dilation[0] * (kernel[0] - 1) % 2:
        return "its padding is larger on one side"
    lifting = role.fed.kind == IMAGE
    inputs = module.in_channels if lifting else how.fields_of(role.fed, module.in_channels)
    outputs = how.fields_out(path, module.out_channels)
    groups = _channel_groups(module, inputs, outputs)
    if groups is None:
        return f"its {module.groups} channel groups do not divide {inputs} fields in and {outputs} out"
    kind = LiftingConv2d if lifting else GroupConv2d
    pad: int | str = padding if isinstance(padding, str) else padding[0]
    conv = kind(
        how.group,
        inputs,
        outputs,
        kernel[0],
        1,
        pad,
        module.dilation[0],
        groups,
        module.bias is not None,
        module.padding_mode,
    ).to(module.weight.device, module.weight.dtype)
    if how.from_weights:
        problem = _take_over(conv, module, image=how.averages(path, module.out_channels))
        if problem:
            return problem
    steps: list[nn.Module] = [FiberConv2d(conv)]
    if stride[0] != 1:
        steps.insert(0 if kernel == (1, 1) and not pad else 1, BlurPool2d(stride=stride[0], algorithm="dense"))
    return _finished(path, steps, module.out_channels, how)


def _finished(path: str, steps: list[nn.Module], channels: int, how: Conversion) -> nn.Module:
    r"""One module of the steps, the mean over fibers behind them where what is put out is an image."""
    if how.averages(path, channels):
        steps.append(FiberMean(how.group.order))
    return steps[0] if len(steps) == 1 else nn.Sequential(*steps)


def transposed(path: str, module: nn.ConvTranspose2d, role: Role, how: Conversion) -> nn.Module | str:
    r"""Of a transposed convolution: pixels are repeated, then convolved, which is symmetric at every size."""
    if role.fed.kind in (IMAGE, MIXED):
        return "it reads the image itself"
    stride = module.stride[0]
    larger = (role.shape[-2] * stride, role.shape[-1] * stride)
    if module.stride[0] != module.stride[1] or role.out[-2:] != larger:
        return f"its output of {role.out[-2:]} is no multiple of its input of {role.shape[-2:]}"
    if how.from_weights:
        return "from_weights has no weights for it"
    kernel = module.kernel_size[0] + (module.kernel_size[0] + 1) % 2
    inputs, outputs = how.fields_of(role.fed, module.in_channels), how.fields_out(path, module.out_channels)
    groups = _channel_groups(module, inputs, outputs)
    if groups is None:
        return f"its {module.groups} channel groups do not divide {inputs} fields in and {outputs} out"
    conv = GroupConv2d(how.group, inputs, outputs, kernel, 1, kernel // 2, 1, groups, module.bias is not None)
    conv = conv.to(module.weight.device, module.weight.dtype)
    return _finished(path, [nn.Upsample(scale_factor=float(stride)), FiberConv2d(conv)], module.out_channels, how)


def _channel_groups(module: nn.Conv2d | nn.ConvTranspose2d, inputs: int, outputs: int) -> int | None:
    r"""The channel groups among fields; None where they do not divide them."""
    if module.groups == 1:
        return 1
    groups = inputs if module.groups == module.in_channels else module.groups  # one for each field
    return groups if inputs % groups == 0 and outputs % groups == 0 else None


def _take_over(conv: LiftingConv2d | GroupConv2d, module: nn.Conv2d, *, image: bool) -> str:
    r"""The weights of the plain convolution, made equivariant; a reason where they do not fit."""
    group, n = conv.group, conv.group.order
    lifting = isinstance(conv, LiftingConv2d)
    planes = conv.out_channels * (1 if image else n)
    fits = module.out_channels == planes and (lifting or module.in_channels == conv.in_channels * n)
    if module.groups > 1 or not fits:
        return f"from_weights takes channels that |G| = {n} divides, and no channel groups"
    with torch.no_grad():
        if not image:
            conv.weight.copy_(projected(module.weight, group, lifting))
        else:  # the mean over the fiber, which follows, is that over the group
            conv.weight.copy_(module.weight if lifting else module.weight.unflatten(1, (-1, n)))
        if module.bias is not None and conv.bias is not None:
            conv.bias.copy_(module.bias if image else module.bias.unflatten(0, (-1, n)).mean(1))
    return ""


def projected(dense: Tensor, group: Group, lifting: bool) -> Tensor:
    r"""The nearest equivariant weight to that of a plain convolution (O·|G|, C·|G| or C, kh, kw): its mean over G.

    `weight[o, c, u] = 1/|G| sum_h h^-1 · dense[(o, h), (c, h u)]`.
    """
    n = group.order
    blocks = dense.unflatten(0, (-1, n))
    blocks = blocks if lifting else blocks.unflatten(2, (-1, n))
    back = []
    for h in range(n):
        block = blocks[:, h]
        if not lifting:
            block = block[:, :, [group.compose(h, u) for u in range(n)]]
        back.append(group.act(group.inverse(h), block))
    return torch.stack(back).mean(0)
