r"""Layers on features whose fibers lie in the channels, (B, C·|G|, H, W): what converted models are made of.

So everything around them, residual sums, concatenations of channels, pools, resizing, stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers._modules import mapped
from equilayers.functional import check_size, expand, orbit_pool
from equilayers.groups import Group
from equilayers.nn import GroupConv2d, LiftingConv2d


class Steps(nn.Sequential):
    r"""Modules one after the other, in the place of a layer that models may ask for its weight, for its dtype say."""

    @property
    def weight(self) -> Tensor:
        r"""Of the first module that has one."""
        return next(weight for part in self if isinstance(weight := getattr(part, "weight", None), Tensor))


class FiberConv2d(nn.Module):
    r"""A lifting or group convolution whose fibers lie in the channels.

    Args:
        conv: the convolution.

    Law: as of the convolution.
    """

    def __init__(self, conv: LiftingConv2d | GroupConv2d) -> None:
        super().__init__()
        self.conv = conv

    @property
    def weight(self) -> Tensor:
        r"""That of the convolution."""
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        f = x if isinstance(self.conv, LiftingConv2d) else x.unflatten(1, (-1, self.conv.group.order))
        y: Tensor = self.conv(f)
        return y.flatten(1, 2)


class FiberDepthwiseConv2d(nn.Module):
    r"""A depthwise convolution of each plane by itself, (B, C·|G|, H, W): one filter per field, turned over the fiber.

    `y[(o, h)] = corr(h · weight_o, x[(c, h)]) + bias_o`, o = c·m + j the m output fields of field c. At the cost of the
    plain depthwise convolution; planes of a field meet in the layers around it.

    Args:
        conv: LiftingConv2d of C channel groups, which holds settings and parameters.

    Raises:
        ValueError: in forward, other channels, or a size at which the stride samples lopsidedly.

    Law: `layer(g·x) == g·layer(x)` where g turns maps and fibers, to rounding.

    Source: Cohen and Welling 2016 (arXiv:1602.07576); depthwise: Chollet 2017 (arXiv:1610.02357).
    """

    def __init__(self, conv: LiftingConv2d) -> None:
        super().__init__()
        self.conv = conv

    @property
    def weight(self) -> Tensor:
        r"""That of the convolution."""
        return self.conv.weight

    def expanded(self) -> Tensor:
        r"""The filters of the plain convolution, (O·|G|, 1, kh, kw), rows (c, h, j)."""
        return self._sorted(expand(self.conv.weight, self.conv.group), back=False)

    def forward(self, x: Tensor) -> Tensor:
        conv, n = self.conv, self.conv.group.order
        if x.ndim != 4 or x.shape[1] != conv.in_channels * n:
            hint = f"They are {conv.in_channels} fields of {n} planes, the planes of a field side by side."
            refuse("FiberDepthwiseConv2d", f"x of shape (B, {conv.in_channels * n}, H, W)", tuple(x.shape), hint)
        check_size("FiberDepthwiseConv2d", conv.spec, (x.shape[2], x.shape[3]))
        bias = None if conv.bias is None else self._sorted(conv.bias.repeat_interleave(n), back=False)
        x, spec = conv.spec.padded(x)
        y = F.conv2d(x, self.expanded(), bias, spec.stride, spec.padding, spec.dilation, x.shape[1])
        return self._sorted(y.movedim(1, 0), back=True).movedim(0, 1)

    def _sorted(self, rows: Tensor, *, back: bool) -> Tensor:
        r"""Rows (c, j, h), the fiber innermost, in the order (c, h, j) of channel groups; or back."""
        each, n = self.conv.out_channels // self.conv.in_channels, self.conv.group.order
        if each == 1:
            return rows
        return rows.unflatten(0, (-1, *((n, each) if back else (each, n)))).transpose(1, 2).flatten(0, 2)


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
