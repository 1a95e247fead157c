r"""Weight-tied convolution layers: two classes over one core, which a `ConvSpec` tells apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equilayers._checks import check_int, refuse
from equilayers.functional import ConvSpec, WeightCache, basis, conv_spec, convolve, draw_steered
from equilayers.groups import Group, interpolates
from equilayers.nn._algorithm import ALGORITHMS, algorithm
from equilayers.nn._init import add_parameters, reset

Ints = int | Sequence[int]


class LiftingConv2d(nn.Module):
    r"""A convolution with every rotation of its filter: from images to regular features.

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
        ValueError: a group without rotations or mirrors, settings the group does not allow; in forward, another
            number of channels, or a size that the stride samples asymmetrically (the message names two settings that
            work).

    Law: `layer(act(g, x)) == act_regular(g, layer(x))` for all g, at every size that is accepted and at the level of
        `exactness`, on CPU in float32 and float64. The trivial group gives torch.nn.Conv2d.

    Source: Cohen and Welling 2016, Eq. 10 (arXiv:1602.07576).
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm
    group: Group
    spec: ConvSpec
    weight: Tensor
    bias: Tensor | None
    in_channels: int
    out_channels: int
    _cache: WeightCache

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
        spec = conv_spec(
            "LiftingConv2d",
            group,
            kernel_size,
            lifting=True,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            algorithm=algorithm,
        )
        _build(self, spec, in_channels, out_channels)
        add_parameters(self, _weight_size(self), bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Conv2d does; steered filters in their basis, of the same mean square."""
        reset(self.weight, self.bias)
        if interpolates(self.group):
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return _exactness(self.spec)

    @property
    def degrees_of_freedom(self) -> int:
        r"""How many numbers it can learn: of a steered filter the coefficients in its basis, and otherwise all."""
        return _degrees_of_freedom(self)

    def forward(self, x: Tensor) -> Tensor:
        return convolve("LiftingConv2d", x, self.weight, self.bias, self.spec, self._cache)

    def extra_repr(self) -> str:
        return _repr(self)


class GroupConv2d(nn.Module):
    r"""The equivariant convolution between regular features.

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
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: as for `LiftingConv2d`; in forward, another number of channels or another fiber.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, at every size that is accepted and at the
        level of `exactness`, on CPU in float32 and float64.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576).
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm
    group: Group
    spec: ConvSpec
    weight: Tensor
    bias: Tensor | None
    in_channels: int
    out_channels: int
    _cache: WeightCache

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
        spec = conv_spec(
            "GroupConv2d",
            group,
            kernel_size,
            lifting=False,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            algorithm=algorithm,
        )
        _build(self, spec, in_channels, out_channels)
        add_parameters(self, _weight_size(self), bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Conv2d does; steered filters in their basis, of the same mean square."""
        reset(self.weight, self.bias)
        if interpolates(self.group):
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return _exactness(self.spec)

    @property
    def degrees_of_freedom(self) -> int:
        r"""How many numbers it can learn: of a steered filter the coefficients in its basis, and otherwise all."""
        return _degrees_of_freedom(self)

    def forward(self, f: Tensor) -> Tensor:
        return convolve("GroupConv2d", f, self.weight, self.bias, self.spec, self._cache)

    def extra_repr(self) -> str:
        return _repr(self)


def _build(layer: LiftingConv2d | GroupConv2d, spec: ConvSpec, in_channels: int, out_channels: int) -> None:
    r"""Everything of a layer but its parameters."""
    caller = type(layer).__name__
    given = {
        "in_channels": check_int(caller, "in_channels", in_channels, 1),
        "out_channels": check_int(caller, "out_channels", out_channels, 1),
    }
    for name, count in given.items():
        if count % spec.groups:
            refuse(caller, f"{name} divisible by groups={spec.groups}", count, "Change one of them.")
        setattr(layer, name, count)
    layer.group, layer.spec, layer._cache = spec.group, spec, WeightCache()


def _weight_size(layer: LiftingConv2d | GroupConv2d) -> tuple[int, ...]:
    spec = layer.spec
    fiber = () if spec.lifting else (spec.group.order,)
    return layer.out_channels, layer.in_channels // spec.groups, *fiber, *spec.kernel_size


def _exactness(spec: ConvSpec) -> str:
    r"""The level: "rounding" where the expanded filter may be used, "approximate" where the group interpolates."""
    if spec.group.exactness != "bitwise":
        return spec.group.exactness
    return "rounding" if spec.algorithm in ("auto", "dense") else "bitwise"


def _degrees_of_freedom(layer: LiftingConv2d | GroupConv2d) -> int:
    filters = layer.weight.flatten(-2)
    each = basis(layer.weight.shape[-1]).shape[1] if interpolates(layer.group) else filters.shape[-1]
    return filters[..., 0].numel() * each + (0 if layer.bias is None else layer.bias.numel())


def _repr(layer: LiftingConv2d | GroupConv2d) -> str:
    spec = layer.spec
    parts = [f"{layer.group!r}, {layer.in_channels}, {layer.out_channels}, kernel_size={spec.kernel_size}"]
    plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    parts += [f"{name}={getattr(spec, name)!r}" for name, usual in plain.items() if getattr(spec, name) != usual]
    return ", ".join([*parts, f"bias={layer.bias is not None}", f"algorithm={spec.algorithm!r}"])
