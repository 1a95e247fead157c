r"""Direct products of two groups whose actions commute."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import refuse
from equilayers._torch_compat import outside_modes
from equilayers.groups._base import Group
from equilayers.groups._permutation import PermutationGroup
from equilayers.groups._translation import CyclicTranslation
from equilayers.groups.vectors import Matrix, product_of


@dataclass(frozen=True, repr=False)
class DirectProduct(Group):
    r"""The direct product A x B of two groups whose actions commute; element `a*|B| + b` acts as a after b.

    Args:
        first: the group A.
        second: the group B.

    Raises:
        TypeError: an argument is no group.
        ValueError: the actions do not commute, or move arrays that cannot be the same.
    """

    first: Group
    second: Group

    def __post_init__(self) -> None:
        for group in (self.first, self.second):
            if not isinstance(group, Group):
                hint = "Pass, for example, CyclicRotation(4)."
                refuse("DirectProduct", "group to be a group of equilayers.groups", repr(group), hint, TypeError)
            if group.exactness != "bitwise":
                refuse("DirectProduct", "exact groups", repr(group), "It interpolates: take an exact one.")
        with outside_modes():
            _check_commuting(self)

    def __repr__(self) -> str:
        return f"DirectProduct({self.first!r}, {self.second!r})"

    @property
    def name(self) -> str:
        return f"{self.first.name}x{self.second.name}"

    @property
    def order(self) -> int:
        return self.first.order * self.second.order

    @property
    def space_ndim(self) -> int:
        return max(self.first.space_ndim, self.second.space_ndim)

    def check_space(self, shape: tuple[int, ...], caller: str) -> None:
        self.first.check_space(shape, caller)
        self.second.check_space(shape, caller)

    def check_stackable(self, shape: tuple[int, ...], caller: str) -> None:
        self.first.check_stackable(shape, caller)
        self.second.check_stackable(shape, caller)

    def _table(self) -> NDArray[np.int64]:
        n = self.second.order
        blocks = np.kron(self.first.cayley_table, np.ones((n, n), np.int64))
        return n * blocks + np.tile(self.second.cayley_table, (self.first.order, self.first.order))

    def _vector_matrix(self, g: int, order: int) -> Matrix:
        a, b = divmod(g, self.second.order)
        return product_of(self.first._vector_matrix(a, order), self.second._vector_matrix(b, order))

    def _move(self, g: int, x: Tensor) -> Tensor:
        a, b = divmod(g, self.second.order)
        return self.first.act(a, self.second.act(b, x))


def _lengths(group: Group) -> tuple[int, int | None]:
    r"""The divisor of the axis lengths that the group acts on, and the length itself where only one is allowed."""
    if isinstance(group, DirectProduct):
        (m, d), (n, e) = _lengths(group.first), _lengths(group.second)
        return math.lcm(m, n), d if e is None else e
    if isinstance(group, PermutationGroup):
        return 1, group.degree
    return (group.n if isinstance(group, CyclicTranslation) else 1), None


def _check_commuting(product: DirectProduct) -> None:
    r"""Try every pair of generators on square arrays with distinct entries, of even and of odd multiples."""
    multiple, exact = _lengths(product)
    sizes = (exact,) if exact is not None else (2 * multiple, 3 * multiple, 4 * multiple)
    for size in sizes:
        x = torch.arange(size * size).reshape(size, size)
        product.check_space((size, size), "DirectProduct")
        for a in product.first.generating_set():
            for b in product.second.generating_set():
                ab = product.first.act(a, product.second.act(b, x))
                if not torch.equal(ab, product.second.act(b, product.first.act(a, x))):
                    hint = f"Elements {a} and {b} do not: only commuting actions form a direct product."
                    pair = f"{product.first!r} and {product.second!r}"
                    refuse("DirectProduct", "groups whose actions commute", pair, hint)
