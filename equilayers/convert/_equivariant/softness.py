r"""Weights between what they are and the nearest tied ones, and which of their entries the group exchanges."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from equilayers.convert._equivariant.attention import FiberMultiheadAttention
from equilayers.convert._equivariant.fiber_layers import (
    FiberConv2d,
    FiberDepthwiseConv2d,
    FiberLayer,
    FiberLinear,
    FiberMean,
)
from equilayers.convert._equivariant.map_layers import FiberConvTranspose2d, FiberMeanConv2d
from equilayers.convert._equivariant.token_layers import FiberTokenLinear, TiedLinear, expanded_rows
from equilayers.functional import expand
from equilayers.nn import GroupLinear


class Soft(nn.Module):
    r"""A parametrisation between a weight and the nearest tied one: `P W + softness (W - P W)`.

    P W has in each entry the mean over its class, the entries that the group exchanges: the Reynolds operator.

    Args:
        classes: of the weight's shape, integers.

    Attributes:
        softness: 1 for W as it is, 0 for P W.
    """

    classes: Tensor
    counts: Tensor

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        numbers = classes.flatten().unique(return_inverse=True)[1]
        self.register_buffer("classes", numbers, persistent=False)
        self.register_buffer("counts", numbers.bincount(), persistent=False)
        self.softness = 1.0

    def nearest(self, weight: Tensor) -> Tensor:
        r"""The mean over the classes, `P W`."""
        sums = weight.new_zeros(len(self.counts)).index_add(0, self.classes, weight.flatten())
        return (sums / self.counts)[self.classes].view_as(weight)

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.softness == 1 else torch.lerp(self.nearest(weight), weight, self.softness)

    def right_inverse(self, weight: Tensor) -> Tensor:
        r"""The weight itself."""
        return weight

    def extra_repr(self) -> str:
        return f"{self.classes.numel()} -> {len(self.counts)}, softness={self.softness}"


def settled(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (Soft,)) -> nn.Module:
    r"""The model with the numbers that its weights of these parametrisations have now as its weights, in place."""
    for module in list(model.modules()):
        if not is_parametrized(module):
            continue
        chains: dict[str, Any] = dict(module.parametrizations.items())  # type: ignore[operator,union-attr]
        if not all(isinstance(each, kinds) for chain in chains.values() for each in chain):
            continue
        values = {name: getattr(module, name).detach() for name in chains}
        # remove_parametrizations would alter the class, which copies of the module have in common.
        module.__class__ = type(module).__mro__[1]
        del module._modules["parametrizations"]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value.clone(), chains[name].original.requires_grad))
    return model


def classes_of(made: nn.Module) -> dict[str, Tensor]:
    r"""By the name of each parameter of a plain layer, which entries the layer that took its place has alike."""
    image = any(isinstance(part, FiberMean | FiberMeanConv2d) for part in made.modules())
    layer = next((part for part in made.modules() if isinstance(part, KINDS)), None)
    if isinstance(layer, FiberConvTranspose2d):
        order = layer.conv.group.order
        columns = expand(_numbers(layer.weight), layer.conv.group)
        columns = columns.unflatten(1, (-1, order)).amin(2) if layer.mean else columns
        return _with_bias(columns, layer.conv.bias, 1 if layer.mean else order)
    if isinstance(layer, FiberConv2d | FiberDepthwiseConv2d | FiberMeanConv2d):
        conv, n = layer.conv, layer.conv.group.order
        rows = expand(_numbers(conv.weight), conv.group)
        if image:  # the mean over the fiber, which follows, is that over the group
            rows = rows.unflatten(0, (-1, n)).amin(1)
        return _with_bias(rows, conv.bias, 1 if image else n)
    if isinstance(layer, FiberTokenLinear | TiedLinear):
        return _with_bias(_expanded(layer), layer.bias, layer.group.order)
    if isinstance(layer, FiberMultiheadAttention):
        return _of_attention(layer)
    if isinstance(layer, FiberLinear):
        linear, n = layer.linear, layer.group.order
        return _with_bias(_numbers(linear.weight).repeat_interleave(n, 1), linear.bias, 1)
    if isinstance(layer, FiberLayer):
        inner: Any = layer.layer
        if isinstance(inner, GroupLinear):
            return _with_bias(expanded_rows(_numbers(inner.weight), inner.group), inner.bias, layer.order)
        return {name: _numbers(p).repeat_interleave(layer.order) for name, p in inner.named_parameters()}
    return {}


KINDS = (
    *(FiberConv2d, FiberDepthwiseConv2d, FiberMeanConv2d, FiberConvTranspose2d, FiberTokenLinear, TiedLinear),
    *(FiberMultiheadAttention, FiberLinear, FiberLayer),
)


def _numbers(parameter: Tensor) -> Tensor:
    return torch.arange(parameter.numel()).view(parameter.shape)


def _expanded(layer: FiberTokenLinear | TiedLinear) -> Tensor:
    probe = copy.deepcopy(layer).cpu().double()
    probe.weight.data = _numbers(probe.weight).double()
    return probe.expanded().detach().long()


def _with_bias(weight: Tensor, bias: Tensor | None, order: int) -> dict[str, Tensor]:
    return {"weight": weight} | ({} if bias is None else {"bias": _numbers(bias).repeat_interleave(order)})


def _of_attention(layer: FiberMultiheadAttention) -> dict[str, Tensor]:
    inputs = dict(zip("qkv", (layer.q_proj, layer.k_proj, layer.v_proj), strict=True))
    weights = {name: _expanded(part) for name, part in inputs.items()}
    made = {f"{name}_proj_weight": weight for name, weight in weights.items()}
    if len({weight.shape for weight in weights.values()}) == 1:
        made = {"in_proj_weight": _apart(list(weights.values()))}
    made |= {
        f"out_proj.{name}": each
        for name, each in _with_bias(_expanded(layer.out_proj), layer.out_proj.bias, layer.group.order).items()
    }
    if layer.q_proj.bias is not None:
        made["in_proj_bias"] = _numbers(layer.q_proj.bias.repeat(3)).repeat_interleave(layer.group.order)
    for name, bias in (("bias_k", layer.bias_k), ("bias_v", layer.bias_v)):
        if bias is not None:
            made[name] = _numbers(bias).repeat_interleave(layer.group.order)[None, None]
    return made


def _apart(parts: list[Tensor]) -> Tensor:
    r"""Parts below each other, with numbers of their own."""
    return torch.cat([part + i * part.numel() for i, part in enumerate(parts)])
