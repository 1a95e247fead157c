r"""Nonlinearity, normalisation and magnitude of harmonic features: pixel by pixel, phases kept."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

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

    def __init__(
        self, channels: int, order: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        caller = "HarmonicNonlinearity"
        size = check_int(caller, "channels", channels, 1), check_int(caller, "order", order, 0) + 1
        self.bias = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
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
        momentum: of the running mean square; None for the mean over all batches, as in torch.nn.BatchNorm2d.

    Attributes:
        weight: (C, M + 1), one at the beginning.
        running_square: (C, M + 1), used in eval mode.
        statistics: where it is kept, as torch's batch norms keep a variance. So `torch.optim.swa_utils.update_bn` finds
            it; and after `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, which puts a SyncBatchNorm there, the mean
            square is taken over the batches of all processes.
        exactness: "rounding": phases rotate by any angle, and no pixel is read but its own.

    Raises:
        ValueError: in forward, a feature of another shape.

    Law: `layer(rotate_harmonic(z, a)) == rotate_harmonic(layer(z), a)`, to rounding for quarter turns; there is no mean
        to subtract, for it would rotate.

    Source: Worrall et al. 2017, section 5 (arXiv:1612.04642), on magnitudes; Weiler and Cesa 2019 (arXiv:1911.08251).
    """

    exactness = "rounding"
    statistics: _BatchNorm

    def __init__(
        self,
        channels: int,
        order: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "HarmonicBatchNorm"
        size = check_int(caller, "channels", channels, 1), check_int(caller, "order", order, 0) + 1
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.statistics = _MeanSquare(size[0] * size[1], eps, momentum, affine=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""A weight of one, and a running mean square of one."""
        nn.init.ones_(self.weight)
        self.statistics.reset_running_stats()

    @property
    def eps(self) -> float:
        r"""Added to the mean square."""
        return self.statistics.eps

    @property
    def momentum(self) -> float | None:
        r"""Of the running mean square; it may be set in `statistics`."""
        return self.statistics.momentum

    @property
    def running_square(self) -> Tensor:
        r"""The running mean square of each stream, (C, M + 1)."""
        return cast(Tensor, self.statistics.running_var).view(self.weight.shape)

    def forward(self, z: Tensor) -> Tensor:
        _check_streams("HarmonicBatchNorm", z, self.weight)
        square = self.running_square
        if self.statistics.training:  # modules of torch's are frozen one by one
            square = _mean_square(z, self.statistics)
            if z.numel():  # nothing has no mean
                self._update(square.detach())
        return scale_magnitude(z, self.scale(square).to(z.dtype)[:, :, None, None])

    @torch.no_grad()
    def _update(self, square: Tensor) -> None:
        running, count = self.running_square, cast(Tensor, self.statistics.num_batches_tracked).add_(1)
        share = 1 / count.to(running.dtype) if self.momentum is None else self.momentum
        running.lerp_(square.to(running.dtype), share)

    def scale(self, square: Tensor) -> Tensor:
        r"""The factors of streams (C, M + 1) of this mean square."""
        return self.weight * (square + self.eps).rsqrt()

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, order={self.weight.shape[1] - 1}, eps={self.eps}, momentum={self.momentum}"


class _MeanSquare(_BatchNorm):
    r"""What torch's batch norms keep, for those who look for it; `running_var` holds mean squares, the mean is zero."""


def _mean_square(z: Tensor, statistics: nn.Module) -> Tensor:
    r"""The mean of |z|^2 over batch and map, (C, M + 1), of all processes where the statistics are converted."""
    squares = square_magnitude(z)
    if not isinstance(statistics, nn.SyncBatchNorm) or not (dist.is_available() and dist.is_initialized()):
        return squares.mean((0, 3, 4))
    sums = squares.sum((0, 3, 4))
    count = sums.new_full((1,), squares[:, 0, 0].numel())
    total = cast(Tensor, _SumOverProcesses.apply(torch.cat((sums.flatten(), count)), statistics.process_group))
    return (total[:-1] / total[-1]).view(sums.shape)


class _SumOverProcesses(Function):
    r"""The sum over all processes; every one of them has its part in the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, x = group, x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _SumOverProcesses.apply(v, ctx.group)), None


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
