r"""Weight-tied convolution layers: two classes over one core, which a `ConvSpec` tells apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equilayers._checks import ALGORITHMS, check_int, refuse
from equilayers.functional import ConvSettings, ConvSpec, WeightCache, basis, conv_spec, convolve, draw_steered
from equilayers.functional.choices import convolution_choice
from equilayers.functional.cost import Choice
from equilayers.groups import Group, interpolates
from equilayers.nn._algorithm import algorithm
from equilayers.nn._init import add_parameters, reset

Ints = int | Sequence[int]


class LiftingConv2d(nn.Module):
    r"""The lifting convolution: every rotation of its filter, from images to regular features.

    `y[b, o, h] = corr(h · weight_o, x_b) + bias_o`, input (B, in_channels, H, W), output
    (B, out_channels, |G|, H', W').

    Args:
        group: CyclicRotation or Dihedral, or its name, "C4".
        in_channels: channels of the images.
        out_channels: number of output features; the layer computes |G| planes of each.
        kernel_size, stride, padding, dilation, padding_mode: as in torch.nn.Conv2d, in pixels; padding may be "same"
            where it is symmetric. Pairs are (height, width); with quarter turns both must be alike.
        groups: channel groups.
        bias: learn a bias, one per feature, shared over the fiber.
        algorithm: "auto", "bitwise", "orbit", "dense" or "fourier"; see `equilayers.functional.lift_conv2d`.

    Attributes:
        weight: (out_channels, in_channels / groups, kh, kw), initialised with the mean square of torch.nn.Conv2d.
        bias: (out_channels,) or None.
        exactness: "bitwise"; "rounding" with "auto" and "dense"; "approximate" for a group that interpolates.

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: settings the group does not allow; in forward, what `equilayers.functional.lift_conv2d` refuses.

    Law: `layer(act(g, x)) == act_regular(g, layer(x))` for all g, at every size that is accepted and at the level of
        `exactness`, on CPU in float32 and float64. The trivial group gives torch.nn.Conv2d.

    Source: Cohen and Welling 2016, Eq. 10 (arXiv:1602.07576).
    """

    ALGORITHMS = ALGORITHMS
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        given = ConvSettings(True, group, kernel_size, stride, padding, dilation, groups, padding_mode, algorithm)
        self.spec = conv_spec("LiftingConv2d", given)
        self.group = self.spec.group
        self.in_channels, self.out_channels = _channels("LiftingConv2d", self.spec, in_channels, out_channels)
        self._cache = WeightCache()
        size = self.out_channels, self.in_channels // groups, *self.spec.kernel_size
        add_parameters(self, size, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Conv2d does; steered filters in their basis, of the same mean square."""
        reset(self.weight, self.bias)
        if interpolates(self.group):
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    @property
    def degrees_of_freedom(self) -> int:
        r"""The number of learned parameters: of a steered filter the coefficients in its basis, otherwise all."""
        return _degrees_of_freedom(self)

    def forward(self, x: Tensor) -> Tensor:
        return convolve("LiftingConv2d", x, self.weight, self.bias, self.spec, self._cache)

    def chosen(self, x: Tensor) -> Choice:
        r"""The algorithm that runs for x, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        return convolution_choice("LiftingConv2d", x, self.weight, self.spec)

    def extra_repr(self) -> str:
        return _repr(self)


class GroupConv2d(nn.Module):
    r"""The group convolution: equivariant, between regular features.

    `y[b, o, h] = sum_{c,k} corr(h · weight[o, c, h^-1 k], f[b, c, k]) + bias_o`, input (B, in_channels, |G|, H, W),
    output (B, out_channels, |G|, H', W').

    Args:
        group: as of `LiftingConv2d`.
        in_channels: number of input features, C.
        out_channels: number of output features.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode, algorithm: as in `LiftingConv2d`.

    Attributes:
        weight: (out_channels, in_channels / groups, |G|, kh, kw), at first of the mean square of torch.nn.Conv2d's. Its
            five axes have no `torch.channels_last`: convert the inputs, not the module, or take
            `torch.channels_last_3d`.
        bias: (out_channels,) or None.
        exactness: as of `LiftingConv2d`.

    Raises:
        TypeError, ValueError: as for `LiftingConv2d`, or another fiber.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, at every size that is accepted and at the
        level of `exactness`, on CPU in float32 and float64.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576).
    """

    ALGORITHMS = ALGORITHMS
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        given = ConvSettings(False, group, kernel_size, stride, padding, dilation, groups, padding_mode, algorithm)
        self.spec = conv_spec("GroupConv2d", given)
        self.group = self.spec.group
        self.in_channels, self.out_channels = _channels("GroupConv2d", self.spec, in_channels, out_channels)
        self._cache = WeightCache()
        size = self.out_channels, self.in_channels // groups, self.group.order, *self.spec.kernel_size
        add_parameters(self, size, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Conv2d does; steered filters in their basis, of the same mean square."""
        reset(self.weight, self.bias)
        if interpolates(self.group):
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    @property
    def degrees_of_freedom(self) -> int:
        r"""The number of learned parameters: of a steered filter the coefficients in its basis, otherwise all."""
        return _degrees_of_freedom(self)

    def forward(self, f: Tensor) -> Tensor:
        return convolve("GroupConv2d", f, self.weight, self.bias, self.spec, self._cache)

    def chosen(self, f: Tensor) -> Choice:
        r"""The algorithm that runs for f, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        return convolution_choice("GroupConv2d", f, self.weight, self.spec)

    def extra_repr(self) -> str:
        return _repr(self)


def _channels(caller: str, spec: ConvSpec, in_channels: int, out_channels: int) -> tuple[int, int]:
    r"""The checked numbers of channels."""
    for name, count in ("in_channels", in_channels), ("out_channels", out_channels):
        if check_int(caller, name, count, 1) % spec.groups:
            refuse(caller, f"{name} divisible by groups={spec.groups}", count, "Change one of them.")
    return int(in_channels), int(out_channels)


def _degrees_of_freedom(layer: LiftingConv2d | GroupConv2d) -> int:
    filters = layer.weight.flatten(-2)
    each = basis(layer.weight.shape[-1]).shape[1] if interpolates(layer.group) else filters.shape[-1]
    return filters[..., 0].numel() * each + (0 if layer.bias is None else layer.bias.numel())


def _repr(layer: LiftingConv2d | GroupConv2d) -> str:
    sizes = f"{layer.group!r}, {layer.in_channels}, {layer.out_channels}, kernel_size={layer.spec.kernel_size}"
    return f"{sizes}{layer.spec.extra_repr}, bias={layer.bias is not None}, algorithm={layer.spec.algorithm!r}"
