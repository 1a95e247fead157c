r"""Group convolutions of groups that interpolate, by the group Fourier transform.

With u = h^-1 k and the filters in the basis of `_steerable_basis`, `psi = B w`, a group convolution is a group
correlation of the coefficients of patches:

    y[h] = sum_k <S_h psi[h^-1 k], patch_k> = sum_k <w[h^-1 k], a_k>,
    w[u] = D_u^-1 B^+ psi[u],    a_k = (B D_k)^T patch_k.

So every fiber element is correlated with the rotated basis, channel by channel, and the rest is one product per irrep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._tables import table
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._fourier.autograd import Correlate
from equilayers.functional._fourier.correlation import PlaneKernel, operators_of, transform
from equilayers.functional._fourier.rotations import rotations_fourier
from equilayers.functional._steerable_basis import Array, basis, pseudo_inverse, rotation_matrices
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.groups import Rotations

BLOCK_BYTES, MOST_BYTES = 3_000_000, 24_000_000  # of coefficients: of several samples, and of rows of a large one


def steered_conv2d(f: Tensor, spec: ConvSpec, weight: Tensor, bias: Tensor | None, cache: WeightCache | None) -> Tensor:
    r"""The group convolution with zero padding, channel group by channel group."""
    biases = [None] * spec.groups if bias is None else bias.chunk(spec.groups)
    parts = zip(f.chunk(spec.groups, 1), weight.chunk(spec.groups), biases, strict=True)
    kept = cache if spec.groups == 1 else None
    made = [_steered(part, spec, filters, b, kept) for part, filters, b in parts]
    return made[0] if spec.groups == 1 else torch.cat(made, 1)


def _steered(f: Tensor, spec: ConvSpec, weight: Tensor, bias: Tensor | None, cache: WeightCache | None) -> Tensor:
    group, features = cast(Rotations, spec.group), len(weight)
    n = group.order
    size = len(f), *spec.out_size((f.shape[-2], f.shape[-1])), n, features
    kernel = PlaneKernel(rotations_fourier(group))
    bank = torch.from_numpy(rotated_basis(group, weight.shape[-1])).to(f.device, f.dtype)
    bank = bank.repeat_interleave(f.shape[1], 1)
    if torch.is_grad_enabled() or not is_plain(f, weight):
        planes = coefficients(f, bank, spec)
        y = Correlate.apply(planes, weight_coefficients(weight, group), bias, kernel)
        return y.view(size).permute(0, 4, 3, 1, 2)

    def make() -> list[Tensor]:
        return operators_of(weight_coefficients(weight, group), kernel.fourier)

    operators = make() if cache is None else cache.get(weight, make, "steered")
    out = f.new_empty(size)
    bytes_of_one = math.prod(size[1:4]) * bank.shape[0] * f.shape[1] * f.element_size()
    for part, place, rest in _blocks(f, out, spec, bytes_of_one):
        planes = coefficients(part, bank, rest)
        transform(planes, operators, bias, kernel.fourier, place.view(-1, n, features))
    return out.permute(0, 4, 3, 1, 2)


def _blocks(f: Tensor, out: Tensor, spec: ConvSpec, bytes_of_one: int) -> Iterator[tuple[Tensor, Tensor, ConvSpec]]:
    r"""Parts of the input (samples, or rows of a large one), the places of their outputs, and the settings to apply."""
    if bytes_of_one <= MOST_BYTES:
        samples = max(1, BLOCK_BYTES // max(1, bytes_of_one))
        yield from zip(f.split(samples), out.split(samples), itertools.repeat(spec))
        return
    (ph, pw), stride, height = spec.padding, spec.stride[0], out.shape[1]
    bare = replace(spec, padding=(0, 0))
    rows = max(1, MOST_BYTES * height // bytes_of_one)
    for sample, place in zip(F.pad(f, (pw, pw, ph, ph)).split(1), out, strict=True):
        for first in range(0, height, rows):
            last = min(first + rows, height) - 1
            yield sample[..., first * stride : last * stride + spec.spans[0] + 1, :], place[first : last + 1], bare


def coefficients(f: Tensor, bank: Tensor, spec: ConvSpec) -> Tensor:
    r"""The coefficients a (B·H'·W', |G|, N·C) of the patches of a feature (B, C, |G|, H, W).

    bank: (N, |G|·C, k, k), the rotated basis for every channel.
    """
    batch, channels, n, height, width = f.shape
    # The channels of all fibers last in memory: correlations channel by channel are fastest there.
    maps = f.permute(0, 3, 4, 2, 1).reshape(batch, height, width, n * channels).permute(0, 3, 1, 2)
    parts = []
    for filters in bank.unsqueeze(2):
        y = F.conv2d(maps, filters, None, spec.stride, spec.padding, spec.dilation, n * channels)
        parts.append(y.permute(0, 2, 3, 1).reshape(-1, n, channels))
    return torch.cat(parts, 2)


def weight_coefficients(weight: Tensor, group: Rotations) -> Tensor:
    r"""The planes w (O, |G|, N·C) of a weight (O, C, |G|, k, k)."""
    k = weight.shape[-1]
    back = torch.from_numpy(rotation_matrices(group, k)[group.inverses] @ pseudo_inverse(k)).to(
        weight.device, weight.dtype
    )
    return torch.einsum("unt,ocut->ounc", back, weight.flatten(-2)).flatten(2)


@table
def rotated_basis(group: Rotations, kernel_size: int) -> Array:
    r"""The basis rotated by every element, (N, |G|, k, k)."""
    bank = (basis(kernel_size) @ rotation_matrices(group, kernel_size)).transpose(2, 0, 1)
    return np.ascontiguousarray(bank).reshape(*bank.shape[:2], kernel_size, kernel_size)
