r"""Circular harmonics: features of rotation orders m, and the convolutions between them.

A harmonic feature is a real tensor (B, C, 2M + 2, H, W): the fiber holds the complex streams of orders 0..M, the real
part of order m at 2m, its imaginary part at 2m + 1. Rotated by an angle a, stream m is rotated in the plane and by the
phase e^{i m a}. A filter of order m,

    W_m(r, phi) = R(r) e^{i (m phi + beta)},    (W_m * x)(p) = sum_t W_m(t) x(p + t),

takes order m_in to m_out = m_in + m. Convolutions of all orders are one real convolution.

Source: Worrall et al. 2017 (arXiv:1612.04642).
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import check_float, check_int, overridable, refuse, widened
from equilayers._tables import table
from equilayers.functional._steerable_basis import polar, profile, waves
from equilayers.groups import rotate

Term = tuple[int, int, float]  # order out, order in, radius of the ring
Array = NDArray[np.float64]


def harmonic_terms(kernel_size: int, in_order: int, out_order: int) -> list[Term]:
    r"""The terms of a filter between streams 0..in_order and 0..out_order: every ring that can carry their order."""
    able = set(waves(kernel_size))
    rings = sorted({ring for ring, _ in able})
    pairs = [(i, j) for i in range(out_order + 1) for j in range(in_order + 1)]
    return [(i, j, ring) for i, j in pairs for ring in rings if (ring, abs(i - j)) in able]


def highest_order(kernel_size: int) -> int:
    r"""The highest order that a kernel carries: 0, 1, 2, 3, 4 from 1, 2, 3, 6, 9 pixels on."""
    return max(m for _, m in waves(kernel_size))


def check_orders(caller: str, kernel_size: int, in_order: int | None, out_order: int) -> None:
    r"""ValueError unless the kernel can carry the filters between all of these orders."""
    check_int(caller, "out_order", out_order, 0)
    highest = highest_order(kernel_size)
    order = max(out_order, 0 if in_order is None else check_int(caller, "in_order", in_order, 0))
    if order > highest:
        able = next(k for k in itertools.count(kernel_size) if highest_order(k) >= order)
        hint = f"Take a larger kernel: one of {able} pixels carries order {order}."
        refuse(caller, f"orders of at most {highest} for kernel_size={kernel_size}", order, hint)


@table
def _waves_of_terms(kernel_size: int, in_order: int, out_order: int) -> Array:
    r"""Array (J, pairs, 2, T): of each term the real and the imaginary part of its wave, where its pair stands."""
    _, angle = polar(kernel_size)
    found = harmonic_terms(kernel_size, in_order, out_order)
    made = np.zeros((len(found), (out_order + 1) * (in_order + 1), 2, len(angle)))
    for number, (i, j, ring) in enumerate(found):
        m = i - j
        wave = profile(kernel_size, ring, m) * np.stack((np.cos(m * angle), np.sin(m * angle)))
        made[number, i * (in_order + 1) + j] = wave / np.linalg.norm(wave)
    return made


@overridable
def harmonic_filter(amplitude: Tensor, phase: Tensor, kernel_size: int, in_order: int | None, out_order: int) -> Tensor:
    r"""The filter of the one real convolution: (O·(2 out_order + 2), C·(2 in_order + 2), k, k), or (..., C, k, k).

    Args:
        amplitude: (O, C, J), the radial profile R: one number for each of `harmonic_terms`.
        phase: (O, C, (out_order + 1)·(in_order + 1)), beta of each pair of orders, in radians.
        kernel_size: pixels along either axis.
        in_order: highest order of the input; None for real images.
        out_order: highest order of the output.
    """
    streams = 1 if in_order is None else in_order + 1
    made = torch.from_numpy(_waves_of_terms(kernel_size, streams - 1, out_order))
    waves_ = torch.einsum("ocj,jpzt->zocpt", amplitude, made.to(amplitude.device, amplitude.dtype))
    cos, sin = phase.cos()[..., None], phase.sin()[..., None]
    re, im = waves_[0] * cos - waves_[1] * sin, waves_[0] * sin + waves_[1] * cos
    # (x + iy)(re + i im): rows the real and the imaginary part of the output, columns those of the input.
    columns = (torch.stack((re, im), 3),) if in_order is None else (torch.stack((re, im), 3), torch.stack((-im, re), 3))
    filters = torch.stack(columns, 4).unflatten(2, (out_order + 1, streams))  # (O, C, out, in, 2, 1 or 2, T)
    filters = filters.permute(0, 2, 4, 1, 3, 5, 6)
    return filters.reshape(len(amplitude) * (2 * out_order + 2), -1, kernel_size, kernel_size)


def check_harmonic(caller: str, z: Tensor) -> Tensor:
    r"""The feature itself, where it is one."""
    check_float(caller, "z", z)
    if z.ndim != 5 or z.shape[2] % 2 or z.shape[2] == 0:
        hint = "HarmonicConv2d makes such features: real and imaginary parts of its orders."
        refuse(caller, "z of shape (B, C, 2M + 2, H, W)", tuple(z.shape), hint)
    return z


def harmonic_magnitude(z: Tensor) -> Tensor:
    r"""The magnitudes |z_m| of all orders, (B, C, 2M + 2, H, W) to (B, C, M + 1, H, W): rotated as images are.

    The gradient at zero is zero.
    """
    squares = square_magnitude(check_harmonic("harmonic_magnitude", z))
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), squares).to(z.dtype)


def square_magnitude(z: Tensor) -> Tensor:
    r"""The squares |z_m|^2, (B, C, M + 1, H, W): of half precision in float32, where 256 squared is still finite."""
    precise = widened(z)
    return precise.square().unflatten(2, (-1, 2)).sum(3)


def scale_magnitude(z: Tensor, scale: Tensor) -> Tensor:
    r"""Every stream times a real factor, (B, C, M + 1, H, W) or what broadcasts to it: phases are kept."""
    return (z.unflatten(2, (-1, 2)) * scale.unsqueeze(3)).flatten(2, 3)


def rotate_harmonic(z: Tensor, degrees: float, interpolation: str = "bilinear") -> Tensor:
    r"""Rotate a harmonic feature counter-clockwise: in the plane, and stream m by the phase e^{i m a}.

    Args:
        z: harmonic feature (B, C, 2M + 2, H, W).
        degrees: the angle a.
        interpolation: "bilinear" or "bicubic", for what is left of whole quarter turns.

    Returns:
        Feature of the shape, dtype and device of z.

    Law: `layer(rotate(x, a)) = rotate_harmonic(layer(x), a)` for every layer of harmonic features: to rounding for
        quarter turns, to the error of the interpolation for other angles.

    Source: Worrall et al. 2017, Eq. 2 (arXiv:1612.04642).
    """
    rotated = rotate(check_harmonic("rotate_harmonic", z), degrees, interpolation).unflatten(2, (-1, 2))
    orders = torch.arange(rotated.shape[2], dtype=torch.float64, device="cpu")
    cycles = (orders * degrees / 360) % 1  # exact for quarter turns, as the sine and cosine of them is made to be
    phase = torch.exp(2j * torch.pi * cycles)
    cos, sin = (part.round(decimals=15).to(z.device, z.dtype)[:, None, None] for part in (phase.real, phase.imag))
    re, im = rotated.unbind(3)
    return torch.stack((cos * re - sin * im, sin * re + cos * im), 3).flatten(2, 3)
