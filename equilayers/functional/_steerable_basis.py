r"""Steerable filters, which can be rotated by any angle: circular harmonics on the pixels of a kernel.

A filter is a sum of `g_r(|t|) cos(m phi)` and `g_r(|t|) sin(m phi)`: on the rings r of a Gaussian profile, up to the
order m that its pixels can carry. Rotated by an angle a, the pair of order m is rotated by m·a, so that

    h · psi = S_h psi,    S_h = B D_h B^+,

with the basis B (T, N) on T taps, D_h orthogonal in blocks of two, and B^+ the pseudo-inverse: what of a filter lies
outside the basis is dropped, also for the identity. `S_g S_h = S_gh`, and for quarter turns S_h moves the taps of what
is left to other taps, both to rounding.

Source: Freeman and Adelson 1991; Weiler, Hamprecht and Storath 2018 (arXiv:1711.07289).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._tables import table
from equilayers._torch_compat import constant_when_compiled
from equilayers.groups import Rotations

Array = NDArray[np.float64]

# Pixels, of the Gaussian profiles: that of the outermost ring, which the edge of the kernel cuts off, is narrower.
WIDTH, OUTERMOST_WIDTH = 0.6, 0.4


def rings(kernel_size: int) -> list[float]:
    r"""The radii of the rings of a kernel: whole ones around its middle pixel, halves where it has none."""
    return [(kernel_size - 1) % 2 / 2 + i for i in range((kernel_size + 1) // 2)]


def waves(kernel_size: int) -> list[tuple[float, int]]:
    r"""The rings and orders of the basis.

    Up to order 2r on a ring of radius r, which has 2 pi r pixels; fewer towards the edge, where pixels are missing.
    """
    edge = (kernel_size - 1) / 2
    return [(r, m) for r in rings(kernel_size) for m in range(int(min(2 * r, max(2, 2 * (edge - r) + 1))) + 1)]


def polar(kernel_size: int) -> tuple[Array, Array]:
    r"""Radius and angle of the taps (T,), row by row; angles are counter-clockwise from the right."""
    places = np.arange(kernel_size) - (kernel_size - 1) / 2
    down, right = np.meshgrid(places, places, indexing="ij")
    return np.hypot(down, right).ravel(), np.arctan2(-down, right).ravel()


def profile(kernel_size: int, ring: float, m: int) -> Array:
    r"""The Gaussian profile (T,) of a ring for waves of order m: at the centre there is no angle, and so no wave."""
    radius, _ = polar(kernel_size)
    if ring == 0:  # the middle pixel, which needs no profile to be rotated
        return np.where((radius == 0) & (m == 0), 1.0, 0.0)
    width = OUTERMOST_WIDTH if ring == (kernel_size - 1) / 2 else WIDTH
    made: Array = np.exp(-((radius - ring) ** 2) / (2 * width**2)) * ((m == 0) | (radius > 0))
    return made


@table
def basis(kernel_size: int) -> Array:
    r"""The basis B (T, N): of each wave the cosine, and the sine where its order is not 0."""
    _, angle = polar(kernel_size)
    columns: list[Array] = []
    for ring, m in waves(kernel_size):
        radial = profile(kernel_size, ring, m)
        radial = radial / np.linalg.norm(radial)  # the same for cosine and sine: they are one wave, rotated
        columns += [radial * wave(m * angle) for wave in ((np.cos, np.sin) if m else (np.cos,))]
    return np.stack(columns, 1)


def pseudo_inverse(kernel_size: int) -> Array:
    r"""B^+ (N, T): the coefficients of the nearest filter that the basis has."""
    return np.asarray(np.linalg.pinv(basis(kernel_size)), dtype=np.float64)


@table
def rotation_matrices(group: Rotations, kernel_size: int) -> Array:
    r"""The matrices D_h (|G|, N, N) of the coefficients: rotated by m·angle, after the mirror `phi -> pi - phi`."""
    made = np.zeros((group.order, *basis(kernel_size).shape[1:] * 2))
    for h in range(group.order):
        mirrored, steps = divmod(h, group.n)
        first = 0
        for _, m in waves(kernel_size):
            a = 2 * math.pi * (m * steps % group.n) / group.n
            block = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
            block = block @ np.diag([1.0, -1.0]) * (-1) ** m if mirrored else block
            size = 2 if m else 1
            made[h, first : first + size, first : first + size] = block[:size, :size]
            first += size
    return made


@table
def steering(group: Rotations, kernel_size: int) -> Array:
    r"""The matrices S_h (|G|, T, T) that rotate a filter."""
    return basis(kernel_size) @ rotation_matrices(group, kernel_size) @ pseudo_inverse(kernel_size)


@torch.no_grad()
def draw_steered(weight: Tensor) -> None:
    r"""Fill a weight (..., k, k) with filters of the basis, every wave of the same energy.

    The mean square is that of torch.nn.Conv2d's first weights, 1 / (3 fan_in). White noise would have lost what lies
    outside the basis, and have more of the fine waves, which err most between quarter turns.
    """
    waves_ = basis(weight.shape[-1])
    energy = float((waves_**2).sum()) / len(waves_)  # of a tap, for coefficients of variance one
    fan_in = weight[0].numel()
    drawn = torch.randn(*weight.shape[:-2], waves_.shape[1], device=weight.device, dtype=weight.dtype)
    filters = drawn @ torch.from_numpy(waves_).to(drawn).mT
    weight.copy_(filters.view_as(weight) / math.sqrt(3 * fan_in * energy))


def steer(weight: Tensor, group: Rotations) -> Tensor:
    r"""The expanded filter of the ordinary convolution: (O·|G|, C·|G| or C, k, k).

    Row (o, h), column (c, k): `S_h weight[o, c, h^-1 k]`. Differentiable.
    """
    n, k = group.order, weight.shape[-1]
    matrices, back = _tables(group, k)
    matrices = matrices.to(weight.device, weight.dtype)
    taps = weight.flatten(-2)
    if weight.ndim == 4:
        filters = torch.einsum("hst,oct->ohcs", matrices, taps)
    else:
        rotated = taps.index_select(2, back.to(weight.device)).unflatten(2, (n, n))
        filters = torch.einsum("hst,ochkt->ohcks", matrices, rotated)
    return filters.reshape(weight.shape[0] * n, -1, k, k)


@constant_when_compiled
def _tables(group: Rotations, kernel_size: int) -> tuple[Tensor, Tensor]:
    r"""The matrices S_h, and h^-1 k for all h and k, (|G|·|G|,); constants to a compiler."""
    back = group.cayley_table[group.inverses]
    return torch.from_numpy(steering(group, kernel_size)), torch.from_numpy(back.reshape(-1))
