r"""Nonlinearity, normalisation and magnitude of harmonic features: pixel by pixel, phases kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import check_int, check_same_device, refuse
from equilayers.functional import check_harmonic, harmonic_magnitude, scale_magnitude, square_magnitude


class HarmonicNonlinearity(nn.Module):
    r"""ReLU on the magnitude, the phase kept: `z_m -> relu(|z_m| + b) z_m / |z_m|`.

    Args:
        channels: C.
        order: highest order, M.

    Attributes:
        bias: (C, M + 1), -1/2 at the beginning: with none of it everything would pass, and nothing be nonlinear.
        exactness: "rounding": phases rotate by any angle, and no pixel is read but its own.

    Raises:
        ValueError: in forward, a feature of another shape.

    Law: `layer(rotate_harmonic(z, a)) == rotate_harmonic(layer(z), a)`, to rounding for quarter turns.

    Source: Worrall et al. 2017, Eq. 8 (arXiv:1612.04642).
    """

    exactness = "rounding"

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        caller = "HarmonicNonlinearity"
        size = check_int(caller, "channels", channels, 1), check_int(caller, "order", order, 0) + 1
        self.bias = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""A bias of -1/2, which cuts a fifth of what has a mean square of one."""
        nn.init.constant_(self.bias, -0.5)

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
        exactness: "rounding": phases rotate by any angle, and no pixel is read but its own.

    Raises:
        ValueError: in forward, a feature of another shape.

    Law: `layer(rotate_harmonic(z, a)) == rotate_harmonic(layer(z), a)`, to rounding for quarter turns; there is no mean
        to subtract, for it would rotate.

    Source: Worrall et al. 2017, section 5 (arXiv:1612.04642), on magnitudes; Weiler and Cesa 2019 (arXiv:1911.08251).
    """

    exactness = "rounding"
    running_square: Tensor

    def __init__(self, channels: int, order: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        caller = "HarmonicBatchNorm"
        size = check_int(caller, "channels", channels, 1), check_int(caller, "order", order, 0) + 1
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.empty(size))
        self.register_buffer("running_square", torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""A weight of one, and a running mean square of one."""
        nn.init.ones_(self.weight)
        nn.init.ones_(self.running_square)

    def forward(self, z: Tensor) -> Tensor:
        _check_streams("HarmonicBatchNorm", z, self.weight)
        square = self.running_square
        if self.training:
            square = square_magnitude(z).mean((0, 3, 4))
            with torch.no_grad():
                if z.numel():  # nothing has no mean
                    self.running_square.lerp_(square.to(self.running_square.dtype), self.momentum)
        return scale_magnitude(z, self.scale(square).to(z.dtype)[:, :, None, None])

    def scale(self, square: Tensor) -> Tensor:
        r"""The factors of streams (C, M + 1) of this mean square."""
        return self.weight * (square + self.eps).rsqrt()

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, order={self.weight.shape[1] - 1}, eps={self.eps}, momentum={self.momentum}"


class HarmonicMagnitude(nn.Module):
    r"""The magnitudes of all orders as the channels of an image, (B, C, 2M + 2, H, W) to (B, C·(M + 1), H, W).

    It is rotated in the plane alone: a mean over the map makes it invariant.

    Attributes:
        exactness: "rounding": phases rotate by any angle, and no pixel is read but its own.

    Raises:
        TypeError, ValueError: in forward, what is no harmonic feature.

    Law: `layer(rotate_harmonic(z, a)) == rotate(layer(z), a)`, to rounding for quarter turns.

    Source: Worrall et al. 2017, section 4 (arXiv:1612.04642).
    """

    exactness = "rounding"

    def forward(self, z: Tensor) -> Tensor:
        return harmonic_magnitude(z).flatten(1, 2)


def _check_streams(caller: str, z: Tensor, like: Tensor) -> None:
    check_same_device(caller, "z", check_harmonic(caller, z), like)
    if (z.shape[1], z.shape[2] // 2) != tuple(like.shape):
        wanted = f"z of shape (B, {like.shape[0]}, {2 * like.shape[1]}, H, W)"
        refuse(caller, wanted, tuple(z.shape), "Take the channels and the order of the layer before.")
