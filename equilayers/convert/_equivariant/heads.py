r"""What becomes of linear layers and of layers with a number for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilayers.convert._equivariant.conversion import ALIKE, Conversion
from equilayers.convert._equivariant.convolutions import projected
from equilayers.convert._equivariant.fiber_layers import FiberLayer, FiberLinear
from equilayers.convert._equivariant.flows import LIFTED, Call
from equilayers.convert._equivariant.norms import over_fields
from equilayers.convert._equivariant.token_layers import FiberTokenLinear
from equilayers.convert._report import Kept, Outcome, Refused, Replaced, distance
from equilayers.nn import GroupLinear

PLACES = "it reads pixels by their place: pool over the map before it"


def linear(module: nn.Linear, call: Call, conversion: Conversion) -> Outcome:
    r"""A linear layer on pooled features reads the mean over each fiber."""
    group, features = conversion.group, module.in_features
    if call.input.kind != LIFTED or len(call.shape) != 2 or features != call.input.channels:
        return Refused(PLACES, call.lost)
    if call.path in conversion.gates and module.out_features > 1:
        return _gate(module, call, conversion)
    made = nn.Linear(conversion.fields_of(call.input, features), module.out_features, module.bias is not None)
    made.to(module.weight.device, module.weight.dtype)
    away = None
    if conversion.from_weights:
        planes = features // made.in_features  # of each field: |G|, or one where every channel has a field of its own
        if planes * made.in_features != features or planes not in (1, group.order):
            return Refused(f"from_weights takes features that |G| = {group.order} divides")
        with torch.no_grad():
            made.weight.copy_(module.weight.unflatten(1, (-1, planes)).sum(2))
            away = distance(module.weight, made.weight.repeat_interleave(planes, 1) / planes)
            if module.bias is not None:
                made.bias.copy_(module.bias)
    return Replaced(FiberLinear(made, group), distance=away)


def _gate(module: nn.Linear, call: Call, conversion: Conversion) -> Outcome:
    r"""A group linear layer: what it puts out meets features again, plane by plane."""
    n = conversion.group.order
    inputs = conversion.fields_of(call.input, module.in_features)
    outputs = conversion.fields_out(call.path, module.out_features)
    made = GroupLinear(conversion.group, inputs, outputs, module.bias is not None, algorithm="auto")
    made.to(module.weight.device, module.weight.dtype)
    away = None
    if conversion.from_weights:
        if (inputs * n, outputs * n) != (module.in_features, module.out_features):
            return Refused(f"from_weights takes features that |G| = {n} divides")
        away = take_over(made, module.weight, module.bias)
    return Replaced(FiberLayer(made, n), "it gates features", away)


def take_over(made: GroupLinear | FiberTokenLinear, weight: Tensor, bias: Tensor | None) -> float:
    r"""Copy the weights of a plain layer, (O·|G|, C·|G|), made equivariant; how far they were from it."""
    n = made.group.order
    with torch.no_grad():
        made.weight.copy_(projected(weight[..., None, None], made.group, False)[..., 0, 0])
        if bias is not None and made.bias is not None:
            made.bias.copy_(bias.unflatten(0, (-1, n)).mean(1))
            made.bias.requires_grad_(bias.requires_grad)
        rows = [made.group.act_regular(h, made.weight).flatten(1) for h in range(n)]
        away = distance(weight, torch.stack(rows, 1).flatten(0, 1))
    made.weight.requires_grad_(weight.requires_grad)
    return away


def prelu(module: nn.PReLU, call: Call, conversion: Conversion) -> Outcome:
    r"""A slope for every field in the place of one for every channel."""
    if module.num_parameters == 1 or call.input.kind != LIFTED:
        return Kept(ALIKE)
    fields = conversion.fields_of(call.input, module.num_parameters)
    return over_fields(nn.PReLU(fields), module, conversion)


def dropout(module: nn.Dropout2d | nn.FeatureAlphaDropout, call: Call, conversion: Conversion) -> Outcome:
    r"""Whole fields are dropped, where whole channels were."""
    if call.input.kind != LIFTED or len(call.shape) != 4:
        return Kept(ALIKE)
    made = (nn.Dropout3d if isinstance(module, nn.Dropout2d) else nn.FeatureAlphaDropout)(module.p, module.inplace)
    return Replaced(FiberLayer(made, conversion.group.order))
