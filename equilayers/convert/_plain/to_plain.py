r"""Everything of ours folded into torch's own modules, for deployment."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers.convert._equivariant.fiber_layers import FiberConv2d, FiberLinear, FiberMean, FiberNorm
from equilayers.convert._plain.blur_graphs import blur
from equilayers.convert._plain.graphs import (
    averaged,
    fiber_mean,
    magnitude_relu,
    magnitude_scale,
    magnitudes,
    map_mean,
    orbit_pool,
    polyphase,
)
from equilayers.convert._symmetrize import Symmetrized
from equilayers.functional import expand, expand_matrix
from equilayers.nn import (
    AvgBlurPool2d,
    BlurConv2d,
    BlurPool2d,
    GroupConv2d,
    GroupLinear,
    HarmonicBatchNorm,
    HarmonicConv2d,
    HarmonicMagnitude,
    HarmonicNonlinearity,
    InvariantAvgPool2d,
    LiftingConv2d,
    LiftingLinear,
    MaxBlurPool2d,
    OrbitPool,
    PolyphasePool2d,
)


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
        return _Plain().of(copy.deepcopy(model), "")


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


def _conv(layer: LiftingConv2d | GroupConv2d) -> nn.Conv2d:
    r"""The convolution with the expanded filter, fibers in the channels."""
    shape, n = layer.spec, layer.group.order
    inputs = layer.in_channels * (1 if isinstance(layer, LiftingConv2d) else n)
    made = nn.Conv2d(
        inputs,
        layer.out_channels * n,
        shape.kernel_size,
        shape.stride,
        shape.padding,
        shape.dilation,
        shape.groups,
        layer.bias is not None,
        cast(Any, shape.padding_mode),
        device="meta",
    )
    return _filled(made, layer, expand(layer.weight, layer.group))


def _linear(layer: LiftingLinear | GroupLinear) -> nn.Linear:
    r"""The product with the expanded matrix."""
    matrix = expand_matrix(layer.weight, layer.spec)
    made = nn.Linear(matrix.shape[1], matrix.shape[0], layer.bias is not None, device="meta")
    return _filled(made, layer, matrix)


def _filled(made: Any, layer: Any, weight: Tensor) -> Any:
    r"""The module with that weight, and the bias of the layer for every plane."""
    made.weight = _parameter(weight, layer.weight)
    if layer.bias is not None:
        made.bias = _parameter(layer.bias.repeat_interleave(layer.group.order), layer.bias)
    return made


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _lifted(layer: Any, *steps: nn.Module) -> nn.Module:
    r"""The steps, and the fiber on an axis of its own behind them."""
    return nn.Sequential(*steps, nn.Unflatten(1, (len(layer.weight), layer.group.order)))


def _harmonic(layer: HarmonicConv2d) -> nn.Module:
    r"""The one real convolution."""
    shape = layer.spec
    filters = layer.filters()
    made = nn.Conv2d(
        filters.shape[1],
        filters.shape[0],
        shape.kernel_size,
        shape.stride,
        shape.padding,
        bias=False,
        padding_mode=cast(Any, shape.padding_mode),
        device="meta",
    )
    made.weight = _parameter(filters, layer.profile)
    fiber = nn.Unflatten(1, (layer.out_channels, -1))
    return nn.Sequential(*([] if layer.in_order is None else [nn.Flatten(1, 2)]), made, fiber)


def _blur(layer: BlurPool2d | MaxBlurPool2d | AvgBlurPool2d | BlurConv2d) -> nn.Module:
    return blur(type(layer).__name__.replace("Conv", "Pool"), layer.spec)


def _blur_conv(layer: BlurConv2d) -> nn.Module:
    steps = OrderedDict(conv=layer.conv, activation=layer.activation, blur=_blur(layer))
    if layer.order.startswith("blur"):
        steps.move_to_end("blur", last=False)
    return nn.Sequential(steps)


def _fiber_norm(layer: FiberNorm) -> nn.Module:
    r"""The numbers of each field for all its planes; a norm that has none looks at whole fields."""
    norm, n = layer.norm, layer.order
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm3d) or not norm.track_running_stats:
        return nn.Sequential(nn.Unflatten(1, (-1, n)), norm, nn.Flatten(1, 2))
    kind = nn.BatchNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.BatchNorm2d
    made = kind(norm.num_features * n, norm.eps, norm.momentum, norm.affine, device="meta")
    for name, value in norm.named_buffers():
        setattr(made, name, value.repeat_interleave(n) if value.ndim else value)
    for name, value in norm.named_parameters():
        setattr(made, name, _parameter(value.repeat_interleave(n), value))
    return made


def _fiber_linear(layer: FiberLinear) -> nn.Module:
    r"""The mean over each fiber goes into the matrix."""
    linear, n = layer.linear, layer.group.order
    made = nn.Linear(linear.in_features * n, linear.out_features, linear.bias is not None, device="meta")
    made.weight = _parameter(linear.weight.repeat_interleave(n, 1) / n, linear.weight)
    made.bias = linear.bias
    return made


PLAIN: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    LiftingLinear: lambda layer: _lifted(layer, nn.Flatten(), _linear(layer)),
    GroupLinear: lambda layer: _lifted(layer, nn.Flatten(), _linear(layer)),
    LiftingConv2d: lambda layer: _lifted(layer, _conv(layer)),
    GroupConv2d: lambda layer: _lifted(layer, nn.Flatten(1, 2), _conv(layer)),
    OrbitPool: lambda layer: orbit_pool(layer.reduction),
    InvariantAvgPool2d: lambda layer: map_mean(),  # noqa: ARG005
    BlurPool2d: _blur,
    MaxBlurPool2d: _blur,
    AvgBlurPool2d: _blur,
    BlurConv2d: _blur_conv,
    PolyphasePool2d: lambda layer: polyphase(layer.stride, layer.norm, layer.exact),
    HarmonicConv2d: _harmonic,
    HarmonicNonlinearity: lambda layer: magnitude_relu(layer.bias),
    HarmonicBatchNorm: lambda layer: magnitude_scale(layer.scale(layer.running_square)),
    HarmonicMagnitude: lambda layer: magnitudes(),  # noqa: ARG005
    FiberConv2d: lambda layer: _conv(layer.conv),
    FiberMean: lambda layer: fiber_mean(layer.order),
    FiberNorm: _fiber_norm,
    FiberLinear: _fiber_linear,
    Symmetrized: lambda layer: averaged(layer.model, layer.group, layer.reduction),
}
