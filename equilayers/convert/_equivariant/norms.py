r"""The normalisations over whole fields that take the place of plain ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from equilayers.convert._equivariant.dataflow import LIFTED, Role
from equilayers.convert._equivariant.fiber_layers import FiberNorm

if TYPE_CHECKING:
    from equilayers.convert._equivariant.to_equivariant import Conversion

KEPT = "treats every plane and pixel alike"


def batch_norm(path: str, module: nn.BatchNorm1d | nn.BatchNorm2d, role: Role, how: Conversion) -> nn.Module | str:  # noqa: ARG001
    r"""Of maps, and of what is left of them after pooling."""
    if role.fed.kind != LIFTED:
        return f"{KEPT}, channel by channel"
    flat = isinstance(module, nn.BatchNorm1d)
    if flat and (len(role.shape) != 2 or module.num_features != role.fed.channels):
        return "it has numbers of its own for every place"
    fields = how.fields_of(role.fed, module.num_features)
    kind = nn.BatchNorm1d if flat else nn.BatchNorm3d
    norm = kind(fields, module.eps, module.momentum, module.affine, module.track_running_stats)
    return _over_fields(norm, module, how)


def instance_norm(path: str, module: nn.InstanceNorm2d, role: Role, how: Conversion) -> nn.Module | str:  # noqa: ARG001
    r"""Of maps: statistics of a whole field."""
    if role.fed.kind != LIFTED:
        return f"{KEPT}, channel by channel"
    fields = how.fields_of(role.fed, module.num_features)
    momentum = 0.1 if module.momentum is None else module.momentum
    norm = nn.InstanceNorm3d(fields, module.eps, momentum, module.affine, module.track_running_stats)
    return _over_fields(norm, module, how)


def group_norm(path: str, module: nn.GroupNorm, role: Role, how: Conversion) -> nn.Module | str:  # noqa: ARG001
    r"""Of as many groups of fields as there were of channels, or the most that divide both."""
    if role.fed.kind != LIFTED:
        return f"{KEPT}, channel by channel"
    fields = how.fields_of(role.fed, module.num_channels)
    if how.from_weights and fields % module.num_groups:
        return f"from_weights takes fields that its {module.num_groups} groups divide, not {fields}"
    groups = math.gcd(module.num_groups, fields)
    return _over_fields(nn.GroupNorm(groups, fields, module.eps, module.affine), module, how)


def _over_fields(norm: nn.Module, module: nn.Module, how: Conversion) -> FiberNorm:
    r"""On the device and in the dtype of the plain one; from_weights with its numbers, the mean over each fiber."""
    order = how.group.order
    theirs = dict(module.state_dict())
    floating = next((t for t in theirs.values() if t.is_floating_point()), None)
    if floating is not None:
        norm.to(floating.device, floating.dtype)
    if how.from_weights:
        with torch.no_grad():
            for name, ours in norm.state_dict().items():
                value = theirs[name]
                if value.ndim == 0:
                    ours.copy_(value)
                elif len(value) == len(ours) * order:
                    ours.copy_(value.unflatten(0, (-1, order)).mean(1))
    return FiberNorm(norm, order)
