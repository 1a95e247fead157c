r"""Layers between vectors of the plane and regular features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from equilayers._checks import check_int, refuse
from equilayers.functional import ConvSettings, WeightCache, draw_steered
from equilayers.functional.choices import vector_choice
from equilayers.functional.cost import Choice
from equilayers.functional.vector_maps import (
    VECTOR_ALGORITHMS,
    lift,
    lift_convolved,
    read_out,
    vector_conv_spec,
    vector_spec,
)
from equilayers.functional.vectors import vector_angle
from equilayers.groups import Group
from equilayers.nn._algorithm import algorithm
from equilayers.nn._conv import Ints
from equilayers.nn._init import add_parameters, reset


class VectorLiftingConv2d(nn.Module):
    r"""The lifting convolution of vector fields: flow or wind, (B, C, 2, H, W), to regular features.

    `y[b, o, h] = corr(h · weight_o, v_b) + bias_o`, output (B, out_channels, |G|, H', W').

    Args:
        group: CyclicRotation or Dihedral, or its name, "C4".
        in_channels: C, fields of two components each.
        out_channels: number of output features.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode: as of `LiftingConv2d`.
        algorithm: "auto", "bitwise", "orbit" or "dense"; see `equilayers.functional.vectors.lift_vectors_conv2d`.
        axes: what the two components are: "right-up", "right-down" (flows in pixels) or "down-right".
        device, dtype: of the parameters.

    Attributes:
        weight: (out_channels, in_channels / groups, 2, kh, kw).
        bias: (out_channels,) or None.
        exactness: "rounding" with "auto" and "dense", "bitwise" otherwise; "approximate" for a group that interpolates.

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: settings the group does not allow; in forward, another shape, or a size that is sampled lopsidedly.

    Law: `layer(act_vectors(g, v)) == act_regular(g, layer(v))` for all g, at every size that is accepted and at the
        level of `exactness`, on CPU in float32 and float64.

    Source: Weiler and Cesa 2019 (arXiv:1911.08251).
    """

    ALGORITHMS = VECTOR_ALGORITHMS
    algorithm = algorithm
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        group: Group | str,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        algorithm: str = "auto",
        *,
        axes: str = "right-up",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "VectorLiftingConv2d"
        given = ConvSettings(True, group, kernel_size, stride, padding, dilation, groups, padding_mode, algorithm)
        self.spec = vector_conv_spec(caller, given, axes)
        self.group = self.spec.group
        for name, count in ("in_channels", in_channels), ("out_channels", out_channels):
            if check_int(caller, name, count, 1) % groups:
                refuse(caller, f"{name} divisible by groups={groups}", count, "Change one of them.")
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self._cache = WeightCache()
        kernel = (2, 2) if self.spec.conv is None else self.spec.conv.kernel_size
        add_parameters(self, (self.out_channels, in_channels // groups, 2, *kernel), bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Conv2d does; steered filters in their basis, of the same mean square."""
        reset(self.weight, self.bias)
        if self.group.exactness != "bitwise":
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    def forward(self, v: Tensor) -> Tensor:
        return lift_convolved("VectorLiftingConv2d", v, self.weight, self.bias, self.spec, self._cache)

    def chosen(self, v: Tensor) -> Choice:
        r"""The algorithm that runs for v, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        del v  # there is no choice by sizes
        return vector_choice(self.spec)

    def extra_repr(self) -> str:
        conv = self.spec.conv
        sizes = f"{self.group!r}, {self.in_channels}, {self.out_channels}"
        settings = "" if conv is None else f", kernel_size={conv.kernel_size}{conv.extra_repr}"
        return f"{sizes}{settings}, bias={self.bias is not None}, {_settings(self)}"


class VectorLiftingLinear(nn.Module):
    r"""Lift vectors to regular features, (B, C, 2, *S) to (B, out_features, |G|, *S), at every position alike.

    `y[b, o, h, s] = sum_c <h · weight[o, c], v[b, c, :, s]> + bias_o`: vectors (B, C, 2), (B, C, 2, N), fields.

    Args:
        group: CyclicRotation or Dihedral, or its name, "C4".
        in_features: C, vectors.
        out_features: number of output features.
        bias: learn a bias, one per feature, shared over the fiber.
        algorithm: "auto", "bitwise", "orbit" or "dense"; see `equilayers.functional.vectors.lift_vectors`.
        axes: as of `VectorLiftingConv2d`.
        device, dtype: of the parameters.

    Attributes:
        weight: (out_features, in_features, 2).
        bias: (out_features,) or None.
        exactness: as of `VectorLiftingConv2d`.

    Raises:
        TypeError, ValueError: as for `VectorLiftingConv2d`.

    Law: `layer(act_vectors(g, v)) == act_regular(g, layer(v))` for all g, at the level of `exactness`, on CPU in
        float32 and float64.

    Source: Weiler and Cesa 2019 (arXiv:1911.08251).
    """

    ALGORITHMS = VECTOR_ALGORITHMS
    algorithm = algorithm
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        group: Group | str,
        in_features: int,
        out_features: int,
        bias: bool = True,
        algorithm: str = "bitwise",
        *,
        axes: str = "right-up",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spec = vector_spec("VectorLiftingLinear", group, axes, algorithm)
        self.group = self.spec.group
        self.in_features = check_int("VectorLiftingLinear", "in_features", in_features, 1)
        self.out_features = check_int("VectorLiftingLinear", "out_features", out_features, 1)
        add_parameters(self, (self.out_features, self.in_features, 2), bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Linear does."""
        reset(self.weight, self.bias)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    def forward(self, v: Tensor) -> Tensor:
        return lift("VectorLiftingLinear", v, self.weight, self.bias, self.spec)

    def chosen(self, v: Tensor) -> Choice:
        r"""The algorithm that runs for v, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        del v  # there is no choice by sizes
        return vector_choice(self.spec)

    def extra_repr(self) -> str:
        sizes = f"{self.group!r}, in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, {_settings(self)}"


class VectorHead(nn.Module):
    r"""Directions, offsets or flow from regular features, (B, C, |G|, *S) to (B, out_features, 2, *S).

    `v[b, o, :, s] = 1/|G| sum_{c,h} h · weight[o, c] f[b, c, h, s]`: each plane gives two numbers in its own frame,
    which are turned back and averaged. A flow (B, 2, H, W) is `head(f)[:, 0]` of one output.

    Args:
        group: CyclicRotation or Dihedral, or its name, "C4".
        in_features: C.
        out_features: number of vectors.
        algorithm: "auto", "bitwise", "orbit" or "dense"; see `equilayers.functional.vectors.regular_to_vectors`.
        axes: as of `VectorLiftingConv2d`.
        device, dtype: of the parameters.

    Attributes:
        weight: (out_features, in_features, 2). There is no bias: no vector but zero stays where it is.
        exactness: as of `VectorLiftingConv2d`.

    Raises:
        TypeError, ValueError: as for `VectorLiftingLinear`, or axis 2 is not the fiber.

    Law: `head(act_regular(g, f)) == act_vectors(g, head(f))` for all g, at the level of `exactness`, on CPU in float32
        and float64.

    Source: Weiler and Cesa 2019 (arXiv:1911.08251).
    """

    ALGORITHMS = VECTOR_ALGORITHMS
    algorithm = algorithm
    weight: Tensor

    def __init__(
        self,
        group: Group | str,
        in_features: int,
        out_features: int,
        algorithm: str = "bitwise",
        *,
        axes: str = "right-up",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spec = vector_spec("VectorHead", group, axes, algorithm)
        self.group = self.spec.group
        self.in_features = check_int("VectorHead", "in_features", in_features, 1)
        self.out_features = check_int("VectorHead", "out_features", out_features, 1)
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the weight so that the map has the entries of torch.nn.Linear."""
        _draw(self.weight, self.group)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    def forward(self, f: Tensor) -> Tensor:
        return read_out("VectorHead", f, self.weight, self.spec)

    def chosen(self, f: Tensor) -> Choice:
        r"""The algorithm that runs for f, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        del f  # there is no choice by sizes
        return vector_choice(self.spec)

    def extra_repr(self) -> str:
        return f"{self.group!r}, in_features={self.in_features}, out_features={self.out_features}, {_settings(self)}"


class AngleHead(nn.Module):
    r"""Angles from regular features, (B, C, |G|, *S) to (B, out_features, *S), in radians, that turn with the input.

    `a = 1/m atan2` of a vector that turns m times as fast, as `VectorHead` makes it: counter-clockwise from the right.

    Args:
        group: CyclicRotation or Dihedral, or its name, "C4".
        in_features: C.
        out_features: number of angles.
        order: m. 1 for directions; 2 for axes and boxes, which a half turn leaves alone.
        algorithm: as of `VectorHead`.
        device, dtype: of the parameters.

    Attributes:
        weight: (out_features, in_features, 2).
        exactness: "rounding"; "approximate" for a group that interpolates.

    Raises:
        TypeError, ValueError: as for `VectorHead`; ValueError also for an order below 1.

    Law: `head(act_regular(g, f)) = head(f) + 2·pi·g/n` for rotations, `pi - head(f)` for the mirror left-right, modulo
        2·pi/m, to rounding, where the vector is not zero. Of maps the pixels move as well.

    Source: angles of boxes by the phase of a wave, Yu and Da 2023 (arXiv:2211.06368); maps to irreps, Weiler and Cesa
        2019 (arXiv:1911.08251).
    """

    ALGORITHMS = VECTOR_ALGORITHMS
    algorithm = algorithm

    def __init__(
        self,
        group: Group | str,
        in_features: int,
        out_features: int = 1,
        order: int = 1,
        algorithm: str = "bitwise",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "AngleHead"
        self.spec = vector_spec(caller, group, "right-up", algorithm, order)
        self.group = self.spec.group
        self.in_features = check_int(caller, "in_features", in_features, 1)
        self.out_features = check_int(caller, "out_features", out_features, 1)
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the weight so that the map to vectors has the entries of torch.nn.Linear."""
        _draw(self.weight, self.group)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return "rounding" if self.group.exactness == "bitwise" else self.group.exactness

    def forward(self, f: Tensor) -> Tensor:
        return vector_angle(read_out("AngleHead", f, self.weight, self.spec), order=self.spec.order)

    def chosen(self, f: Tensor) -> Choice:
        r"""The algorithm that runs for f, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        del f  # there is no choice by sizes
        return vector_choice(self.spec)

    def extra_repr(self) -> str:
        sizes = f"{self.group!r}, in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, order={self.spec.order}, algorithm={self.spec.algorithm!r}"


def _draw(weight: Tensor, group: Group) -> None:
    bound = math.sqrt(group.order / weight.shape[1])  # the map divides by |G|
    nn.init.uniform_(weight, -bound, bound)


def _settings(layer: Any) -> str:
    axes = "" if layer.spec.axes == "right-up" else f", axes={layer.spec.axes!r}"
    return f"algorithm={layer.spec.algorithm!r}{axes}"
