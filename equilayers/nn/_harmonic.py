r"""Layers of harmonic features, which turn with the image at any angle."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import autocast, check_float, check_int, check_same_dtype, in_autocast, refuse
from equilayers.functional._geometry import check_size, geometry
from equilayers.functional._harmonic import (
    check_harmonic,
    check_orders,
    harmonic_filter,
    harmonic_magnitude,
    scale_magnitude,
    terms,
)
from equilayers.functional._prepared import Prepared, is_plain
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
        kernel_size: pixels along either axis; a kernel of k pixels carries orders up to k - 1.
        in_order: highest order of the input; None for real images.
        out_order: highest order of the output.
        stride: pixels between samples; where it would sample a lopsided grid the size is refused.
        padding: pixels on every side.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Attributes:
        profile: (O, C, J), the radial profile: one number for each ring of each pair of orders.
        phase: (O, C, (out_order + 1)·(in_order + 1)), in radians.
        exactness: "approximate": rounding for quarter turns.

    Raises:
        TypeError: a size is no int; in forward, an input that is not floating-point.
        ValueError: orders that the kernel cannot carry; in forward, an input of another shape, or a lopsided size.

    Law: `layer(rotate(x, a)) = rotate_harmonic(layer(x), a)` for every angle: to rounding for quarter turns, on square
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
        who = "HarmonicConv2d"
        self.in_channels = check_int(who, "in_channels", in_channels, 1)
        self.out_channels = check_int(who, "out_channels", out_channels, 1)
        self.geometry = geometry(who, QUARTERS, kernel_size, stride, padding, 1, 1, padding_mode)
        self.kernel_size = self.geometry.kernel_size[0]
        check_orders(who, self.kernel_size, in_order, out_order)
        self.in_order, self.out_order = in_order, out_order
        streams = 1 if in_order is None else in_order + 1
        numbers = len(terms(self.kernel_size, streams - 1, out_order))
        pair = self.out_channels, self.in_channels
        self.profile = nn.Parameter(torch.empty(*pair, numbers, device=device, dtype=dtype))
        self.phase = nn.Parameter(torch.empty(*pair, (out_order + 1) * streams, device=device, dtype=dtype))
        self._prepared = Prepared()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw amplitudes that keep the size of the features, and phases of any angle."""
        terms_of_one = self.profile.shape[2] / (self.out_order + 1)
        nn.init.normal_(self.profile, std=1 / math.sqrt(self.in_channels * terms_of_one))
        nn.init.uniform_(self.phase, 0.0, 2 * math.pi)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        filters = self._filters()
        if in_autocast(x):
            x, filters = autocast(x), autocast(filters)
        else:
            check_same_dtype("HarmonicConv2d", "x", x, filters)
        maps, shape = self.geometry.padded(x if self.in_order is None else x.flatten(1, 2))
        return F.conv2d(maps, filters, None, shape.stride, shape.padding).unflatten(1, (self.out_channels, -1))

    def _filters(self) -> Tensor:
        def make() -> Tensor:
            return harmonic_filter(self.profile, self.phase, self.kernel_size, self.in_order, self.out_order)

        if torch.compiler.is_compiling() or not is_plain(self.profile, self.phase):
            return make()
        filters: Tensor = self._prepared.get((self.profile, self.phase), make)
        return filters

    def _check(self, x: Tensor) -> None:
        who = "HarmonicConv2d"
        check_float(who, "x", x)
        fiber = () if self.in_order is None else (2 * self.in_order + 2,)
        wanted = self.in_channels, *fiber
        if x.ndim != 3 + len(wanted) or tuple(x.shape[1:-2]) != wanted or x.shape[-1] != x.shape[-2]:
            shape = ", ".join(map(str, wanted))
            refuse(who, f"x of shape (B, {shape}, H, H)", tuple(x.shape), "A turn needs a square map.")
        check_size(who, QUARTERS, self.geometry, (x.shape[-2], x.shape[-1]))

    def extra_repr(self) -> str:
        shape = self.geometry
        orders = f"in_order={self.in_order}, out_order={self.out_order}"
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {orders}"
        plain = {"stride": (1, 1), "padding": (0, 0), "padding_mode": "zeros"}
        return text + "".join(
            f", {name}={getattr(shape, name)!r}" for name, usual in plain.items() if getattr(shape, name) != usual
        )


