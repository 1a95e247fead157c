r"""The counterpart of each escnn module: a function of the module, the fields it takes, and its name for errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers.interop._escnn_fields import Fields, escnn_nn, fields_of
from equilayers.nn import GroupConv2d, GroupConvTranspose2d, GroupUpsample, LiftingConv2d, OrbitPool

Builder = Callable[[Any, Fields, str], nn.Module]

POINTWISE = {"relu": nn.ReLU, "elu": nn.ELU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def counterparts() -> dict[type, Builder]:
    r"""The modules of escnn that have a counterpart, and the function that builds it."""
    library = escnn_nn()
    return {
        library.R2Conv: _convolution,
        library.R2ConvTransposed: _transposed,
        library.R2Upsampling: _upsampling,
        library.InnerBatchNorm: _batch_norm,
        library.GroupPooling: lambda _, fields, __: OrbitPool("max") if fields.regular else nn.Identity(),
        library.PointwiseMaxPool2D: _pool(nn.MaxPool2d, nn.MaxPool3d, kernel_size=1, stride=1, padding=0, dilation=1),
        library.PointwiseAvgPool2D: _pool(nn.AvgPool2d, nn.AvgPool3d, kernel_size=1, stride=1, padding=0),
        library.PointwiseAdaptiveMaxPool2D: _pool(nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, output_size=None),
        library.PointwiseAdaptiveAvgPool2D: _pool(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, output_size=None),
        library.ReLU: lambda module, *_: nn.ReLU(module._inplace),
        library.ELU: lambda module, *_: nn.ELU(module.alpha, module._inplace),
        library.LeakyReLU: lambda module, *_: nn.LeakyReLU(module._negative_slope, module._inplace),
        library.PointwiseNonLinearity: lambda module, *_: POINTWISE[module._function.__name__](),
        library.PointwiseDropout: lambda module, *_: nn.Dropout(module.p, module.inplace),
        library.IdentityModule: lambda *_: nn.Identity(),
    }


def blocks_and_bias(module: Any, source: Fields, target: Fields) -> tuple[Tensor, Tensor | None]:
    r"""The filter (O, t, C/groups, s, kh, kw) with its fibers in our order, and the bias (O,), as detached copies.

    Of a transposed convolution (C, s, O/groups, t, kh, kw).
    """
    rows, columns = (source, target) if isinstance(module, escnn_nn().R2ConvTransposed) else (target, source)
    with torch.no_grad():
        weight, bias = module.expand_parameters() if module.training else (module.filter, module.expanded_bias)
        blocks = weight.unflatten(0, (rows.channels, -1)).unflatten(2, (-1, len(columns.places)))
        blocks = blocks[:, rows.places][:, :, :, columns.places]
        return blocks, None if bias is None else bias.view(target.channels, -1)[:, 0].clone()


def _convolution(module: Any, source: Fields, what: str) -> nn.Module:
    target = fields_of("from_escnn", f"{what} (R2Conv)", module.out_type)
    blocks, bias = blocks_and_bias(module, source, target)
    weight = _tied_weight(blocks, source, f"{what} (R2Conv)")
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    settings: dict[str, Any] = {name: getattr(module, name) for name in names}
    settings |= {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    layer: nn.Module
    if source.regular:
        layer = GroupConv2d(source.group, source.channels, target.channels, **settings)
    elif target.regular or module.kernel_size != 1 or module.stride not in (1, (1, 1)):
        layer = LiftingConv2d(source.group, source.channels, target.channels, **settings)
    else:
        layer = nn.Conv2d(source.channels, target.channels, **settings)
    layer.weight = nn.Parameter(weight, requires_grad=module.weights.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=module.bias.requires_grad)
    # The mean over the orbit of a filter that the group leaves as it is: the filter itself, and exact.
    return layer if target.regular or isinstance(layer, nn.Conv2d) else nn.Sequential(layer, OrbitPool("mean"))


def _transposed(module: Any, source: Fields, what: str) -> nn.Module:
    described = f"{what} (R2ConvTransposed)"
    target = fields_of("from_escnn", described, module.out_type)
    if not source.regular or not target.regular:
        hint = "Put an R2Conv between them and it."
        refuse("from_escnn", f"{described} between regular fields", "trivial ones", hint)
    blocks, bias = blocks_and_bias(module, source, target)
    weight = _tied_weight(blocks, target, described)
    names = ("kernel_size", "stride", "padding", "output_padding", "groups", "dilation")
    settings: dict[str, Any] = {name: getattr(module, name) for name in names}
    settings |= {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    layer = GroupConvTranspose2d(source.group, source.channels, target.channels, **settings)
    layer.weight = nn.Parameter(weight, requires_grad=module.weights.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=module.bias.requires_grad)
    return layer


def _upsampling(module: Any, _: Fields, what: str) -> nn.Module:
    scale, corners = module._scale_factor, module._align_corners
    if scale is not None and not corners and scale % 1:
        hint = "There the places of its pixels follow from the factor, and are not symmetric: pass it a size."
        refuse("from_escnn", f"{what} (R2Upsampling) to have a whole scale_factor", scale, hint)
    return GroupUpsample(module._size, scale, module._mode, corners)


def _tied_weight(blocks: Tensor, source: Fields, what: str) -> Tensor:
    r"""The weight (O, C, kh, kw) or (O, C, |G|, kh, kw) that the blocks are images of; ValueError if they are not."""
    group = source.group
    blocks = blocks if source.regular else blocks.squeeze(3)
    weight = blocks[:, 0].contiguous()
    move = group.act_regular if source.regular else group.act
    expansion = torch.stack([move(h, weight) for h in range(group.order)], 1)
    deviation, largest = (blocks - expansion).abs().max(), blocks.abs().max()
    if deviation > max(1e-4, 2 * torch.finfo(blocks.dtype).eps) * largest:
        got = f"one that is off by {float(deviation / largest):.1g} of its largest entry"
        hint = "Call train() and then eval() on it, so that escnn expands the filter from the weights again."
        refuse("from_escnn", f"{what} to have an equivariant filter", got, hint)
    return weight


def _batch_norm(module: Any, fields: Fields, _: str) -> nn.Module:
    theirs = getattr(module, f"batch_norm_[{len(fields.places)}]")
    kind = nn.BatchNorm3d if fields.regular else nn.BatchNorm2d
    ours = kind(fields.channels, theirs.eps, theirs.momentum, theirs.affine, theirs.track_running_stats)
    for name, parameter in theirs.named_parameters():
        setattr(ours, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    for name, buffer in theirs.named_buffers():
        setattr(ours, name, buffer.clone())
    return ours


def _pool(plane: Callable[..., nn.Module], solid: Callable[..., nn.Module], **over_fiber: int | None) -> Builder:
    r"""What makes a pool of the kind `solid`, with these settings along the fiber, or `plane` where there is none."""

    def make(module: Any, fields: Fields, _: str) -> nn.Module:
        fiber = {name: (size,) if fields.regular else () for name, size in over_fiber.items()}
        settings: dict[str, Any] = {name: (*size, *getattr(module, name)) for name, size in fiber.items()}
        if "kernel_size" in settings:
            settings["ceil_mode"] = module.ceil_mode
        return (solid if fields.regular else plane)(**settings)

    return make
