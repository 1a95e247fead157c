r"""Hashes of the bits of tensors, exact in any order of summation: int64 sums and products wrap around."""

from __future__ import annotations

import torch
from torch import Tensor

from equilayers._tables import table

# Odd numbers without structure; sums and products of int64 wrap around, so they are exact in any order.
NEAR, FAR, STIR = 0x1E3779B97F4A7C15, 0x42B2AE3D27D4EB4F, 0x165667B19E3779F9


def mixed(h: Tensor) -> Tensor:
    r"""Hashes of int64 numbers, entry by entry."""
    h = (h ^ (h >> 32)) * STIR
    return h ^ (h >> 29)


def odd_integers(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Odd random integers (count,), the same in every process."""
    return _odd_integers(power_of_two(count), dtype, device)[:count]


def power_of_two(count: int) -> int:
    r"""The smallest one that is not less: of tables of such lengths there are few."""
    return 1 << max(0, count - 1).bit_length()


@table
def _odd_integers(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    high = torch.iinfo(dtype).max // 2
    generator = torch.Generator().manual_seed(count)
    return (torch.randint(-high, high, (count,), generator=generator, dtype=dtype) * 2 + 1).to(device)
