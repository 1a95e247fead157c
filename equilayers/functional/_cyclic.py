r"""The cyclic groups T_n of any order: a real discrete Fourier transform, made bitwise by a canonical starting point.

A shift multiplies Fourier coefficients by irrational phases, so no order of summation makes this transform exactly
equivariant. Instead each sample is first turned to the one of its n shifts that has the smallest hash of its *bits*
(integer arithmetic, hence exact), transformed from there, and the result is turned back. All shifts of a sample take
the same path to the last bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers.functional._blocks import REAL, Block, PhaseBlock, Rows


class CyclicFourier:
    r"""Frequency 0, frequency n/2 where n is even, and the pairs of frequencies f = 1..(n-1)//2.

    Coefficients of a pair: c = sum_k cos(2 pi f k / n) x(k), d = sum_k sin(2 pi f k / n) x(k).
    """

    exact = False
    canonical = True

    def __init__(self, n: int) -> None:
        self.n = n
        self.pairs = (n - 1) // 2
        self.singles = n - 2 * self.pairs
        self.products = self.singles + 4 * self.pairs
        self.blocks: tuple[Block, ...] = (REAL,) * self.singles + (PhaseBlock(),)
        self.scales = (1 / n,) * self.singles + (2 / n,)

    def analysis(self, x: Tensor) -> list[Rows]:
        n, rows, channels = self.n, x.shape[0], x.shape[2]
        if n <= SMALL:
            return self._small_analysis(x.unbind(1))
        planes = x.transpose(0, 1).reshape(n, -1)
        matrix = _dft(n, x.dtype, x.device)
        singles, c, d = (matrix @ planes).view(n, rows, channels).split((self.singles, self.pairs, self.pairs))
        return [*((row,) for row in singles), (torch.cat((c, d), -1),)]

    def _small_analysis(self, x: Sequence[Tensor]) -> list[Rows]:
        r"""The same plane by plane, with the even and odd parts of x: a product with a matrix this small is slow."""
        n, inner = self.n, range(1, self.pairs + 1)
        even, odd = [x[j] + x[n - j] for j in inner], [x[j] - x[n - j] for j in inner]
        ends = x[:1] if n % 2 else (x[0], x[n // 2])  # what is its own mirror image

        def cosines(f: int) -> Tensor:
            # 2 pi f j / n is reduced mod n before it is rounded; at n/2 its cosine is (-1)^f.
            weights = [math.cos(2 * math.pi * (f * j % n) / n) for j in inner]
            start = ends[0] if n % 2 else torch.add(ends[0], ends[1], alpha=(-1) ** f)
            return _weighted(start, even, weights)

        def sines(f: int) -> Tensor:
            first, *rest = [math.sin(2 * math.pi * (f * j % n) / n) for j in inner]
            return _weighted(first * odd[0], odd[1:], rest)

        singles = [cosines(0)] if n % 2 else [cosines(0), cosines(n // 2)]
        pairs = torch.stack([torch.cat((cosines(f), sines(f)), -1) for f in inner])
        return [*((row,) for row in singles), (pairs,)]

    def synthesis(self, rows: Sequence[Rows]) -> list[Tensor]:
        # Cosines are even in h and sines odd: y(h) = E(h) + S(h), y(n - h) = E(h) - S(h), half the products.
        *singles, (c, d) = rows
        even = torch.cat((torch.stack([row for (row,) in singles]), c))
        matrix = _dft(self.n, c.dtype, c.device)
        cosines = matrix[: self.singles + self.pairs, : self.n // 2 + 1]
        sines = matrix[self.singles + self.pairs :, 1 : self.pairs + 1]
        e = (cosines.mT @ even.flatten(1)).unflatten(1, c.shape[1:])
        s = (sines.mT @ d.flatten(1)).unflatten(1, c.shape[1:])
        inner = e[1 : self.pairs + 1]
        plus, minus = (inner + s).unbind(0), (inner - s).unbind(0)
        return [e[0], *plus, *e[self.pairs + 1 :].unbind(0), *reversed(minus)]


SMALL = 6  # orders up to which planes are added one by one


def _weighted(start: Tensor, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    for term, weight in zip(terms, weights, strict=True):
        start = torch.add(start, term, alpha=weight)
    return start


def _dft(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A compiler folds the matrix into its graph and does not want a cache in its way.
    return _dft_matrix(n, dtype, device) if torch.compiler.is_compiling() else _cached_dft(n, dtype, device)


def _dft_matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Rows: 1, (-1)^k where n is even, then cos(2 pi f k / n) and sin(2 pi f k / n) for the pairs f = 1..(n-1)//2."""
    pairs = (n - 1) // 2
    turns = torch.arange(1, pairs + 1)[:, None] * torch.arange(n) % n  # reduced mod n before the angle is rounded
    angle = turns.to(torch.float64) * (2 * math.pi / n)
    singles = [torch.ones(1, n)] if n % 2 else [torch.ones(1, n), 1 - 2.0 * (torch.arange(n) % 2)[None]]
    matrix = torch.cat([*(row.double() for row in singles), angle.cos(), angle.sin()])
    return matrix.to(dtype=dtype, device=device)


