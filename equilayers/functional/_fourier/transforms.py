r"""Real group Fourier transforms of C2, C4, D1, D2 and D4 that are bitwise equivariant, and the choice among all.

A function x on the group is a stack of planes (R, |G|, M): R rows (samples) of M channels. `analysis` maps it to the
coefficients of the real irreps, `synthesis` is the transpose of `analysis`, and `scales` makes the two inverse:
`synthesis(scales * analysis(x)) == x`.

The group correlation `y(h) = sum_k w(h^-1 k) x(k)` becomes one small product per irrep (Fourier: Y = X W^T):

==========  =====================  ==============================
group       irreps                 products per block, of |G|^2
==========  =====================  ==============================
C2, D1      1 + 1                  2 of 4
D2          1 + 1 + 1 + 1          4 of 16
C4          1 + 1 + 2 (complex)    6 of 16
D4          1 + 1 + 1 + 1 + 2      12 of 64
T_n         n // 2 + 1             2n - 1 (odd n), 2n - 2 (even n) of n^2
==========  =====================  ==============================

Why it is bitwise equivariant for C2, C4, D1, D2, D4: their real irreps are signed permutations, every transform is a
tree of two-term sums, IEEE addition commutes and negation is exact. So the group permutes and negates the *rows* of a
block, bit by bit, and each row goes through a matrix product of the same shape on a freshly allocated (equally aligned)
operand. T_n is made bitwise in another way, see `cyclic`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from equilayers.functional._fourier.cyclic import FourierTn
from equilayers.functional._fourier.irreps import COMPLEX, GAUSS, REAL, Fourier, ProductBlock, Rows
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group, Rotations

Pair = tuple[int, Tensor, Tensor]  # a sign and two terms: a + b or a - b


def _both(a: Tensor, b: Tensor) -> list[Pair]:
    return [(1, a, b), (-1, a, b)]


class Butterflies(Fourier):
    r"""A transform whose planes are sums or differences of two."""

    exact = True
    blocks: tuple[ProductBlock, ...]

    @abstractmethod
    def pairs(self, rows: Sequence[Rows]) -> list[Pair]:
        r"""The sign and the two terms of each plane that `synthesis` makes."""

    def synthesis(self, rows: Sequence[Rows]) -> list[Tensor]:
        return [a + b if sign > 0 else a - b for sign, a, b in self.pairs(rows)]

    def synthesis_into(self, rows: Sequence[Rows], planes: Iterable[Tensor]) -> None:
        r"""The same, written into planes of any shape and layout that hold as many numbers."""
        for plane, (sign, a, b) in zip(planes, self.pairs(rows), strict=True):
            (torch.add if sign > 0 else torch.sub)(a.view(plane.shape), b.view(plane.shape), out=plane)


class FourierC2(Butterflies):
    r"""C2, D1, T2: the sum and the difference."""

    products = 2
    blocks = (REAL, REAL)
    scales = (1 / 2, 1 / 2)

    def analysis(self, x: Tensor) -> list[Rows]:
        a, b = x.unbind(1)
        return [(a + b,), (a - b,)]

    def pairs(self, rows: Sequence[Rows]) -> list[Pair]:
        (s,), (t,) = rows
        return _both(s, t)


class FourierD2(Butterflies):
    r"""D2: two commuting pairs, element r + 2m."""

    products = 4
    blocks = (REAL,) * 4
    scales = (1 / 4,) * 4

    def analysis(self, x: Tensor) -> list[Rows]:
        a, b, c, d = x.unbind(1)
        (s, t), (u, v) = (a + b, a - b), (c + d, c - d)
        return [(s + u,), (s - u,), (t + v,), (t - v,)]

    def pairs(self, rows: Sequence[Rows]) -> list[Pair]:
        (p,), (q,), (r,), (t,) = rows
        (s, u), (v, w) = (p + q, p - q), (r + t, r - t)
        return _both(s, v) + _both(u, w)


class FourierC4(Butterflies):
    r"""C4, T4: frequencies 0 and 2, and the complex pair of frequency 1, by `pair` of blocks."""

    scales = (1 / 4, 1 / 4, 1 / 2)

    def __init__(self, pair: ProductBlock = COMPLEX) -> None:
        self.blocks = (REAL, REAL, pair)
        self.products = 5 if pair is GAUSS else 6

    def analysis(self, x: Tensor) -> list[Rows]:
        a, b, c, d = x.unbind(1)
        even, odd = a + c, b + d
        return [(even + odd,), (even - odd,), (a - c, b - d)]

    def pairs(self, rows: Sequence[Rows]) -> list[Pair]:
        (p,), (q,), (c, d) = rows
        even, odd = p + q, p - q
        return [(1, even, c), (1, odd, d), (-1, even, c), (-1, odd, d)]


_C4, _FAST_C4 = FourierC4(), FourierC4(GAUSS)


def _sum_difference(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    r"""The rows [a + b | c - d], written in place: to concatenate them afterwards costs as much as the sums."""
    if torch.compiler.is_compiling():  # it fuses them by itself, and cannot differentiate `out=`
        return torch.cat((a + b, c - d), -1)
    rows = a.new_empty(len(a), 2 * a.shape[1])
    left, right = rows.chunk(2, -1)
    torch.add(a, b, out=left)
    torch.sub(c, d, out=right)
    return rows


class FourierD4(Butterflies):
    r"""D4, element r + 4m: four signs, and the two-dimensional irrep whose matrices are signed permutations.

    With c_m, d_m the complex coefficients of the rotations of mirror class m, the two-dimensional coefficient is
    `sum_k x(k) rho(k) = [[c_0 + c_1, d_1 - d_0], [d_0 + d_1, c_0 - c_1]]`.
    """

    products = 12
    blocks = (REAL,) * 5
    scales = (1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 4)

    def analysis(self, x: Tensor) -> list[Rows]:
        (p0,), (q0,), (c0, d0) = _C4.analysis(x[:, :4])
        (p1,), (q1,), (c1, d1) = _C4.analysis(x[:, 4:])
        plane = _sum_difference(c0, c1, d1, d0), _sum_difference(d0, d1, c0, c1)
        return [(p0 + p1,), (p0 - p1,), (q0 + q1,), (q0 - q1,), plane]

    def pairs(self, rows: Sequence[Rows]) -> list[Pair]:
        (p,), (q,), (r,), (s,), (top, bottom) = rows
        (a, b), (c, d) = top.chunk(2, -1), bottom.chunk(2, -1)
        plain = _C4.pairs([(p + q,), (r + s,), (a + d, c - b)])
        return plain + _C4.pairs([(p - q,), (r - s,), (a - d, b + c)])


_TRANSFORMS: dict[tuple[type[Group], int], Butterflies] = {
    (CyclicRotation, 2): FourierC2(),
    (CyclicRotation, 4): _C4,
    (CyclicTranslation, 2): FourierC2(),
    (CyclicTranslation, 4): _C4,
    (Dihedral, 1): FourierC2(),
    (Dihedral, 2): FourierD2(),
    (Dihedral, 4): FourierD4(),
}


def fourier_of(group: Group) -> Fourier | None:
    r"""The transform of the group, or None where this library has none."""
    if not isinstance(group, Rotations | CyclicTranslation):
        return None
    known = _TRANSFORMS.get((type(group), group.n))
    if known is None and not isinstance(group, Dihedral) and group.n > 2:
        return FourierTn(group.n)
    return known


def fast_fourier_of(group: Group) -> Fourier | None:
    r"""The transform with the fewest products, which need not be exact; the coefficients are those of `fourier_of`."""
    known = fourier_of(group)
    return _FAST_C4 if known is _C4 and isinstance(group, CyclicRotation) else known
