r"""The equivariant convolution that takes the place of a plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import Pair
from equilayers.convert._equivariant.conversion import Conversion
from equilayers.convert._equivariant.fiber_layers import FiberConv2d, FiberDepthwiseConv2d, FiberMean, Steps
from equilayers.convert._equivariant.flows import IMAGE, MIXED, Call
from equilayers.convert._equivariant.map_layers import Aligned, FiberConvTranspose2d, FiberMeanConv2d
from equilayers.convert._report import Outcome, Refused, Replaced, distance
from equilayers.functional import expand
from equilayers.functional.strides import split
from equilayers.groups import Group
from equilayers.nn import BlurPool2d, GroupConv2d, GroupConvTranspose2d, LiftingConv2d

OBLONG = "its kernel, stride or padding is not square"


def convolution(module: nn.Conv2d, call: Call, conversion: Conversion) -> Outcome:
    r"""A lifting or group convolution; maps are made ready for its stride, or blurred instead."""
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
    depthwise = call.input.kind != IMAGE and isinstance(conv, LiftingConv2d)
    mean = conversion.averages(call.path, module.out_channels)
    spread = call.path in conversion.spread and not depthwise
    away = None
    if conversion.from_weights:
        taken = _take_over(conv, module, image=mean or spread)
        if isinstance(taken, Refused):
            return taken
        away = taken
    steps: list[nn.Module] = [FiberConv2d(conv)]
    if isinstance(conv, LiftingConv2d) and depthwise:
        steps = [FiberDepthwiseConv2d(conv), *([FiberMean(conversion.group.order)] if mean else [])]
    elif mean or spread:
        steps = [FiberMeanConv2d(conv, spread=not mean)]
    if module.stride[0] != 1 and conversion.blurs:
        steps.insert(0 if size == 1 and not pad else 1, BlurPool2d(stride=module.stride[0], algorithm="dense"))
    elif module.stride[0] != 1:
        before, conv.spec = split(replace(conv.spec, stride=cast(Pair, module.stride)))
        steps.insert(0, Aligned(before))
    oblong = module.kernel_size[0] != module.kernel_size[1]
    reason = f"a row turned is a column: its filter is {size}x{size}" if oblong else ""
    return Replaced(steps[0] if len(steps) == 1 else Steps(*(step for step in steps)), reason, away)


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
    r"""A transposed group convolution; where a pixel is appended to one side, one of a larger map that is blurred."""
    if call.input.kind in (IMAGE, MIXED):
        return Refused("it reads the image itself")
    window = _square_transposed(module, call)
    if isinstance(window, Refused):
        return window
    size, pad, blurred = window
    inputs = conversion.fields_of(call.input, module.in_channels)
    outputs = conversion.fields_out(call.path, module.out_channels)
    groups = _channel_groups(module, inputs, outputs)
    if isinstance(groups, Refused):
        return groups
    settings: dict[str, Any] = {"padding": pad, "groups": groups, "bias": module.bias is not None}
    settings |= {"stride": module.stride[0], "dilation": module.dilation[0]}
    conv = GroupConvTranspose2d(conversion.group, inputs, outputs, size, **settings)
    conv.to(module.weight.device, module.weight.dtype)
    mean = conversion.averages(call.path, module.out_channels)
    made = FiberConvTranspose2d(conv, (blurred, blurred), mean=mean)
    taken = _take_over_transposed(conv, module, image=mean) if conversion.from_weights else None
    return taken if isinstance(taken, Refused) else Replaced(made, distance=taken)


def _square_transposed(module: nn.ConvTranspose2d, call: Call) -> tuple[int, int, bool] | Refused:
    r"""Size and padding of a square filter that holds the filter, and whether its output is a pixel too large.

    An input of H pixels gives `(H - 1)·s + 1 + t`, with `t = d(k - 1) - 2p + output_padding`.
    """
    pads, dilations = cast(Pair, module.padding), module.dilation
    settings = zip(module.kernel_size, pads, dilations, module.output_padding, strict=True)
    larger, other = (d * (k - 1) - 2 * p + extra for k, p, d, extra in settings)
    dilation, stride = dilations[0], module.stride[0]
    if module.stride[1] != stride or dilations[1] != dilation or larger != other:
        return Refused(OBLONG)
    down, right = ((length - 1) * stride + 1 + larger for length in call.shape[-2:])
    if call.out[-2:] != (down, right):
        return Refused(f"it was asked for an output of {call.out[-2:]}, and gives {(down, right)} by itself")
    size = max(module.kernel_size)
    while dilation * (size - 1) < larger:
        size += 1
    room = dilation * (size - 1) - larger
    if room % 2 and dilation > 1:
        return Refused("its output_padding has no middle between its taps")
    return size, room // 2, bool(room % 2)


def _over_fields(
    module: nn.Conv2d, call: Call, conversion: Conversion, kernel_size: int, **settings: Any
) -> LiftingConv2d | GroupConv2d | Refused:
    r"""The convolution of as many fields.

    Of a depthwise one each field is a channel group: it lifts each plane by itself, or mixes the planes of the field.
    """
    lifting = call.input.kind == IMAGE
    inputs = module.in_channels if lifting else conversion.fields_of(call.input, module.in_channels)
    outputs = conversion.fields_out(call.path, module.out_channels)
    groups = _channel_groups(module, inputs, outputs)
    if isinstance(groups, Refused):
        return groups
    lifting |= 1 < module.groups == module.in_channels and conversion.depthwise == "planes"
    settings |= {"groups": groups, "bias": module.bias is not None}
    conv = (LiftingConv2d if lifting else GroupConv2d)(conversion.group, inputs, outputs, kernel_size, **settings)
    return conv.to(module.weight.device, module.weight.dtype)


def _channel_groups(module: nn.Conv2d | nn.ConvTranspose2d, inputs: int, outputs: int) -> int | Refused:
    r"""As many as the module has, or one for each field of a depthwise one."""
    groups = inputs if 1 < module.groups == module.in_channels else module.groups
    if inputs % groups or outputs % groups:
        return Refused(f"its {module.groups} channel groups do not divide {inputs} fields in and {outputs} out")
    return groups


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


def _take_over_transposed(conv: GroupConvTranspose2d, module: nn.ConvTranspose2d, *, image: bool) -> Refused | float:
    r"""The same of a transposed convolution, whose weight has its inputs first."""
    group, n, size = conv.group, conv.group.order, conv.spec.conv.kernel_size[0]
    sides = [(size - k) / 2 for k in module.kernel_size]
    if any(side % 1 for side in sides):
        return Refused("from_weights takes filters with a middle, as even ones have none in odd ones")
    down, right = map(int, sides)
    weight = F.pad(module.weight.detach(), (right, right, down, down))
    fits = module.in_channels == conv.in_channels * n and module.out_channels == conv.out_channels * (1 if image else n)
    if module.groups > 1 or not fits:
        return Refused(f"from_weights takes channels that |G| = {n} divides, and no channel groups")
    with torch.no_grad():
        if image:  # of the mean over the fiber, plane u of the input meets u times the mean of u^-1 its filter
            planes = weight.unflatten(0, (-1, n))
            conv.weight.copy_(torch.stack([group.act(group.inverse(u), planes[:, u]) for u in range(n)], 2))
        else:
            conv.weight.copy_(projected(weight, group, lifting=False))
        if module.bias is not None and conv.bias is not None:
            conv.bias.copy_(module.bias if image else module.bias.unflatten(0, (-1, n)).mean(1))
        tied = expand(conv.weight, group)
        return distance(weight, tied.unflatten(1, (-1, n)).mean(2) if image else tied)


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
