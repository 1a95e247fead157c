r"""The normalisations over whole fields that take the place of plain ones."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from equilayers.convert._equivariant.conversion import ALIKE, Conversion
from equilayers.convert._equivariant.fiber_layers import FiberLayer
from equilayers.convert._equivariant.flows import LIFTED, Call
from equilayers.convert._report import Kept, Outcome, Refused, Replaced


def batch_or_instance_norm(module: Any, call: Call, conversion: Conversion) -> Outcome:
    r"""Statistics of a whole field, of maps or of what is left of them after pooling."""
    if call.input.kind != LIFTED:
        return Kept(f"{ALIKE}, channel by channel")
    flat, instance = len(call.shape) != 4, isinstance(module, nn.InstanceNorm2d)
    if flat and (len(call.shape) != 2 or module.num_features != call.input.channels):
        return Refused("it has numbers of its own for every place", call.lost)
    kind: Any = nn.BatchNorm1d if flat else nn.InstanceNorm3d if instance else nn.BatchNorm3d
    if isinstance(module, nn.SyncBatchNorm):
        kind = functools.partial(nn.SyncBatchNorm, process_group=module.process_group)
    momentum = 0.1 if instance and module.momentum is None else module.momentum
    fields = conversion.fields_of(call.input, module.num_features)
    return over_fields(
        kind(fields, module.eps, momentum, module.affine, module.track_running_stats), module, conversion
    )


def group_norm(module: nn.GroupNorm, call: Call, conversion: Conversion) -> Outcome:
    r"""As many groups of fields as there were of channels, or the most that divide both."""
    if call.input.kind != LIFTED:
        return Kept(f"{ALIKE}, channel by channel")
    fields = conversion.fields_of(call.input, module.num_channels)
    if conversion.from_weights and fields % module.num_groups:
        return Refused(f"from_weights takes fields that its {module.num_groups} groups divide, not {fields}")
    groups = math.gcd(module.num_groups, fields)
    return over_fields(nn.GroupNorm(groups, fields, module.eps, module.affine), module, conversion)


def over_fields(norm: nn.Module, module: nn.Module, conversion: Conversion) -> Replaced:
    r"""On the device and in the dtype of the plain one; from_weights with its numbers, the mean over each fiber."""
    order = conversion.group.order
    theirs = dict(module.state_dict())
    floating = next((t for t in theirs.values() if t.is_floating_point()), None)
    if floating is not None:
        norm.to(floating.device, floating.dtype)
    if conversion.from_weights:
        with torch.no_grad():
            for name, ours in norm.state_dict().items():
                value = theirs[name]
                if value.ndim == 0:
                    ours.copy_(value)
                elif len(value) == len(ours) * order:
                    ours.copy_(value.unflatten(0, (-1, order)).mean(1))
    return Replaced(FiberLayer(norm, order))
