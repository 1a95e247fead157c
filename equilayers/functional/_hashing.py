r"""Hashes of the bits of tensors, exact in any order of summation: int64 sums and products wrap around."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

# Odd numbers without structure; sums and products of int64 wrap around, so they are exact in any order.
NEAR, FAR, STIR = 0x1E3779B97F4A7C15, 0x42B2AE3D27D4EB4F, 0x165667B19E3779F9


def mixed(h: Tensor) -> Tensor:
    r"""Hashes of int64 numbers, entry by entry."""
    h = (h ^ (h >> 32)) * STIR
    return h ^ (h >> 29)


def odd_numbers(count: int, device: torch.device) -> Tensor:
    r"""Random odd int64 numbers (count,), the same in every process."""
    seed = torch.Generator().manual_seed(count)
    with temporarily_clear_interpreter_stack():  # for a functional transform takes them for a layer's noise
        return (torch.randint(-(2**62), 2**62, (count,), generator=seed, device="cpu") | 1).to(device)


@functools.lru_cache(maxsize=256)
def odd_integers(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Odd random integers, the same in every process."""
    high = torch.iinfo(dtype).max // 2
    generator = torch.Generator().manual_seed(count)
    return (torch.randint(-high, high, (count,), generator=generator, dtype=dtype, device="cpu") * 2 + 1).to(device)
