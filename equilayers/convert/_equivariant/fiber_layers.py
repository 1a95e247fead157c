r"""Layers on features whose fibers lie in the channels, (B, C·|G|, H, W): what converted models are made of.

So everything around them, residual sums, concatenations of channels, pools, resizing, stays as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equilayers._modules import mapped
from equilayers.functional import orbit_pool
from equilayers.groups import Group
from equilayers.nn import GroupConv2d, LiftingConv2d


class FiberConv2d(nn.Module):
    r"""A lifting or group convolution whose fibers lie in the channels.

    Args:
        conv: the convolution.

    Law: as of the convolution.
    """

    def __init__(self, conv: LiftingConv2d | GroupConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        f = x if isinstance(self.conv, LiftingConv2d) else x.unflatten(1, (-1, self.conv.group.order))
        y: Tensor = self.conv(f)
        return y.flatten(1, 2)


class FiberMean(nn.Module):
    r"""The mean over each fiber: features (B, C·|G|, H, W) to images (B, C, H, W)."""

    ALGORITHMS = ("auto", "bitwise")

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order
        self.algorithm = "auto"

    def forward(self, x: Tensor) -> Tensor:
        f = x.unflatten(1, (-1, self.order))
        return f.mean(2) if self.algorithm == "auto" else orbit_pool(f, "mean")  # which sorts the terms first

    def extra_repr(self) -> str:
        return str(self.order)


class FiberOutputs(nn.Module):
    r"""A model with the mean over each fiber of some of the tensors that it puts out, in whatever they stand.

    Args:
        model: whose output is a tuple, a list, a dictionary, a dataclass, or several of them.
        order: |G|.
        fibers: of each tensor in it, whether it has fibers in axis 1.
    """

    def __init__(self, model: nn.Module, order: int, fibers: list[bool]) -> None:
        super().__init__()
        self.model = model
        self.order = order
        self.fibers = tuple(fibers)

    def forward(self, x: Tensor) -> Any:
        fibers = iter(self.fibers)

        def averaged(y: Tensor) -> Tensor:
            return orbit_pool(y.unflatten(1, (-1, self.order)), "mean") if next(fibers) else y

        return mapped(averaged, self.model(x))


class FiberLayer(nn.Module):
    r"""A layer over whole fields, such as a normalisation: the planes of a fiber share statistics and parameters.

    Args:
        layer: from regular features (B, C, |G|, ...) to such.
        order: |G|.
    """

    def __init__(self, layer: nn.Module, order: int) -> None:
        super().__init__()
        self.layer = layer
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.unflatten(1, (-1, self.order)))
        return y.flatten(1, 2)


class FiberLinear(nn.Module):
    r"""A linear layer on the mean over each fiber: from (B, C·|G|) to numbers that the group leaves alone.

    Args:
        linear: from C to any number of features.
        group: whose fibers they are.
    """

    def __init__(self, linear: nn.Linear, group: Group) -> None:
        super().__init__()
        self.linear = linear
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(orbit_pool(x.unflatten(1, (-1, self.group.order)), "mean"))
        return y
