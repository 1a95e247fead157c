r"""Real Fourier transforms of C_n and D_n for any n, at rounding level: for the groups that interpolate.

Frequencies f = 0..n//2 of planes x_0..x_{n-1}, each a sum over j with cos(2 pi f j / n), and with sin where f is not 0
or n/2. Even frequencies are those of the sums x_j + x_{j + n/2}, odd ones those of the differences, half as long.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equilayers.functional._fourier.irreps import GAUSS, REAL, Fourier, Rows
from equilayers.groups import Dihedral, Rotations


class FourierCn(Fourier):
    r"""C_n: a real row for the frequencies 0 and n/2, a complex pair (c, d) for each one between."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.blocks = tuple(REAL if _single(n, f) else GAUSS for f in range(n // 2 + 1))
        self.scales = tuple((1 if _single(n, f) else 2) / n for f in range(n // 2 + 1))
        self.products = sum(1 if block is REAL else 3 for block in self.blocks)

    def analysis(self, x: Tensor) -> list[Rows]:
        return _analysis(x.unbind(1))

    def synthesis(self, rows: Sequence[Rows]) -> list[Tensor]:
        return _synthesis(self.n, rows)


class FourierDn(Fourier):
    r"""D_n, element r + n·m: sums and differences of the mirror classes, and two-dimensional irreps.

    With c_m, d_m the coefficients of the rotations of mirror class m, the coefficient of a two-dimensional irrep is
    `[[c_0 + c_1, d_1 - d_0], [d_0 + d_1, c_0 - c_1]]`.
    """

    def __init__(self, n: int) -> None:
        self.n, self.rotations = n, FourierCn(n)
        self.singles = [f for f in range(n // 2 + 1) if _single(n, f)]
        self.pairs = [f for f in range(n // 2 + 1) if not _single(n, f)]
        self.blocks = (REAL,) * (2 * len(self.singles) + len(self.pairs))
        self.scales = (1 / (2 * n),) * (2 * len(self.singles)) + (1 / n,) * len(self.pairs)
        self.products = 2 * len(self.singles) + 8 * len(self.pairs)

    def analysis(self, x: Tensor) -> list[Rows]:
        plain, mirrored = (self.rotations.analysis(half) for half in x.split(self.n, 1))
        rows: list[Rows] = []
        for f in self.singles:
            (p,), (q,) = plain[f], mirrored[f]
            rows += [(p + q,), (p - q,)]
        for f in self.pairs:
            (c0, d0), (c1, d1) = plain[f], mirrored[f]
            rows.append((torch.cat((c0 + c1, d1 - d0), -1), torch.cat((d0 + d1, c0 - c1), -1)))
        return rows

    def synthesis(self, rows: Sequence[Rows]) -> list[Tensor]:
        plain: dict[int, Rows] = {}
        mirrored: dict[int, Rows] = {}
        for i, f in enumerate(self.singles):
            (p,), (q,) = rows[2 * i : 2 * i + 2]
            plain[f], mirrored[f] = (p + q,), (p - q,)
        for f, (top, bottom) in zip(self.pairs, rows[2 * len(self.singles) :], strict=True):
            (a, b), (c, d) = top.chunk(2, -1), bottom.chunk(2, -1)
            plain[f], mirrored[f] = (a + d, c - b), (a - d, b + c)
        frequencies = sorted(plain)
        halves = ([half[f] for f in frequencies] for half in (plain, mirrored))
        return [plane for half in halves for plane in self.rotations.synthesis(half)]


@functools.lru_cache(maxsize=64)
def rotations_fourier(group: Rotations) -> Fourier:
    r"""The transform of C_n or D_n for any n."""
    return FourierDn(group.n) if isinstance(group, Dihedral) else FourierCn(group.n)


def _single(n: int, f: int) -> bool:
    return f == 0 or 2 * f == n


def cos_sin(n: int, f: int, j: int) -> tuple[float, float]:
    r"""Cosine and sine of 2 pi f j / n."""
    angle = 2 * math.pi * (f * j % n) / n  # reduced mod n before it is rounded
    return math.cos(angle), math.sin(angle)


def _analysis(x: Sequence[Tensor]) -> list[Rows]:
    r"""The rows of the frequencies 0..n//2."""
    n, half = len(x), len(x) // 2
    if n == 1:
        return [(x[0],)]
    if n % 2:
        sums, differences = [x[j] + x[n - j] for j in range(1, half + 1)], [x[j] - x[n - j] for j in range(1, half + 1)]
        rows: list[Rows] = [(functools.reduce(torch.add, sums, x[0]),)]
        for f in range(1, half + 1):
            cosines, sines = zip(*(cos_sin(n, f, j) for j in range(1, half + 1)), strict=True)
            rows.append((weighted_sum(x[0], sums, cosines), weighted_sum(None, differences, sines)))
        return rows
    even = _analysis([x[j] + x[j + half] for j in range(half)])
    odd = _odd(n, [x[j] - x[j + half] for j in range(half)])
    return [even[f // 2] if f % 2 == 0 else odd[f // 2] for f in range(half + 1)]


def _odd(n: int, d: Sequence[Tensor]) -> list[Rows]:
    r"""The rows of the frequencies 1, 3, ... up to n/2, of the differences d_j = x_j - x_{j + n/2}.

    `cos(2 pi f (n/2 - j) / n) = -cos(2 pi f j / n)` for odd f, and the sine is the same.
    """
    half = n // 2
    inner = range(1, (half + 1) // 2)
    less, more = [d[j] - d[half - j] for j in inner], [d[j] + d[half - j] for j in inner]
    rows: list[Rows] = []
    for f in range(1, half + 1, 2):
        weights = [cos_sin(n, f, j) for j in inner]
        cosine = weighted_sum(d[0], less, [cos for cos, _ in weights])
        if 2 * f == n:
            rows.append((cosine,))
            continue
        middle = d[half // 2] * cos_sin(n, f, half // 2)[1] if half % 2 == 0 else None
        rows.append((cosine, weighted_sum(middle, more, [sin for _, sin in weights])))
    return rows


def _synthesis(n: int, rows: Sequence[Rows]) -> list[Tensor]:
    r"""The transpose of `_analysis`."""
    half = n // 2
    if n == 1:
        return [rows[0][0]]
    if n % 2:
        (start,), pairs = rows[0], rows[1:]
        x = [functools.reduce(torch.add, [c for c, _ in pairs], start)]
        ahead, back = [], []
        for j in range(1, half + 1):
            cosines, sines = zip(*(cos_sin(n, f, j) for f in range(1, half + 1)), strict=True)
            even, odd = (
                weighted_sum(start, [c for c, _ in pairs], cosines),
                weighted_sum(None, [s for _, s in pairs], sines),
            )
            ahead.append(even + odd)
            back.append(even - odd)
        return [*x, *ahead, *reversed(back)]
    s = _synthesis(half, rows[::2])
    d = _odd_synthesis(n, rows[1::2])
    return [a + b for a, b in zip(s, d, strict=True)] + [a - b for a, b in zip(s, d, strict=True)]


def _odd_synthesis(n: int, rows: Sequence[Rows]) -> list[Tensor]:
    r"""The transpose of `_odd`."""
    half, frequencies = n // 2, range(1, n // 2 + 1, 2)
    cosines, sines = [row[0] for row in rows], [row[1] for row in rows if len(row) == 2]
    d: list[Tensor] = [functools.reduce(torch.add, cosines)] * half
    for j in range(1, half // 2 + 1):
        weights = [cos_sin(n, f, j) for f in frequencies]
        even = weighted_sum(None, cosines, [cos for cos, _ in weights])
        odd = weighted_sum(None, sines, [sin for _, sin in weights[: len(sines)]])
        d[j], d[half - j] = (odd, odd) if 2 * j == half else (even + odd, odd - even)
    return d


def weighted_sum(start: Tensor | None, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""`start + sum_i weights_i terms_i`, added in this order."""
    for term, weight in zip(terms, weights, strict=True):
        start = weight * term if start is None else torch.add(start, term, alpha=weight)
    if start is None:
        raise ValueError("weighted_sum: expected a start or terms, got neither. Pass one of them.")
    return start
