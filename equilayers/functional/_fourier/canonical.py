r"""The canonical starting point of a cyclic sequence: the shift whose bits have the smallest hash."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from equilayers.functional._hashing import odd_integers
from equilayers.functional._weight_cache import is_plain

_INTEGER_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Start(NamedTuple):
    r"""Where each of R samples starts: `shift` (R,) is the canonical shift, `period` (R,) the sample's own period."""

    shift: Tensor
    period: Tensor


def canonical_start(x: Tensor) -> Start:
    r"""The start of planes x (R, n, M): among its n shifts the one whose bits have the smallest 64-bit hash.

    Shifts with equal bits have equal hashes. Two planes that differ share a key with a probability of about 2^-32; only
    where every differing pair of planes does is the result right to rounding instead of bitwise.
    """
    n, channels = x.shape[1:]
    bits = x.detach().contiguous().view(_INTEGER_OF[x.element_size()])
    bits = bits.to(torch.int32) if x.element_size() == 2 else bits
    # Numbers such as 1.0 have empty low bits, which a product modulo 2^32 would keep empty: fill them first.
    mixed = (bits >> 15).bitwise_xor_(bits).mul_(odd_integers(channels, bits.dtype, x.device))
    keys = mixed.sum(-1, dtype=bits.dtype)  # (R, n): wraps around, hence exact in any order
    weights = odd_integers(n, torch.int64, x.device)
    steps = torch.arange(n, device=x.device)
    around = weights[(steps[:, None] - steps) % n]  # [j, s]: hash of shift s is sum_k weights[k] keys[(k + s) mod n]
    hashes = (keys.to(torch.int64)[:, :, None] * around).sum(1)  # (R, s)
    least = hashes.amin(1, keepdim=True)
    return Start(hashes.argmin(1), _verified(bits, n // (hashes == least).sum(1)))


def _verified(bits: Tensor, period: Tensor) -> Tensor:
    r"""The periods (R,) that the bits (R, n, M) have indeed, n in place of those that only a collision suggests."""
    n = bits.shape[1]
    if period.is_meta or not is_plain(period):  # no numbers that could be read
        return period
    rows = (period < n).nonzero().squeeze(1)
    if rows.numel() == 0:  # as for nearly every batch
        return period
    steps = torch.arange(n, device=bits.device)
    later = (steps + period[rows, None]) % n
    same = (bits[rows] == _read(bits[rows], later)).flatten(1).all(1) & (n % period[rows] == 0)
    return period.index_copy(0, rows, torch.where(same, period[rows], n))


def roll_to_start(x: Tensor, start: Start) -> Tensor:
    r"""Planes x (R, n, M) rolled so that the start comes first: result(k) = x(k + shift)."""
    steps = torch.arange(x.shape[1], device=x.device)
    return _read(x, (steps + start.shift[:, None]) % x.shape[1])


def roll_back(y: Tensor, start: Start, out: Tensor | None = None) -> Tensor:
    r"""Planes y (R, n, M) rolled back: result(h) = y((h - shift) mod period), which undoes `roll_to_start`.

    Reading within one period makes planes that must be equal, because the sample is periodic, equal to the last bit.
    """
    steps = torch.arange(y.shape[1], device=y.device)
    return _read(y, (steps - start.shift[:, None]) % start.period[:, None], out)


def _read(x: Tensor, source: Tensor, out: Tensor | None = None) -> Tensor:
    rows, n, channels = x.shape
    flat = (source + n * torch.arange(rows, device=x.device)[:, None]).flatten()
    flat_out = None if out is None else out.view(rows * n, channels)
    return torch.index_select(x.reshape(rows * n, channels), 0, flat, out=flat_out).view(rows, n, channels)
