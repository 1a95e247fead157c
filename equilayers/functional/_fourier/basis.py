r"""An orthonormal basis of the functions on any finite group, in which every correlation is block-diagonal.

A correlation `y(h) = sum_u W(u) x(h u)` is a sum of right translations, `(R_u x)(h) = x(h u)`. A real irrep of theirs,
of dimension w, occurs m times among the functions on the group. In a basis adapted to it

    coefficients(x) = Q x,    the m rows of w coefficients each: row(y) = sum_u W(u) T_u row(x)

with the w x w matrices `T_u` of the irrep, the same for all m rows: |G|^2 products become the sum of m w^2.

Source: Serre 1977, Linear Representations of Finite Groups, sections 2.4 and 13.2; bases are found by splitting with a
random symmetric element of the commutant, Dixon 1970 (Math. Comp. 24, 707).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from equilayers._checks import refuse
from equilayers._tables import table
from equilayers.functional._fourier.irreps import Fourier
from equilayers.functional._fourier.transforms import FourierC2, FourierC4, FourierD2, FourierD4, fourier_of
from equilayers.groups import Group

Array = NDArray[np.float64]
MAX_ORDER = 1024  # the basis of a larger group costs minutes and memory; nothing is gained by it
TOLERANCE = 1e-9


@dataclass(frozen=True)
class IrrepBlock:
    r"""The coefficients of one irrep, from place `first` on: `rows` rows of `width` each.

    scale: a fast transform gives the coefficients over its square root, which takes additions alone.
    """

    first: int
    rows: int
    width: int
    scale: float

    @property
    def slice(self) -> slice:
        r"""The places of its coefficients."""
        return slice(self.first, self.first + self.rows * self.width)


@dataclass(frozen=True, eq=False)
class IrrepBasis:
    r"""The basis of one group.

    matrix: Q, orthogonal (|G|, |G|), one coefficient a row. blocks: the irreps, the trivial one first. images: of each
    block `T` (width, width, |G|), the matrices of its irrep. fast: whether there is a fast transform.
    """

    matrix: Array
    blocks: tuple[IrrepBlock, ...]
    images: tuple[Array, ...]
    fast: bool

    @property
    def order(self) -> int:
        r"""Number of coefficients, |G|."""
        return len(self.matrix)

    @property
    def products(self) -> int:
        r"""Multiplications per block of |G|^2, the sum of m w^2."""
        return sum(block.rows * block.width**2 for block in self.blocks)


def irrep_basis(group: Group) -> IrrepBasis:
    r"""The basis of the group: that of its fast transform where it has one, otherwise found numerically.

    Raises:
        ValueError: the group has more than 1024 elements.
    """
    if group.order > MAX_ORDER:
        hint = 'Use algorithm="dense" or "orbit".'
        refuse("irrep_basis", f"a group of at most {MAX_ORDER} elements", group.order, hint)
    return _irrep_basis(group)


@table
def _irrep_basis(group: Group) -> IrrepBasis:
    product = group.cayley_table
    fourier = fourier_of(group)
    fast = fourier if isinstance(fourier, FourierC2 | FourierC4 | FourierD2 | FourierD4) else None
    rows = _split(product) if fast is None else _rows_of(fast, group.order)
    scales = (1.0,) * len(rows) if fast is None else fast.scales
    blocks, first = [], 0
    for block, scale in zip(rows, scales, strict=True):
        blocks.append(IrrepBlock(first, len(block), len(block[0]), scale))
        first = blocks[-1].slice.stop
    matrix = np.concatenate([row for block in rows for row in block])
    basis = IrrepBasis(matrix, tuple(blocks), tuple(_images(block[0], product) for block in rows), fast is not None)
    _verify(basis, product)
    return basis


def _rows_of(fourier: Fourier, n: int) -> list[list[Array]]:
    r"""The rows of each block of a fast transform, by transforming the identity."""
    identity = torch.eye(n, dtype=torch.float64, device="cpu").unsqueeze(-1)
    found = []
    for rows, scale in zip(fourier.analysis(identity), fourier.scales, strict=True):
        columns = [row.numpy().T * np.sqrt(scale) for row in rows]
        pair = len(columns) == 2 and len(columns[0]) == 1  # complex, (c, d): one row of two coefficients
        found.append([np.concatenate(columns)] if pair else columns)
    return found


def _split(table: NDArray[np.int64]) -> list[list[Array]]:
    r"""The rows of each irrep, bases in which it has the same matrices: a list of arrays (w, |G|) per irrep.

    Left translations commute with the right ones. The eigenspaces of a random symmetric sum of left translations are
    therefore irreducible under the right ones, and any other sum of them maps equivalent eigenspaces onto each other,
    by a multiple of an orthogonal matrix (Schur).
    """
    n, generator = len(table), np.random.default_rng(0)
    left = np.zeros((n, n))
    np.add.at(left, (table.T.ravel(), np.repeat(np.arange(n), n)), np.tile(generator.standard_normal(n), n))
    values, vectors = np.linalg.eigh(left + left.T)
    ends = np.flatnonzero(np.diff(values) > TOLERANCE * n) + 1
    spaces = [space.T for space in np.split(vectors, ends, axis=1)]
    constant = np.full((1, n), n**-0.5)
    spaces.sort(key=lambda space: (-round(abs(constant @ space.T).max(), 6), len(space)))
    irreps: list[list[Array]] = [[constant]]
    for space in spaces[1:]:
        for rows in irreps:
            if len(rows[0]) == len(space):
                between = rows[0] @ left @ space.T
                size = np.sqrt((between**2).sum() / len(space))
                if size > 1e-6:
                    rows.append(between @ space / size)
                    break
        else:
            irreps.append([space])
    return irreps


def _images(row: Array, table: NDArray[np.int64]) -> Array:
    r"""The matrices `T_u[a, b] = sum_h row[a, h] row[b, h u]` of the irrep, (w, w, |G|)."""
    return np.einsum("ah,bhu->abu", row, row[:, table])


def _verify(basis: IrrepBasis, table: NDArray[np.int64]) -> None:
    r"""Raise RuntimeError unless Q is orthogonal and each right translation is what the blocks say."""
    n, q = basis.order, basis.matrix
    error = abs(q @ q.T - np.eye(n)).max()
    for u in range(n):
        moved = q[:, table[:, u]]  # Q[:, h u]
        for block, images in zip(basis.blocks, basis.images, strict=True):
            rows = q[block.slice].reshape(block.rows, block.width, n)
            read = moved[block.slice].reshape(block.rows, block.width, n)
            error = max(error, abs(np.einsum("ab,rbh->rah", images[:, :, u], read) - rows).max())
    if not error < TOLERANCE:
        raise RuntimeError(
            f"irrep_basis: expected a basis to {TOLERANCE}, found an error of {error}. Please report it."
        )
