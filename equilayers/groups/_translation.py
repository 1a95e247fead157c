r"""Cyclic shifts: the group T_n."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import check_int, refuse
from equilayers.groups._base import Group
from equilayers.groups.vectors import IDENTITY, Matrix


@dataclass(frozen=True, repr=False)
class CyclicTranslation(Group):
    r"""The cyclic group T_n of shifts along one axis; element g rolls axis `dim` by g·L/n pixels, L its length.

    `act(g, x) = torch.roll(x, g*L//n, dim)`. L must be a multiple of n.

    Args:
        n: order of the group, at least 1.
        dim: the axis that is rolled, counted from the end: -1 (to the right) or -2 (down).

    Raises:
        TypeError: n or dim is no int.
        ValueError: n below 1, dim neither -1 nor -2.
    """

    n: int
    dim: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", check_int("CyclicTranslation", "n", self.n, 1))
        dim = check_int("CyclicTranslation", "dim", self.dim, -(2**31))
        if dim not in (-1, -2):
            hint = "Count the axis from the end: any number of leading axes is allowed."
            refuse("CyclicTranslation", "dim to be -1 or -2", dim, hint)
        object.__setattr__(self, "dim", dim)

    def __repr__(self) -> str:
        return f"CyclicTranslation({self.n}, dim={self.dim})"

    @property
    def name(self) -> str:
        return f"T{self.n}" if self.dim == -1 else f"T{self.n}:{self.dim}"

    @property
    def order(self) -> int:
        return self.n

    @property
    def space_ndim(self) -> int:
        return -self.dim

    def check_space(self, shape: tuple[int, ...], caller: str) -> None:
        if len(shape) < self.space_ndim:
            refuse(caller, f"x with at least {self.space_ndim} axes", shape, f"{self!r} rolls axis {self.dim}.")
        length = shape[self.dim]
        if length % self.n:
            padded = length + self.n - length % self.n
            refuse(
                caller, f"x with axis {self.dim} a multiple of {self.n}", length, f"Pad it to {padded}, for example."
            )

    def _table(self) -> NDArray[np.int64]:
        g = np.arange(self.n)
        return (g[:, None] + g) % self.n

    def _vector_matrix(self, g: int, order: int) -> Matrix:  # noqa: ARG002
        return IDENTITY

    def _move(self, g: int, x: Tensor) -> Tensor:
        return torch.roll(x, g * x.shape[self.dim] // self.n, self.dim)
