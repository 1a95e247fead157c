r"""What becomes of linear layers and of layers with a number for each channel."""

from __future__ import annotations

import torch
from torch import nn

from equilayers.convert._equivariant.conversion import ALIKE, Conversion
from equilayers.convert._equivariant.dataflow import INVARIANT, LIFTED, Call
from equilayers.convert._equivariant.fiber_layers import FiberLinear
from equilayers.convert._report import Kept, Outcome, Refused, Replaced


def linear(module: nn.Linear, call: Call, conversion: Conversion) -> Outcome:
    r"""A linear layer on pooled features reads the mean over each fiber."""
    group, features = conversion.group, module.in_features
    if call.input.kind == INVARIANT:
        return Kept(f"{ALIKE}: what it reads is invariant already")
    if call.input.kind != LIFTED or len(call.shape) != 2 or features != call.input.channels:
        return Refused("it reads pixels by their place: pool over the map before it")
    made = nn.Linear(conversion.fields_of(call.input, features), module.out_features, module.bias is not None)
    if conversion.from_weights and features % group.order == 0:
        with torch.no_grad():
            made.weight.copy_(module.weight.unflatten(1, (-1, group.order)).sum(2))
            if module.bias is not None:
                made.bias.copy_(module.bias)
    return Replaced(FiberLinear(made.to(module.weight.device, module.weight.dtype), group))


def prelu(module: nn.PReLU, call: Call, conversion: Conversion) -> Outcome:  # noqa: ARG001
    r"""A slope for each channel is refused."""
    if module.num_parameters == 1 or call.input.kind != LIFTED:
        return Kept(ALIKE)
    return Refused("it has a slope for every channel, and the planes of a field would need one")
