r"""The real discrete Fourier transform of T_n for any n, made bitwise by a canonical starting point.

A shift multiplies Fourier coefficients by irrational phases, so no order of summation makes this transform exactly
equivariant. Instead each sample is first rolled to the one of its n shifts that has the smallest hash of its *bits*
(integer arithmetic, hence exact), transformed from there, and the result is rolled back. All shifts of a sample take
the same path to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equilayers._tables import table
from equilayers.functional._fourier.irreps import REAL, Fourier, PhaseBlock, Rows
from equilayers.functional._fourier.rotations import cos_sin, weighted_sum


class FourierTn(Fourier):
    r"""Frequency 0, frequency n/2 where n is even, and the pairs of frequencies f = 1..(n-1)//2.

    Coefficients of a pair: c = sum_k cos(2 pi f k / n) x(k), d = sum_k sin(2 pi f k / n) x(k).
    """

    canonical = True

    def __init__(self, n: int) -> None:
        self.n = n
        self.pairs = (n - 1) // 2
        self.singles = n - 2 * self.pairs
        self.products = self.singles + 4 * self.pairs
        self.blocks = (REAL,) * self.singles + (PhaseBlock(),)
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
            # At n/2 the cosine is (-1)^f.
            start = ends[0] if n % 2 else torch.add(ends[0], ends[1], alpha=(-1) ** f)
            return weighted_sum(start, even, [cos_sin(n, f, j)[0] for j in inner])

        def sines(f: int) -> Tensor:
            return weighted_sum(None, odd, [cos_sin(n, f, j)[1] for j in inner])

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


def _dft(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A compiler folds the matrix into its graph and does not want a cache in its way.
    return _dft_matrix(n, dtype, device) if torch.compiler.is_compiling() else _cached_dft(n, dtype, device)


def _dft_matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Rows: 1, (-1)^k where n is even, then cos(2 pi f k / n) and sin(2 pi f k / n) for the pairs f = 1..(n-1)//2."""
    pairs, k = (n - 1) // 2, torch.arange(n, device="cpu")
    cycles = (k[1 : pairs + 1, None] * k) % n  # reduced mod n before the angle is rounded
    angle = cycles.to(torch.float64) * (2 * math.pi / n)
    constant, alternating = torch.ones_like(k)[None], (1 - 2 * (k % 2))[None]
    singles = [constant] if n % 2 else [constant, alternating]
    matrix = torch.cat([*(row.double() for row in singles), angle.cos(), angle.sin()])
    return matrix.to(dtype=dtype, device=device)


_cached_dft = table(_dft_matrix)
