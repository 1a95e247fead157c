r"""An orthonormal basis of the functions on any finite group, in which every correlation is block-diagonal.

A correlation `y(h) = sum_u W(u) x(h u)` is a sum of right translations, `(R_u x)(h) = x(h u)`. A real irrep of theirs,
of dimension w, occurs m times among the functions on the group. In a basis adapted to it

    coefficients(x) = Q x,    for each of the m copies:  y_a = sum_b (sum_u W(u) T_u[a, b]) x_b

with the w x w matrices `T_u` of the irrep, the same for all copies: |G|^2 products become the sum of m w^2. The real
matrices of an irrep of complex type and w = 2 are `[[c, -d], [d, c]]`.

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
    r"""The coefficients of one irrep, from place `first` on: `width` times one for each of its `copies`.

    pair: whether its matrices are those of a complex number.
    """

    first: int
    copies: int
    width: int
    pair: bool

    @property
    def slice(self) -> slice:
        r"""The places of its coefficients."""
        return slice(self.first, self.first + self.copies * self.width)

    @property
    def products(self) -> int:
        r"""Multiplications for each pair of channels; a complex product takes three."""
        return 3 * self.copies if self.pair else self.copies * self.width**2


@dataclass(frozen=True, eq=False)
class IrrepBasis:
    r"""The basis of one group.

    matrix: Q, orthogonal (|G|, |G|), one coefficient a row. blocks: the irreps, the trivial one first. images: of each
    block `T` (width, width, |G|), the matrices of its irrep.
    """

    matrix: Array
    blocks: tuple[IrrepBlock, ...]
    images: tuple[Array, ...]

    @property
    def order(self) -> int:
        r"""Number of coefficients, |G|."""
        return len(self.matrix)

    @property
    def products(self) -> int:
        r"""Multiplications per block of |G|^2."""
        return sum(block.products for block in self.blocks)


def irrep_basis(group: Group) -> IrrepBasis:
    r"""The basis of the group, found numerically in float64.

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
    rows, blocks, images, first = [], [], [], 0
    fourier = fourier_of(group)
    known = fourier if isinstance(fourier, FourierC2 | FourierC4 | FourierD2 | FourierD4) else None
    for copies in _split(product) if known is None else _rows_of(known, group.order):
        t = _images(copies[0], product)
        pair = t.shape[0] == 2 and np.allclose(t[0, 0], t[1, 1]) and np.allclose(t[0, 1], -t[1, 0])
        blocks.append(IrrepBlock(first, len(copies), t.shape[0], bool(pair)))
        rows += list(np.stack(copies, 1).reshape(-1, len(product)))  # (width, copies)
        images.append(t)
        first = blocks[-1].slice.stop
    basis = IrrepBasis(np.stack(rows), tuple(blocks), tuple(images))
    _verify(basis, product)
    return basis


def _rows_of(fourier: Fourier, n: int) -> list[list[Array]]:
    r"""The copies of each irrep in a transform of signs, exactly: by transforming the identity."""
    identity = torch.eye(n, dtype=torch.float64, device="cpu").unsqueeze(-1)
    found = []
    for rows, scale in zip(fourier.analysis(identity), fourier.scales, strict=True):
        columns = [row.numpy().T * np.sqrt(scale) for row in rows]
        pair = len(columns) == 2 and len(columns[0]) == 1  # complex, (c, d): one copy of two coefficients
        found.append([np.concatenate(columns)] if pair else columns)
    return found


def _split(table: NDArray[np.int64]) -> list[list[Array]]:
    r"""The rows of each irrep, bases in which it has the same matrices: a list of arrays (w, |G|) per irrep.

    Left translations commute with the right ones. The eigenspaces of a random symmetric sum of left translations are
    therefore irreducible under the right ones, and any other sum of them maps equivalent eigenspaces onto each other,
    by a multiple of an orthogonal matrix (Schur). Of a few sums the one with eigenvalues farthest apart is taken.
    """
    n, generator = len(table), np.random.default_rng(0)
    sums = (_eigenspaces(table, generator.standard_normal(n)) for _ in range(8))
    left, spaces, _ = max(sums, key=lambda found: found[2])
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
    return [_polished(rows, table) for rows in irreps]


def _polished(rows: list[Array], table: NDArray[np.int64]) -> list[Array]:
    r"""The rows of one irrep, nearer to `row(h) = T_u row(h u)`: the mean of the right side over u.

    Where eigenvalues lie close, eigenspaces mix by some 1e-13, and `T`, quadratic in the rows, by the square of it.
    """
    images, means = _images(rows[0], table), []
    for row in rows:
        mean = np.tensordot(images, row[:, table], ([1, 2], [0, 2]))
        means.append(mean * np.sqrt(len(row) / (mean**2).sum()))
    return means


def _eigenspaces(table: NDArray[np.int64], weights: Array) -> tuple[Array, list[Array], float]:
    r"""A sum of left translations, the eigenspaces (w, |G|) of its symmetric part, and their smallest distance."""
    n = len(table)
    left = np.zeros((n, n))
    np.add.at(left, (table.T.ravel(), np.repeat(np.arange(n), n)), np.tile(weights, n))
    values, vectors = np.linalg.eigh(left + left.T)
    steps = np.diff(values)
    ends = np.flatnonzero(steps > TOLERANCE * n) + 1
    return left, [space.T for space in np.split(vectors, ends, axis=1)], float(steps[ends - 1].min(initial=np.inf))


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
            rows, read = (x[block.slice].reshape(block.width, block.copies, n) for x in (q, moved))
            error = max(error, abs(np.einsum("ab,brh->arh", images[:, :, u], read) - rows).max())
    if not error < TOLERANCE:
        raise RuntimeError(
            f"irrep_basis: expected a basis to {TOLERANCE}, found an error of {error}. Please report it."
        )
