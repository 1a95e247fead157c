r"""Weight-tied convolution layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilayers._checks import check_choice, check_int, refuse
from equilayers.functional._conv import Ints, convolve
from equilayers.functional._convolution.dispatch import ALGORITHMS
from equilayers.functional._convolution.geometry import Geometry, check_plane_group, geometry
from equilayers.functional._steerable_basis import basis, draw_steered
from equilayers.functional._weight_cache import Prepared
from equilayers.groups import Group, as_group, interpolates
from equilayers.nn._linear import reset


class LiftingConv2d(nn.Module):
    r"""A convolution with every turn of its filter: from images to regular features.

    `y[b, o, h] = corr(h · weight_o, x_b) + bias_o`, input (B, in_channels, H, W), output
    (B, out_channels, |G|, H', W').

    Args:
        group: CyclicRotation or Dihedral.
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
        exactness: "bitwise" or "rounding".

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: a group without turns, settings the group does not allow; in forward, another number of channels,
            or a size that the stride samples lopsidedly: the message names two settings that work.

    Law: `layer(act(g, x)) == act_regular(g, layer(x))` for all g, at every size that is accepted and at the level of
        `exactness`, on CPU in float32 and float64. The trivial group gives torch.nn.Conv2d.

    Source: Cohen and Welling 2016, Eq. 10 (arXiv:1602.07576).
    """

    def __init__(
        self,
        group: Group,
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
        caller = "LiftingConv2d"
        self.group = check_plane_group(caller, as_group(caller, group))
        self.geometry = geometry(caller, group, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.in_channels, self.out_channels = _channels(caller, in_channels, out_channels, self.geometry)
        self.algorithm = check_choice(caller, "algorithm", algorithm, ALGORITHMS)
        size = (self.out_channels, self.in_channels // self.geometry.groups, *self.geometry.kernel_size)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self._prepared = Prepared()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Conv2d does; steered filters in their basis, of the same mean square."""
        reset(self.weight, self.bias)
        if interpolates(self.group):
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds: "rounding" where the expanded filter may be used, "bitwise" otherwise."""
        return _exactness(self.group, self.algorithm)

    @property
    def degrees_of_freedom(self) -> int:
        r"""How many numbers it can learn: of a steered filter the coefficients in its basis, and otherwise all."""
        return _degrees_of_freedom(self)

    def forward(self, x: Tensor) -> Tensor:
        shape, algorithm = self.geometry, self.algorithm
        return convolve("LiftingConv2d", x, self.weight, self.bias, self.group, shape, algorithm, self._prepared)

    def extra_repr(self) -> str:
        return _repr(self)


class GroupConv2d(nn.Module):
    r"""The equivariant convolution between regular features.

    `y[b, o, h] = sum_{c,k} corr(h · weight[o, c, h^-1 k], f[b, c, k]) + bias_o`, input (B, in_channels, |G|, H, W),
    output (B, out_channels, |G|, H', W').

    Args:
        group: CyclicRotation or Dihedral.
        in_channels: number of input features, C.
        out_channels: number of output features.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode, algorithm: as in `LiftingConv2d`.

    Attributes:
        weight: (out_channels, in_channels / groups, |G|, kh, kw), at first of the mean square of torch.nn.Conv2d's. Its
            five axes have no `torch.channels_last`: convert the inputs, not the module, or take
            `torch.channels_last_3d`.
        bias: (out_channels,) or None.
        exactness: "bitwise" or "rounding".

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: as for `LiftingConv2d`; in forward, another number of channels or another fiber.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, at every size that is accepted and at the
        level of `exactness`, on CPU in float32 and float64.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576).
    """

    def __init__(
        self,
        group: Group,
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
        caller = "GroupConv2d"
        self.group = check_plane_group(caller, as_group(caller, group))
        self.geometry = geometry(caller, group, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.in_channels, self.out_channels = _channels(caller, in_channels, out_channels, self.geometry)
        self.algorithm = check_choice(caller, "algorithm", algorithm, ALGORITHMS)
        channels = self.in_channels // self.geometry.groups
        size = (self.out_channels, channels, group.order, *self.geometry.kernel_size)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self._prepared = Prepared()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Conv2d does; steered filters in their basis, of the same mean square."""
        reset(self.weight, self.bias)
        if interpolates(self.group):
            draw_steered(self.weight)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds: "rounding" where the expanded filter may be used, "bitwise" otherwise."""
        return _exactness(self.group, self.algorithm)

    @property
    def degrees_of_freedom(self) -> int:
        r"""How many numbers it can learn: of a steered filter the coefficients in its basis, and otherwise all."""
        return _degrees_of_freedom(self)

    def forward(self, f: Tensor) -> Tensor:
        shape, algorithm = self.geometry, self.algorithm
        return convolve("GroupConv2d", f, self.weight, self.bias, self.group, shape, algorithm, self._prepared)

    def extra_repr(self) -> str:
        return _repr(self)


def _channels(caller: str, in_channels: int, out_channels: int, shape: Geometry) -> tuple[int, int]:
    given = {
        "in_channels": check_int(caller, "in_channels", in_channels, 1),
        "out_channels": check_int(caller, "out_channels", out_channels, 1),
    }
    for name, count in given.items():
        if count % shape.groups:
            refuse(caller, f"{name} divisible by groups={shape.groups}", count, "Change one of them.")
    return given["in_channels"], given["out_channels"]


def _exactness(group: Group, algorithm: str) -> str:
    if group.exactness != "bitwise":
        return group.exactness
    return "rounding" if algorithm in ("auto", "dense") else "bitwise"


def _degrees_of_freedom(layer: LiftingConv2d | GroupConv2d) -> int:
    filters = layer.weight.flatten(-2)
    each = basis(layer.weight.shape[-1]).shape[1] if interpolates(layer.group) else filters.shape[-1]
    return filters[..., 0].numel() * each + (0 if layer.bias is None else layer.bias.numel())


def _repr(layer: LiftingConv2d | GroupConv2d) -> str:
    shape = layer.geometry
    parts = [f"{layer.group!r}, {layer.in_channels}, {layer.out_channels}, kernel_size={shape.kernel_size}"]
    plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    parts += [f"{name}={getattr(shape, name)!r}" for name, usual in plain.items() if getattr(shape, name) != usual]
    return ", ".join([*parts, f"bias={layer.bias is not None}", f"algorithm={layer.algorithm!r}"])