_cached_dft = functools.lru_cache(maxsize=64)(_dft_matrix)


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
    mixed = (bits >> 15).bitwise_xor_(bits).mul_(_weights(channels, bits.dtype, x.device))
    keys = mixed.sum(-1, dtype=bits.dtype)  # (R, n): wraps around, hence exact in any order
    weights = _weights(n, torch.int64, x.device)
    steps = torch.arange(n, device=x.device)
    around = weights[(steps[:, None] - steps) % n]  # [j, s]: hash of shift s is sum_k weights[k] keys[(k + s) mod n]
    hashes = (keys.to(torch.int64)[:, :, None] * around).sum(1)  # (R, s)
    least = hashes.amin(1, keepdim=True)
    return Start(hashes.argmin(1), _verified(bits, n // (hashes == least).sum(1)))


def _verified(bits: Tensor, period: Tensor) -> Tensor:
    r"""The periods (R,) that the bits (R, n, M) have indeed, n in place of those that only a collision suggests."""
    n = bits.shape[1]
    rows = torch.empty(0) if period.is_meta else (period < n).nonzero().squeeze(1)
    if rows.numel() == 0:  # as for nearly every batch
        return period
    steps = torch.arange(n, device=bits.device)
    later = (steps + period[rows, None]) % n
    same = (bits[rows] == _read(bits[rows], later)).flatten(1).all(1) & (n % period[rows] == 0)
    return period.index_copy(0, rows, torch.where(same, period[rows], n))


@functools.lru_cache(maxsize=256)
def _weights(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Odd random integers, the same in every process."""
    high = torch.iinfo(dtype).max // 2
    generator = torch.Generator().manual_seed(count)
    return (torch.randint(-high, high, (count,), generator=generator, dtype=dtype) * 2 + 1).to(device)


def turn_to(x: Tensor, start: Start) -> Tensor:
    r"""Planes x (R, n, M) read from the start on: result(k) = x(k + shift)."""
    steps = torch.arange(x.shape[1], device=x.device)
    return _read(x, (steps + start.shift[:, None]) % x.shape[1])


def turn_back(y: Tensor, start: Start, out: Tensor | None = None) -> Tensor:
    r"""Planes y (R, n, M) put back: result(h) = y((h - shift) mod period), which undoes `turn_to`.

    Reading within one period makes planes that must be equal, because the sample is periodic, equal to the last bit.
    """
    steps = torch.arange(y.shape[1], device=y.device)
    return _read(y, (steps - start.shift[:, None]) % start.period[:, None], out)


def _read(x: Tensor, source: Tensor, out: Tensor | None = None) -> Tensor:
    rows, n, channels = x.shape
    flat = (source + n * torch.arange(rows, device=x.device)[:, None]).flatten()
    flat_out = None if out is None else out.view(rows * n, channels)
    return torch.index_select(x.reshape(rows * n, channels), 0, flat, out=flat_out).view(rows, n, channels)
