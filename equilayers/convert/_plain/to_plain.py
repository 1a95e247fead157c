r"""Everything of ours folded into torch's own modules, for deployment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equilayers import nn as ours
from equilayers._checks import refuse
from equilayers.convert._equivariant.attention import FiberMultiheadAttention
from equilayers.convert._equivariant.fiber_layers import (
    FiberConv2d,
    FiberDepthwiseConv2d,
    FiberLayer,
    FiberLinear,
    FiberMean,
    Steps,
)
from equilayers.convert._equivariant.map_layers import Aligned, FiberConvTranspose2d, FiberMeanConv2d, FiberPixelShuffle
from equilayers.convert._equivariant.softness import Soft, settled
from equilayers.convert._equivariant.ties import Tied
from equilayers.convert._equivariant.token_layers import FiberTokenLinear, TiedLinear
from equilayers.convert._plain.blur_graphs import alignment, blur
from equilayers.convert._plain.graphs import (
    averaged,
    graph,
    magnitude_relu,
    polyphase,
    unpolyphase,
    upsampling,
    vector_lifting,
    vector_reading,
)
from equilayers.convert._report import copied
from equilayers.convert._symmetrize import Symmetrized
from equilayers.functional import expand, expand_matrix
from equilayers.functional.vector_maps import expanded_field


def to_plain(model: nn.Module) -> nn.Module:
    r"""A copy of the model in torch's own modules, which computes the same and needs nothing of this library.

    Weight-tied layers become nn.Linear and nn.Conv2d with the expanded weight, between nn.Flatten and nn.Unflatten;
    pools and blurs become graphs of torch's operations (torch.fx); the layers of converted models become nn.Conv2d,
    nn.BatchNorm2d and nn.Linear alone. Names of submodules stay, those of parameters may not.

    Args:
        model: any module; it is not changed. It should be in the mode it is deployed in.

    Returns:
        The plain model, of the mode, dtype and device of the model. Expanded weights have |G| times as many numbers.

    Raises:
        TypeError: model is no module, or it has a module of ours without a plain form: a subclass with a forward of
            its own, or a loss.
        ValueError: a layer of ours with hooks, which would be lost.

    Law: `to_plain(f)(x) == f(x)` to rounding, for every x that f takes, in eval mode. In training mode batch
        normalisation of converted models would take its statistics channel by channel, and gradients do not keep
        weights tied. `PolyphasePool2d`, where components have equal norms, may keep another of them.

        Sizes that a layer refuses because the law of equivariance would not hold are not refused any more.
    """
    if not isinstance(model, nn.Module):
        refuse("to_plain", "model to be a torch.nn.Module", type(model).__name__, "Wrap it in one.", TypeError)
    with torch.no_grad():
        return _Plain().of(settled(copied("to_plain", model), (Soft, Tied)), "")


class _Plain:
    r"""One conversion: what became of each module, so that a shared one stays shared."""

    def __init__(self) -> None:
        self.made: dict[nn.Module, nn.Module] = {}

    def of(self, module: nn.Module, path: str) -> nn.Module:
        r"""The plain form of a module, then of what is in it."""
        if module not in self.made:
            new = self._converted(module, path)
            self.made[module] = self.made[new] = new
            for name, child in new._modules.items():
                if child is not None:
                    new._modules[name] = self.of(child, f"{path}.{name}".lstrip("."))
        return self.made[module]

    def _converted(self, module: nn.Module, path: str) -> nn.Module:
        kind = next((kind for kind in PLAIN if isinstance(module, kind)), None)
        if kind is None and not type(module).__module__.startswith("equilayers."):
            return module
        where = f"{type(module).__name__} at '{path}'"
        if kind is None or type(module).forward is not kind.forward:
            hint = "Take it out, or replace it by modules of torch."
            refuse("to_plain", "layers of equilayers that have a plain form", where, hint, TypeError)
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            refuse("to_plain", "layers of equilayers without hooks", where, "They would be lost: remove them before.")
        modes = {part: part.training for part in module.modules()}
        new = PLAIN[kind](module).train(module.training)
        for part, training in modes.items():  # of those that are in the new one too
            part.training = training
        return new


def _conv(layer: ours.LiftingConv2d | ours.GroupConv2d) -> nn.Conv2d:
    r"""The convolution with the expanded filter, fibers in the channels."""
    return _filled(_unfilled_conv(layer, expand(layer.weight, layer.group), layer.weight), layer)


def _aligned(layer: Aligned) -> nn.Module:
    return alignment(layer.spec)


def _mean_conv(layer: FiberMeanConv2d) -> nn.Module:
    r"""A convolution to images, which may stand in every plane of a fiber."""
    conv, n = layer.conv, layer.conv.group.order
    made = _unfilled_conv(conv, layer.filters(), conv.weight)
    if conv.bias is not None:
        made.bias = _parameter(conv.bias, conv.bias)
    return nn.Sequential(made, graph("Spread", lambda x: x.repeat_interleave(n, 1))) if layer.spread else made


def _fiber_transposed(layer: FiberConvTranspose2d) -> nn.Module:
    r"""The transposed convolution with the expanded filter, blurred, to fibers in the channels or to images."""
    made = _unfilled_transposed(layer.spec, layer.filters(), layer.conv)
    if layer.conv.bias is not None:
        made.bias = _parameter(
            layer.conv.bias.repeat_interleave(1 if layer.mean else layer.conv.group.order), layer.conv.bias
        )
    return made


def _unfilled_transposed(spec: Any, filters: Tensor, layer: ours.GroupConvTranspose2d) -> nn.ConvTranspose2d:
    names = ("kernel_size", "stride", "padding", "dilation", "groups")
    settings = {name: getattr(spec.conv, name) for name in names} | {"output_padding": spec.output_padding}
    channels = filters.shape[0], filters.shape[1] * spec.conv.groups
    made = nn.ConvTranspose2d(*channels, bias=layer.bias is not None, device="meta", **settings)
    made.weight = _parameter(filters, layer.weight)
    return made


def _transposed(layer: ours.GroupConvTranspose2d) -> nn.Module:
    r"""The transposed convolution with the expanded filter, between the fibers in the channels and on their axis."""
    made = _filled(_unfilled_transposed(layer.spec, expand(layer.weight, layer.group), layer), layer)
    return nn.Sequential(nn.Flatten(1, 2), made, nn.Unflatten(1, (layer.out_channels, layer.group.order)))


def _field_conv(layer: ours.VectorLiftingConv2d) -> nn.Module:
    r"""The convolution with the expanded filter of the components as channels."""
    conv = _filled(_unfilled_conv(layer, expanded_field(layer.weight, layer.spec), layer.weight), layer)
    return _lifted(layer, nn.Flatten(1, 2), conv)


def _unfilled_conv(layer: Any, filters: Tensor, like: Tensor) -> nn.Conv2d:
    r"""A convolution of torch with these filters and the settings of the layer."""
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    spec: Any = layer.spec.conv if isinstance(layer, ours.VectorLiftingConv2d) else layer.spec
    settings = {name: getattr(spec, name) for name in names}
    inputs, bias = filters.shape[1] * spec.groups, getattr(layer, "bias", None) is not None
    made = nn.Conv2d(inputs, filters.shape[0], bias=bias, device="meta", **settings)
    made.weight = _parameter(filters, like)
    return made


def _depthwise(layer: FiberDepthwiseConv2d) -> nn.Conv2d:
    r"""The convolution whose channel groups are the planes; the fields, where a plane makes several."""
    conv, n = layer.conv, layer.conv.group.order
    filters = expand(conv.weight, conv.group)
    if conv.out_channels > conv.in_channels:
        filters = filters * torch.eye(n).to(filters).repeat(conv.out_channels, 1)[:, :, None, None]
        return _filled(_unfilled_conv(conv, filters, conv.weight), conv)
    made = _filled(_unfilled_conv(conv, filters, conv.weight), conv)
    made.groups = made.in_channels = made.out_channels
    return made


def _linear(layer: Any) -> nn.Linear:
    r"""The product with the expanded matrix."""
    tokens = isinstance(layer, FiberTokenLinear | TiedLinear)
    matrix: Tensor = layer.expanded() if tokens else expand_matrix(layer.weight, layer.spec)
    made = nn.Linear(matrix.shape[1], matrix.shape[0], layer.bias is not None, device="meta")
    made.weight = _parameter(matrix, layer.weight)
    return _filled(made, layer)


def _attention(layer: FiberMultiheadAttention) -> nn.MultiheadAttention:
    r"""The attention of torch with the expanded matrices."""
    q, k, v, out = (_linear(p) for p in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj))
    made = nn.MultiheadAttention(
        *(layer.embed_dim, layer.num_heads, layer.dropout, out.bias is not None, layer.bias_k is not None),
        *(layer.add_zero_attn, k.in_features, v.in_features, layer.batch_first, "meta"),
    )
    if made._qkv_same_embed_dim:
        made.in_proj_weight = _parameter(torch.cat((q.weight, k.weight, v.weight)), q.weight)
    else:
        for name, part in (("q", q), ("k", k), ("v", v)):
            setattr(made, f"{name}_proj_weight", part.weight)
    made.out_proj.weight = out.weight
    if out.bias is not None:
        made.in_proj_bias, made.out_proj.bias = _parameter(torch.cat((q.bias, k.bias, v.bias)), q.bias), out.bias
    for name, bias in (("bias_k", layer.bias_k), ("bias_v", layer.bias_v)):
        if bias is not None:
            setattr(made, name, _parameter(bias.repeat_interleave(layer.group.order)[None, None], bias))
    return made


def _filled(made: Any, layer: Any) -> Any:
    r"""The module with the bias of the layer for every plane."""
    if layer.bias is not None:
        made.bias = _parameter(layer.bias.repeat_interleave(layer.group.order), layer.bias)
    return made


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _lifted(layer: Any, *steps: nn.Module) -> nn.Module:
    r"""The steps, and the fiber on an axis of its own behind them."""
    return nn.Sequential(*steps, nn.Unflatten(1, (len(layer.weight), layer.group.order)))


def _harmonic(layer: ours.HarmonicConv2d) -> nn.Module:
    r"""The one real convolution."""
    fiber = nn.Unflatten(1, (layer.out_channels, -1))
    flat = [] if layer.in_order is None else [nn.Flatten(1, 2)]
    return nn.Sequential(*flat, _unfilled_conv(layer, layer.filters(), layer.profile), fiber)


def _blur(layer: Any) -> nn.Module:
    return blur(type(layer).__name__.replace("Conv", "Pool"), layer.spec)


def _blur_conv(layer: ours.BlurConv2d) -> nn.Module:
    steps = OrderedDict(conv=layer.conv, activation=layer.activation, blur=_blur(layer))
    if layer.before is not None:
        steps["blur"] = alignment(layer.before)
    if layer.blurs_first:
        steps.move_to_end("blur", last=False)
    return nn.Sequential(steps)


def _fiber_norm(layer: FiberLayer) -> nn.Module:
    r"""The numbers of each field for all its planes; a norm that has none looks at whole fields."""
    norm, n = layer.layer, layer.order
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm3d) or not norm.track_running_stats:
        return nn.Sequential(nn.Unflatten(1, (-1, n)), norm, nn.Flatten(1, 2))
    kind = nn.BatchNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.BatchNorm2d
    made = kind(norm.num_features * n, norm.eps, norm.momentum, norm.affine, device="meta")
    for name, value in norm.named_buffers():
        setattr(made, name, value.repeat_interleave(n) if value.ndim else value)
    for name, value in norm.named_parameters():
        setattr(made, name, _parameter(value.repeat_interleave(n), value))
    return made


def _pixel_shuffle(layer: FiberPixelShuffle) -> nn.Module:
    r"""The channels in their order."""
    order = graph("Channels", lambda x: x.index_select(1, layer.order))
    steps = [nn.PixelUnshuffle(layer.factor), order] if layer.back else [order, nn.PixelShuffle(layer.factor)]
    return nn.Sequential(*steps)


def _fiber_linear(layer: FiberLinear) -> nn.Module:
    r"""The mean over each fiber goes into the matrix."""
    linear, n = layer.linear, layer.group.order
    made = nn.Linear(linear.in_features * n, linear.out_features, linear.bias is not None, device="meta")
    made.weight = _parameter(linear.weight.repeat_interleave(n, 1) / n, linear.weight)
    made.bias = linear.bias
    return made


def _harmonic_norm(layer: ours.HarmonicBatchNorm) -> nn.Module:
    scale = layer.scale(layer.running_square).detach().clone()[:, :, None, None, None]
    return graph("HarmonicBatchNorm", lambda z: (z.unflatten(2, (-1, 2)) * scale).flatten(2, 3))


REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda f: f.amax(2),
    "mean": lambda f: f.mean(2),
    "logsumexp": lambda f: f.logsumexp(2),
    "norm": lambda f: f.norm(dim=2),
}
PLAIN: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    **dict.fromkeys((ours.LiftingLinear, ours.GroupLinear), lambda layer: _lifted(layer, nn.Flatten(), _linear(layer))),
    ours.LiftingConv2d: lambda layer: _lifted(layer, _conv(layer)),
    ours.GroupConv2d: lambda layer: _lifted(layer, nn.Flatten(1, 2), _conv(layer)),
    ours.VectorLiftingConv2d: _field_conv,
    ours.VectorLiftingLinear: vector_lifting,
    **dict.fromkeys((ours.VectorHead, ours.AngleHead), vector_reading),
    ours.OrbitPool: lambda layer: graph("OrbitPool", REDUCE[layer.reduction]),
    ours.InvariantAvgPool2d: lambda _: graph("MapMean", lambda x: x.mean((-2, -1))),
    **dict.fromkeys((ours.BlurPool2d, ours.MaxBlurPool2d, ours.AvgBlurPool2d), _blur),
    ours.BlurConv2d: _blur_conv,
    ours.PolyphasePool2d: polyphase,
    ours.PolyphaseUnpool2d: unpolyphase,
    ours.GroupUpsample: upsampling,
    ours.GroupConvTranspose2d: _transposed,
    ours.HarmonicConv2d: _harmonic,
    ours.HarmonicNonlinearity: lambda layer: magnitude_relu(layer.bias),
    ours.HarmonicBatchNorm: _harmonic_norm,
    ours.HarmonicMagnitude: lambda _: graph(
        "HarmonicMagnitude", lambda z: z.unflatten(2, (-1, 2)).norm(dim=3).flatten(1, 2)
    ),
    Aligned: _aligned,
    FiberMeanConv2d: _mean_conv,
    FiberConvTranspose2d: _fiber_transposed,
    FiberConv2d: lambda layer: _conv(layer.conv),
    Steps: lambda layer: nn.Sequential(*layer),
    FiberDepthwiseConv2d: _depthwise,
    FiberTokenLinear: _linear,
    TiedLinear: _linear,
    FiberMultiheadAttention: _attention,
    FiberMean: lambda layer: graph("FiberMean", lambda x: x.unflatten(1, (-1, layer.order)).mean(2)),
    FiberLayer: _fiber_norm,
    FiberPixelShuffle: _pixel_shuffle,
    FiberLinear: _fiber_linear,
    Symmetrized: averaged,
}
