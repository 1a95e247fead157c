r"""The equivariant convolution that takes the place of a plain one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert._equivariant.conversion import Conversion
from equilayers.convert._equivariant.dataflow import IMAGE, MIXED, Call
from equilayers.convert._equivariant.fiber_layers import FiberConv2d, FiberDepthwiseConv2d, FiberMean
from equilayers.convert._report import Outcome, Refused, Replaced, distance
from equilayers.functional import expand
from equilayers.groups import Group
from equilayers.nn import BlurPool2d, GroupConv2d, LiftingConv2d

OBLONG = "its kernel, stride or padding is not square"


def convolution(module: nn.Conv2d, call: Call, conversion: Conversion) -> Outcome:
    r"""A lifting or group convolution; of a strided one it is followed by a blur, and a 1x1 one is preceded by it."""
    if call.input.kind == MIXED:
        return Refused("it reads the image and features side by side")
    if module.stride[0] != module.stride[1]:
        return Refused(OBLONG)
    window = _square(module)
    if isinstance(window, Refused):
        return window
    size, pad, dilation = window
    settings = {"padding": pad, "dilation": dilation, "padding_mode": module.padding_mode}
    conv = _over_fields(module, call, conversion, size, **settings)
    if isinstance(conv, Refused):
        return conv
    away = None
    if conversion.from_weights:
        taken = _take_over(conv, module, image=conversion.averages(call.path, module.out_channels))
        if isinstance(taken, Refused):
            return taken
        away = taken
    lifted = call.input.kind != IMAGE
    each = FiberDepthwiseConv2d(conv) if lifted and isinstance(conv, LiftingConv2d) else FiberConv2d(conv)
    steps: list[nn.Module] = [each]
    if module.stride[0] != 1:
        steps.insert(0 if size == 1 and not pad else 1, BlurPool2d(stride=module.stride[0], algorithm="dense"))
    made = _finished(steps, module.out_channels, call, conversion)
    oblong = module.kernel_size[0] != module.kernel_size[1]
    reason = f"a row turned is a column: its filter is {size}x{size}" if oblong else ""
    return Replaced(made.module, reason, away)


def _square(module: nn.Conv2d) -> tuple[int, int | str, int] | Refused:
    r"""Size, padding and dilation of the smallest square filter that holds the filter and puts out maps as large."""
    kernel, padding = module.kernel_size, module.padding
    dilations = {d for d, k in zip(module.dilation, kernel, strict=True) if k > 1} or {1}
    if len(dilations) > 1:
        return Refused("its dilation is not square")
    size, dilation = max(kernel), dilations.pop()
    if padding == "same":
        lopsided = any(dilation * (k - 1) % 2 for k in (*kernel, size))
        return Refused("its padding is larger on one side") if lopsided else (size, "same", dilation)
    pads = (0, 0) if isinstance(padding, str) else padding
    first, second = (2 * p - dilation * (k - 1) for p, k in zip(pads, kernel, strict=True))  # how the map grows
    twice = first + dilation * (size - 1)
    if first != second or twice % 2:
        return Refused(OBLONG)
    return size, twice // 2, dilation


def transposed(module: nn.ConvTranspose2d, call: Call, conversion: Conversion) -> Outcome:
    r"""A transposed convolution: pixels are repeated, then convolved, which is symmetric at every size."""
    if call.input.kind in (IMAGE, MIXED):
        return Refused("it reads the image itself")
    stride = module.stride[0]
    larger = (call.shape[-2] * stride, call.shape[-1] * stride)
    if module.stride[0] != module.stride[1] or call.out[-2:] != larger:
        return Refused(f"its output of {call.out[-2:]} is no multiple of its input of {call.shape[-2:]}")
    if conversion.from_weights:
        return Refused("from_weights has no weights for it")
    kernel = max(module.kernel_size) + (max(module.kernel_size) + 1) % 2
    conv = _over_fields(module, call, conversion, kernel, padding=kernel // 2)
    if isinstance(conv, Refused):
        return conv
    steps = [nn.Upsample(scale_factor=float(stride)), FiberConv2d(conv)]
    return _finished(steps, module.out_channels, call, conversion)


def _finished(steps: list[nn.Module], channels: int, call: Call, conversion: Conversion) -> Replaced:
    r"""One module of the steps, with the mean over fibers behind them where the output is an image."""
    if conversion.averages(call.path, channels):
        steps = [*steps, FiberMean(conversion.group.order)]
    return Replaced(steps[0] if len(steps) == 1 else nn.Sequential(*steps))


def _over_fields(
    module: nn.Conv2d | nn.ConvTranspose2d, call: Call, conversion: Conversion, kernel_size: int, **settings: Any
) -> LiftingConv2d | GroupConv2d | Refused:
    r"""The convolution of as many fields.

    Of a depthwise one each field is a channel group: it lifts each plane by itself, or mixes the planes of the field.
    """
    lifting = call.input.kind == IMAGE
    inputs = module.in_channels if lifting else conversion.fields_of(call.input, module.in_channels)
    outputs = conversion.fields_out(call.path, module.out_channels)
    depthwise = 1 < module.groups == module.in_channels
    groups = inputs if depthwise else module.groups
    lifting |= depthwise and conversion.depthwise == "planes"
    if inputs % groups or outputs % groups:
        return Refused(f"its {module.groups} channel groups do not divide {inputs} fields in and {outputs} out")
    settings |= {"groups": groups, "bias": module.bias is not None}
    conv = (LiftingConv2d if lifting else GroupConv2d)(conversion.group, inputs, outputs, kernel_size, **settings)
    return conv.to(module.weight.device, module.weight.dtype)


def _take_over(conv: LiftingConv2d | GroupConv2d, module: nn.Conv2d, *, image: bool) -> Refused | float:
    r"""Copy the weights of the plain convolution, made equivariant, where they fit; how far they were from it."""
    group, n = conv.group, conv.group.order
    sides = [(conv.spec.kernel_size[0] - k) / 2 for k in module.kernel_size]
    if any(side % 1 for side in sides):
        return Refused("from_weights takes filters with a middle, as even ones have none in odd ones")
    down, right = map(int, sides)
    weight = F.pad(module.weight.detach(), (right, right, down, down))  # zeros around an oblong filter
    lifting = isinstance(conv, LiftingConv2d)
    alone = lifting and module.groups == module.in_channels == module.out_channels  # each channel by itself
    planes = conv.out_channels * (1 if image else n)
    fits = module.out_channels == planes and (lifting or module.in_channels == conv.in_channels * n)
    if (module.groups > 1 and not alone) or not fits:
        return Refused(f"from_weights takes channels that |G| = {n} divides, and no channel groups but single channels")
    with torch.no_grad():
        if not image:
            conv.weight.copy_(projected(weight, group, lifting))
        else:  # the mean over the fiber, which follows, is that over the group
            conv.weight.copy_(weight if lifting else weight.unflatten(1, (-1, n)))
        if module.bias is not None and conv.bias is not None:
            conv.bias.copy_(module.bias if image else module.bias.unflatten(0, (-1, n)).mean(1))
        tied = expand(conv.weight, group)
        return distance(weight, tied.unflatten(0, (-1, n)).mean(1) if image else tied)


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
