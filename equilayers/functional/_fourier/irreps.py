r"""The group correlation after the Fourier transform: one matrix product per irreducible representation.

Every block is bilinear in its coefficients x (R, M), w (O, M) -> y (R, O), and comes with both of its adjoints, so that
gradients of any order are made of the same three products.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from equilayers._matmul import matmul

Factors = tuple[Tensor, Tensor]
Rows = tuple[Tensor, ...]  # the rows of one block; an exact group acts on them by a signed permutation


class Block(Protocol):
    r"""The product Y = X W^T of one irrep (or of several of one kind) and its adjoints."""

    def operator(self, w: Rows) -> Tensor:
        r"""The matrix of x -> y, ready for `product`."""

    def adjoint(self, w: Rows) -> Tensor:
        r"""The matrix of its transpose y -> x, ready for `product`."""

    def product(self, x: Rows, operator: Tensor) -> Rows:
        r"""The operator applied to every row."""

    def correlate(self, y: Rows, x: Rows) -> Rows:
        r"""The w-gradient of <y, product(x, operator(w))>: Y^T X."""


class ProductBlock(Block, Protocol):
    r"""A block of products of two matrices, so that these can be computed elsewhere."""

    def factors(self, x: Rows, operator: Tensor) -> list[Factors]:
        r"""The matrices whose products `combined` makes the result of `product` of."""

    def combined(self, products: Sequence[Any]) -> tuple[Any, ...]:
        r"""The result, of tensors or whatever can be added and subtracted."""

    def slopes(self, y: Rows, x: Rows) -> list[list[Factors]]:
        r"""The pairs (v, u) of the sums of products v^T u of which `slope` makes the result of `correlate`."""

    def slope(self, sums: Sequence[Tensor], rows: int) -> Rows:
        r"""The result, so many rows."""


class RealBlock:
    r"""An irrep of real type and dimension d: d rows, each the concatenation of d coefficients."""

    def operator(self, w: Rows) -> Tensor:
        return w[0] if len(w) == 1 else torch.cat(w, -2)

    def adjoint(self, w: Rows) -> Tensor:
        return self.operator(w).mT

    def factors(self, x: Rows, operator: Tensor) -> list[Factors]:
        return [(row, operator.mT) for row in x]

    def combined(self, products: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(products)

    def product(self, x: Rows, operator: Tensor) -> Rows:
        return self.combined(_products(self.factors(x, operator)))

    def slopes(self, y: Rows, x: Rows) -> list[list[Factors]]:
        return [list(zip(y, x, strict=True))]

    def slope(self, sums: Sequence[Tensor], rows: int) -> Rows:
        return sums[0].chunk(rows, -2)

    def correlate(self, y: Rows, x: Rows) -> Rows:
        return self.slope(_sums(self.slopes(y, x)), len(x))


class ComplexBlock:
    r"""A pair of complex-conjugate irreps: rows (c, d) of z = c + i d, with Y = z · conj(w).

    The four real products are kept apart and combined afterwards: a quarter turn maps (c, d) to (-d, c), and one
    stacked product would sum in another order.
    """

    def operator(self, w: Rows) -> Tensor:
        return torch.cat(w, -2)

    def adjoint(self, w: Rows) -> Tensor:
        c, d = w
        return torch.cat((c.mT, -d.mT), -2)

    def factors(self, x: Rows, operator: Tensor) -> list[Factors]:
        return [(row, operator.mT) for row in x]

    def combined(self, products: Sequence[Any]) -> tuple[Any, ...]:
        (cc, cd), (dc, dd) = (product.chunk(2, -1) for product in products)
        return cc + dd, dc - cd

    def product(self, x: Rows, operator: Tensor) -> Rows:
        return self.combined(_products(self.factors(x, operator)))

    def slopes(self, y: Rows, x: Rows) -> list[list[Factors]]:
        (p, q), (c, d) = y, x
        return [[(p, c), (q, d)], [(p, d)], [(q, c)]]

    def slope(self, sums: Sequence[Tensor], rows: int) -> Rows:  # noqa: ARG002 - it is two
        first, left, right = sums
        return first, left - right

    def correlate(self, y: Rows, x: Rows) -> Rows:
        return self.slope(_sums(self.slopes(y, x)), 2)


class GaussBlock:
    r"""The pair of `ComplexBlock` in three real products instead of four, for rows that need no bitwise equivariance.

    With k = (c + d) Wc: `c Wc + d Wd = k - d (Wc - Wd)` and `d Wc - c Wd = k - c (Wc + Wd)`. Rows may be given with
    their sum, (c, d, c + d), and those of y with their difference after it.

    Source: Knuth, The Art of Computer Programming 2, section 4.6.4.
    """

    def operator(self, w: Rows) -> Tensor:
        c, d = w
        return torch.stack((c, c + d, c - d))

    def adjoint(self, w: Rows) -> Tensor:
        c, d = w
        return self.operator((c.mT, -d.mT))

    def factors(self, x: Rows, operator: Tensor) -> list[Factors]:
        (c, d, both), (first, second, third) = self._with_sum(x), operator.mT
        return [(both, first), (d, third), (c, second)]

    def combined(self, products: Sequence[Any]) -> tuple[Any, ...]:
        k, rest, other = products
        return k - rest, k - other

    def product(self, x: Rows, operator: Tensor) -> Rows:
        k, rest, other = _products(self.factors(x, operator))
        return torch.sub(k, rest, out=rest), torch.sub(k, other, out=other)

    @staticmethod
    def _with_sum(x: Rows) -> Rows:
        return x if len(x) > 2 else (*x, x[0] + x[1])

    def slopes(self, y: Rows, x: Rows) -> list[list[Factors]]:
        (c, d, both), (p, _, plus, minus) = self._with_sum(x), y if len(y) > 2 else (*self._with_sum(y), y[0] - y[1])
        return [[(p, both)], [(minus, d)], [(plus, c)]]

    def slope(self, sums: Sequence[Tensor], rows: int) -> Rows:  # noqa: ARG002 - it is two
        k, rest, other = sums
        return k - rest, k - other

    def correlate(self, y: Rows, x: Rows) -> Rows:
        return self.slope(_sums(self.slopes(y, x)), 2)


class PhaseBlock:
    r"""Many complex pairs at once, rows [c | d] of shape (frequencies, R, 2M); results as two tensors c and d.

    One product with the real matrix [[c, d], [-d, c]] instead of four: for transforms that need no exact phases.
    """

    def operator(self, w: Rows) -> Tensor:
        c, d = w[0].chunk(2, -1)
        return torch.cat((w[0], torch.cat((-d, c), -1)), -2)

    def adjoint(self, w: Rows) -> Tensor:
        return self.operator(w).mT

    def product(self, x: Rows, operator: Tensor) -> Rows:
        top, bottom = operator.chunk(2, -2)
        return x[0] @ top.mT, x[0] @ bottom.mT

    def correlate(self, y: Rows, x: Rows) -> Rows:
        top, bottom = (y[0].mT @ x[0]).chunk(2, -2)
        (cc, cd), (dc, dd) = top.chunk(2, -1), bottom.chunk(2, -1)
        return cc + dd, cd - dc


def _products(factors: list[Factors]) -> list[Tensor]:
    return list(itertools.starmap(matmul, factors))


def _sums(slopes: list[list[Factors]]) -> list[Tensor]:
    return [functools.reduce(torch.add, (matmul(v.mT, u) for v, u in own)) for own in slopes]


REAL, COMPLEX, GAUSS = RealBlock(), ComplexBlock(), GaussBlock()


class Fourier(ABC):
    r"""The real Fourier transform of one group; the first block is the trivial irrep, the sum over the group.

    exact: whether the group moves the coefficients bitwise. canonical: whether each sample is rolled to a canonical
    start first, which makes up for it. products: multiplications per block of |G|^2.
    """

    exact = False
    canonical = False
    products: int
    blocks: tuple[Block, ...]
    scales: tuple[float, ...]

    @abstractmethod
    def analysis(self, x: Tensor) -> list[Rows]:
        r"""Planes x (R, |G|, M) to coefficient rows, one entry per block; every row is a fresh tensor."""

    @abstractmethod
    def synthesis(self, rows: Sequence[Rows]) -> list[Tensor]:
        r"""The transpose of `analysis`: |G| planes (R, M)."""
