r"""Layers that enlarge maps: transposed group convolutions and resizing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilayers._checks import check_int, refuse
from equilayers.functional import ConvSettings, WeightCache, draw_steered
from equilayers.functional.choices import expanded_choice
from equilayers.functional.cost import Choice
from equilayers.functional.transposed import ALGORITHMS as TRANSPOSED_ALGORITHMS
from equilayers.functional.transposed import Ints, conv_transpose, transposed_spec
from equilayers.functional.upsampling import ALGORITHMS, Factor, Sizes, upsample, upsample_spec
from equilayers.groups import Group, interpolates
from equilayers.nn._algorithm import algorithm
from equilayers.nn._init import reset


class GroupConvTranspose2d(nn.Module):
    r"""The transposed group convolution, between regular features: the adjoint of `GroupConv2d`, which enlarges maps.

    `y[b, o, k] = sum_{c,h} corr^T(h · weight[c, o, h^-1 k], f[b, c, h]) + bias_o`, input (B, in_channels, |G|, H, W),
    output (B, out_channels, |G|, H', W') with `H' = (H - 1)·s - 2p + d·(kh - 1) + output_padding + 1`.

    Args:
        group: CyclicRotation or Dihedral, or its name, "C4".
        in_channels: number of input features, C.
        out_channels: number of output features.
        kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode: as in
            torch.nn.ConvTranspose2d, in pixels. output_padding appends pixels to one side, so it is 0 along every axis
            that the group reverses: `kernel_size=4, stride=2, padding=1` and `kernel_size=2, stride=2` double a map.
        algorithm: "auto", "dense", "bitwise" or "orbit"; see
            `equilayers.functional.transposed.group_conv_transpose2d`.

    Attributes:
        weight: (in_channels, out_channels / groups, |G|, kh, kw), that of the `GroupConv2d` it is the adjoint of; at
            first of the mean square of torch.nn.ConvTranspose2d's.
        bias: (out_channels,) or None.
        exactness: "bitwise" with "bitwise" and "orbit"; "rounding" with "auto" and "dense"; "approximate" for a group
            that interpolates.

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: settings the group does not allow, with two that work; in forward, another fiber or another number
            of channels, or an output_size that would be lopsided.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, at every size and at the level of
        `exactness`, on CPU in float32 and float64. The trivial group gives torch.nn.ConvTranspose2d.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576), transposed.
    """

    ALGORITHMS = TRANSPOSED_ALGORITHMS
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
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        padding_mode: str = "zeros",
        algorithm: str = "auto",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "GroupConvTranspose2d"
        given = ConvSettings(False, group, kernel_size, stride, padding, dilation, groups, padding_mode, algorithm)
        self.spec = transposed_spec(caller, given, output_padding)
        self.group = self.spec.conv.group
        for name, count in ("in_channels", in_channels), ("out_channels", out_channels):
            if check_int(caller, name, count, 1) % groups:
                refuse(caller, f"{name} divisible by groups={groups}", count, "Change one of them.")
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self._cache = WeightCache()
        size = self.in_channels, self.out_channels // groups, self.group.order, *self.spec.conv.kernel_size
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.ConvTranspose2d does; steered filters in their basis."""
        reset(self.weight, self.bias)
        if interpolates(self.group):
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    def forward(self, f: Tensor, output_size: Ints | None = None) -> Tensor:
        caller, spec = "GroupConvTranspose2d", self.spec
        if output_size is not None:
            spec = spec.reaching(caller, (f.shape[-2], f.shape[-1]), output_size)
        return conv_transpose(caller, f, self.weight, self.bias, spec, self._cache)

    def chosen(self, f: Tensor) -> Choice:
        r"""The algorithm that runs for f, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        del f  # there is no choice by sizes
        dense = self.spec.algorithm in ("auto", "dense")
        return expanded_choice(self.group, self.spec.algorithm, dense=dense)

    def extra_repr(self) -> str:
        sizes = f"{self.group!r}, {self.in_channels}, {self.out_channels}, kernel_size={self.spec.conv.kernel_size}"
        return f"{sizes}{self.spec.extra_repr}, bias={self.bias is not None}, algorithm={self.spec.algorithm!r}"


class GroupUpsample(nn.Module):
    r"""Resize the maps of images (B, C, H, W) or features (B, C, |G|, H, W), symmetrically at every size.

    Args:
        size: H' and W', an int or a pair.
        scale_factor: or how many times as large, a number or a pair; the places follow from both sizes, as with
            torch.nn.Upsample's `recompute_scale_factor=True`. With neither every call says its size:
            `up(f, size=skip.shape[-2:])`, to meet a skip connection.
        mode: "nearest", for whole factors, "bilinear" or "bicubic".
        align_corners: whether the middles of the corner pixels stay, as in torch.nn.Upsample.
        algorithm: "auto", or "bitwise" for sums in an order that the group leaves alone.

    Attributes:
        exactness: "bitwise" with mode="nearest" or algorithm="bitwise", "rounding" otherwise.

    Raises:
        TypeError, ValueError: settings that make no sense, and sizes that could not be sampled symmetrically, with what
            works; see `equilayers.functional.upsampling.upsample2d`.

    Law: `up(act(g, x)) == act(g, up(x))` for every rotation and mirror, at every size that is accepted.
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm

    def __init__(
        self,
        size: Sizes | None = None,
        scale_factor: Factor | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        algorithm: str = "auto",
    ) -> None:
        super().__init__()
        self.spec = upsample_spec("GroupUpsample", size, scale_factor, mode, align_corners, algorithm)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    def forward(self, x: Tensor, size: Sizes | None = None) -> Tensor:
        return upsample("GroupUpsample", x, self.spec.at("GroupUpsample", size))

    def extra_repr(self) -> str:
        return self.spec.extra_repr