class HarmonicNonlinearity(nn.Module):
    r"""ReLU on the magnitude, the phase kept: `z_m -> relu(|z_m| + b) z_m / |z_m|`.

    Args:
        channels: C.
        order: highest order, M.

    Attributes:
        bias: (C, M + 1), zero at the beginning.
        exactness: "approximate", as of `HarmonicConv2d`.

    Raises:
        ValueError: in forward, a feature of another shape.

    Law: `layer(rotate_harmonic(z, a)) == rotate_harmonic(layer(z), a)`, to rounding for quarter turns.

    Source: Worrall et al. 2017, Eq. 8 (arXiv:1612.04642).
    """

    exactness = "approximate"

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        who = "HarmonicNonlinearity"
        size = check_int(who, "channels", channels, 1), check_int(who, "order", order, 0) + 1
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, z: Tensor) -> Tensor:
        _check_streams("HarmonicNonlinearity", z, self.bias)
        size = harmonic_magnitude(z)
        positive = size > 0
        scale = F.relu(size + self.bias[:, :, None, None]) / torch.where(positive, size, 1)
        return scale_magnitude(z, torch.where(positive, scale, 0))

    def extra_repr(self) -> str:
        return f"{self.bias.shape[0]}, order={self.bias.shape[1] - 1}"


class HarmonicBatchNorm(nn.Module):
    r"""Every stream divided by the root mean square of its magnitude over batch and map, times a learned number.

    Args:
        channels: C.
        order: highest order, M.
        eps: added to the mean square.
        momentum: of the running mean square.

    Attributes:
        weight: (C, M + 1), one at the beginning.
        running_square: (C, M + 1), used in eval mode.
        exactness: "approximate", as of `HarmonicConv2d`.

    Raises:
        ValueError: in forward, a feature of another shape.

    Law: `layer(rotate_harmonic(z, a)) == rotate_harmonic(layer(z), a)`, to rounding for quarter turns; there is no mean
        to subtract, for it would turn.

    Source: Worrall et al. 2017, section 5 (arXiv:1612.04642), on magnitudes; Weiler and Cesa 2019 (arXiv:1911.08251).
    """

    exactness = "approximate"
    running_square: Tensor

    def __init__(self, channels: int, order: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        who = "HarmonicBatchNorm"
        size = check_int(who, "channels", channels, 1), check_int(who, "order", order, 0) + 1
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(size))
        self.register_buffer("running_square", torch.ones(size))

    def forward(self, z: Tensor) -> Tensor:
        _check_streams("HarmonicBatchNorm", z, self.weight)
        square = self.running_square
        if self.training:
            square = z.square().unflatten(2, (-1, 2)).sum(3).mean((0, 3, 4))
            with torch.no_grad():
                self.running_square.lerp_(square.to(self.running_square.dtype), self.momentum)
        scale = self.weight * (square + self.eps).rsqrt()
        return scale_magnitude(z, scale.to(z.dtype)[:, :, None, None])

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, order={self.weight.shape[1] - 1}, eps={self.eps}, momentum={self.momentum}"


class HarmonicMagnitude(nn.Module):
    r"""The magnitudes of all orders as the channels of an image, (B, C, 2M + 2, H, W) to (B, C·(M + 1), H, W).

    What is left turns in the plane alone: a mean over the map makes it invariant.

    Attributes:
        exactness: "approximate", as of `HarmonicConv2d`.

    Raises:
        TypeError, ValueError: in forward, what is no harmonic feature.

    Law: `layer(rotate_harmonic(z, a)) == rotate(layer(z), a)`, to rounding for quarter turns.

    Source: Worrall et al. 2017, section 4 (arXiv:1612.04642).
    """

    exactness = "approximate"

    def forward(self, z: Tensor) -> Tensor:
        return harmonic_magnitude(z).flatten(1, 2)


def _check_streams(who: str, z: Tensor, like: Tensor) -> None:
    check_harmonic(who, z)
    if (z.shape[1], z.shape[2] // 2) != tuple(like.shape):
        wanted = f"z of shape (B, {like.shape[0]}, {2 * like.shape[1]}, H, W)"
        refuse(who, wanted, tuple(z.shape), "Take the channels and the order of the layer before.")
