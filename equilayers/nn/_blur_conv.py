r"""Strided convolution without aliasing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from equilayers._checks import PADDING_MODES, check_choice, refuse
from equilayers.functional import BlurSpec, ConvSettings, blur_pool, blur_spec, conv_spec
from equilayers.functional._resample import Ints, Taps
from equilayers.functional.strides import StrideSpec, align, split
from equilayers.groups import CyclicRotation, Group
from equilayers.nn._blur_pool import describe
from equilayers.nn._conv import GroupConv2d

ORDERS = ("conv-activation-blur", "blur-conv-activation", "symmetric-stride")


class BlurConv2d(nn.Module):
    r"""A strided convolution without aliasing: convolution at stride 1, activation, blur and subsample.

    Args:
        group: a symmetry, or its name, for a `GroupConv2d` between regular features; None for a torch.nn.Conv2d.
        in_channels, out_channels: of the convolution.
        kernel_size: of the convolution, an int or a pair.
        stride: of the subsampling, an int or a pair.
        padding, dilation, groups, bias: of the convolution, as in torch.nn.Conv2d; `groups` are channel groups.
        padding_mode: of the blur and, unless `conv_padding_mode` says otherwise, of the convolution.
        taps: of the blur: "auto", 1 to 7, or the weights along one axis.
        activation: between the convolution and the blur; ReLU if None, nn.Identity() for none.
        order: "conv-activation-blur", the order that Zhang found best; "blur-conv-activation", which convolves the
            small map instead of the large one, with a reach of stride times as many pixels; or "symmetric-stride",
            which convolves with the stride, as torch.nn.Conv2d, and takes the mean of neighbouring pixels before it
            where the parity of the map asks for it: it aliases most. The last two are stride^2 times cheaper.
        conv_padding_mode: of the convolution, where it is not that of the blur.

    Attributes:
        conv: the convolution, at stride 1 or, with "symmetric-stride", without padding.
        before: with "symmetric-stride" how maps are made ready for the convolution, None otherwise.
        exactness: "rounding" with "auto" taps, where the convolution keeps the law; "approximate" otherwise.

    Raises:
        TypeError, ValueError: settings that make no sense; in forward, as `equilayers.functional.blur_pool2d`.

    Law: with a group, `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g.

    Source: Zhang 2019, section 3.2 (arXiv:1904.11486).
    """

    spec: BlurSpec

    def __init__(
        self,
        group: Group | str | None,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 2,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "reflect",
        *,
        taps: Taps = "auto",
        activation: nn.Module | None = None,
        order: str = ORDERS[0],
        conv_padding_mode: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "BlurConv2d"
        self.spec = blur_spec(caller, taps, stride, padding_mode)
        self.order = check_choice(caller, "order", order, ORDERS)
        mode = padding_mode if conv_padding_mode is None else conv_padding_mode
        settings: dict[str, Any] = {
            "kernel_size": kernel_size,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": check_choice(caller, "padding_mode", mode, PADDING_MODES),
        }
        self.before: StrideSpec | None = None
        if order == ORDERS[2]:
            self.before, settings = _strided(caller, group, self.spec, settings)
        settings |= {"bias": bias, "device": device, "dtype": dtype}
        self.conv = (
            nn.Conv2d(in_channels, out_channels, **settings)
            if group is None
            else GroupConv2d(group, in_channels, out_channels, **settings)
        )
        self.activation = nn.ReLU() if activation is None else activation

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return "rounding" if self.spec.taps is None else "approximate"

    @property
    def blurs_first(self) -> bool:
        r"""Whether the blur comes before the convolution."""
        return self.order != ORDERS[0]

    def forward(self, x: Tensor) -> Tensor:
        caller = "BlurConv2d"
        if not self.blurs_first:
            return blur_pool(caller, self.activation(self.conv(x)), self.spec)
        maps = blur_pool(caller, x, self.spec) if self.before is None else align(caller, x, self.before)
        y: Tensor = self.activation(self.conv(maps))
        return y

    def extra_repr(self) -> str:
        return f"{describe(self.spec)}, order={self.order!r}"


def _strided(
    caller: str, group: Group | str | None, blur: BlurSpec, given: dict[str, Any]
) -> tuple[StrideSpec, dict[str, Any]]:
    r"""What is done before a convolution with the stride, and the settings that are left to it."""
    if blur.taps is not None:
        hint = "It takes one tap or two, as the parity of the map asks for."
        refuse(caller, f"taps='auto' with order={ORDERS[2]!r}", blur.taps, hint)
    conv = conv_spec(caller, ConvSettings(False, CyclicRotation(1) if group is None else group, **given))
    before, rest = split(replace(conv, stride=blur.stride))
    before = replace(before, axes=(0, 1)) if group is None else before
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return before, {name: getattr(rest, name) for name in names}
