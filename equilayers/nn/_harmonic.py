r"""Convolutions of harmonic features, equivariant to rotation by any angle."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import autocast, check_float, check_int, check_same_dtype, in_autocast, refuse
from equilayers.functional import (
    ConvSettings,
    WeightCache,
    check_orders,
    check_size,
    conv_spec,
    harmonic_filter,
    harmonic_terms,
    is_plain,
)
from equilayers.groups import CyclicRotation

QUARTERS = CyclicRotation(4)


class HarmonicConv2d(nn.Module):
    r"""The convolution between streams of rotation orders, as one real convolution.

    `y_m = sum over m' of W_{m - m'} * x_{m'}`, `W_m(r, phi) = R(r) e^{i (m phi + beta)}`: input (B, in_channels,
    2·in_order + 2, H, W), or real images (B, in_channels, H, W) where in_order is None; output (B, out_channels,
    2·out_order + 2, H', W'). The fiber holds the real part of order m at 2m, its imaginary part at 2m + 1.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: pixels along either axis; orders 1, 2, 3, 4 need kernels of 2, 3, 6, 9 pixels at least.
        in_order: highest order of the input; None for real images.
        out_order: highest order of the output.
        stride: pixels between samples; sizes on which it would sample asymmetrically are refused.
        padding: pixels on every side.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Attributes:
        profile: (O, C, J), the radial profile: one number for each ring of each pair of orders.
        phase: (O, C, (out_order + 1)·(in_order + 1)), in radians.
        exactness: "approximate": rounding for quarter turns.

    Raises:
        TypeError: a size is no int; in forward, an input that is not floating-point.
        ValueError: orders that the kernel cannot carry; in forward, an input of another shape, or a size that the
            stride samples asymmetrically.

    Law: `layer(rotate(x, a)) = rotate_harmonic(layer(x), a)` for every angle: to rounding for quarter turns, on
        maps of every size that is accepted; for others to an error that falls as the image is sampled finer.

    Source: Worrall et al. 2017, Eq. 2 and section 4 (arXiv:1612.04642).
    """

    exactness = "approximate"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        in_order: int | None = None,
        out_order: int = 1,
        stride: int = 1,
        padding: int = 0,
        padding_mode: str = "zeros",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "HarmonicConv2d"
        self.in_channels = check_int(caller, "in_channels", in_channels, 1)
        self.out_channels = check_int(caller, "out_channels", out_channels, 1)
        given = ConvSettings(True, QUARTERS, kernel_size, stride, padding, padding_mode=padding_mode)
        self.spec = conv_spec(caller, given)
        self.kernel_size = self.spec.kernel_size[0]
        check_orders(caller, self.kernel_size, in_order, out_order)
        self.in_order, self.out_order = in_order, out_order
        streams = 1 if in_order is None else in_order + 1
        numbers = len(harmonic_terms(self.kernel_size, streams - 1, out_order))
        pair = self.out_channels, self.in_channels
        self.profile = nn.Parameter(torch.empty(*pair, numbers, device=device, dtype=dtype))
        self.phase = nn.Parameter(torch.empty(*pair, (out_order + 1) * streams, device=device, dtype=dtype))
        self._cache = WeightCache()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw amplitudes that keep the size of the features, and phases of any angle."""
        terms_of_one = self.profile.shape[2] / (self.out_order + 1)
        nn.init.normal_(self.profile, std=1 / math.sqrt(self.in_channels * terms_of_one))
        nn.init.uniform_(self.phase, 0.0, 2 * math.pi)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        filters = self.filters()
        if in_autocast(x):
            x, filters = autocast(x), autocast(filters)
        else:
            check_same_dtype("HarmonicConv2d", "x", x, filters)
        maps, shape = self.spec.padded(x if self.in_order is None else x.flatten(1, 2))
        return F.conv2d(maps, filters, None, shape.stride, shape.padding).unflatten(1, (self.out_channels, -1))

    def filters(self) -> Tensor:
        r"""The filter of the one real convolution, kept while no gradient is wanted."""

        def make() -> Tensor:
            return harmonic_filter(self.profile, self.phase, self.kernel_size, self.in_order, self.out_order)

        if torch.compiler.is_compiling() or not is_plain(self.profile, self.phase):
            return make()
        filters: Tensor = self._cache.get((self.profile, self.phase), make)
        return filters

    def _check(self, x: Tensor) -> None:
        caller = "HarmonicConv2d"
        check_float(caller, "x", x)
        fiber = () if self.in_order is None else (2 * self.in_order + 2,)
        wanted = self.in_channels, *fiber
        if x.ndim != 3 + len(wanted) or tuple(x.shape[1:-2]) != wanted:
            shape = ", ".join(map(str, wanted))
            refuse(caller, f"x of shape (B, {shape}, H, W)", tuple(x.shape), "Give it a batch of maps.")
        check_size(caller, self.spec, (x.shape[-2], x.shape[-1]))

    def extra_repr(self) -> str:
        orders = f"in_order={self.in_order}, out_order={self.out_order}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {orders}{self.spec.extra_repr}"
        )
