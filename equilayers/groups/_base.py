r"""The base class of finite groups: multiplication, inverses, and the action on arrays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import check_int, check_tensor, refuse
from equilayers._tables import table
from equilayers._torch_compat import constant_when_compiled, outside_modes
from equilayers.groups.vectors import Matrix, check_axes, check_vectors, in_axes, turn


class Group(ABC):
    r"""A finite group with a left action on arrays.

    An element is an int in `0..order-1`; the identity is 0. Groups are immutable, hashable, picklable, cheap to make.

    Law: `act(compose(g, h), x) == act(g, act(h, x))` for all g, h, bitwise: the action only moves entries.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        r"""Number of elements, |G|."""

    @property
    def exactness(self) -> str:
        r"""The level at which the law of the action holds: "bitwise", or "approximate" where it interpolates."""
        return "bitwise"

    @property
    @abstractmethod
    def space_ndim(self) -> int:
        r"""How many trailing axes the action moves: 2 for images, 1 for flat vectors."""

    @abstractmethod
    def _table(self) -> NDArray[np.int64]:
        r"""The Cayley table, made anew."""

    @abstractmethod
    def _move(self, g: int, x: Tensor) -> Tensor:
        r"""`act` for a checked element other than the identity and a checked array."""

    @abstractmethod
    def check_space(self, shape: tuple[int, ...], caller: str) -> None:
        r"""Raise ValueError, in the name of `caller`, unless the group acts on arrays of this shape."""

    def check_stackable(self, shape: tuple[int, ...], caller: str) -> None:
        r"""Raise ValueError, in the name of `caller`, unless arrays of this shape keep it under every element."""
        self.check_space(shape, caller)

    @property
    def cayley_table(self) -> NDArray[np.int64]:
        r"""Read-only array (|G|, |G|): entry `[g, h]` is `compose(g, h)`."""
        return _cayley(self)

    @property
    def inverses(self) -> NDArray[np.int64]:
        r"""Read-only array (|G|,): entry g is g^-1."""
        return _inverses(self)

    @property
    def name(self) -> str:
        r"""The name that `group_from_name` reads, such as "C4"; `repr` of a group that has none."""
        return repr(self)

    def permutations(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        r"""Array (|G|, N): `act(g, x).flatten() == x.flatten()[permutations(x.shape)[g]]`."""
        self.check_stackable(tuple(shape), f"{self!r}.permutations")
        with outside_modes():  # read off the action itself, so that the two cannot disagree
            index = torch.arange(math.prod(shape)).reshape(shape)
            return np.stack([self.act(g, index).flatten().numpy() for g in range(self.order)])

    def generating_set(self) -> list[int]:
        r"""A few elements whose products are the whole group."""
        chosen: list[int] = []
        reached = {0}
        for g in range(self.order):
            if g not in reached:
                chosen.append(g)
                while more := {int(self.cayley_table[h, s]) for h in reached for s in chosen} - reached:
                    reached |= more
        return chosen

    def compose(self, g: int, h: int) -> int:
        r"""The product g·h: first h, then g."""
        return int(self.cayley_table[self._element(g, "compose"), self._element(h, "compose")])

    def inverse(self, g: int) -> int:
        r"""The group element that undoes g: their product is the identity, 0."""
        return _inverse_row(self).index(self._element(g, "inverse"))  # (g^-1)^-1 = g

    def act(self, g: int, x: Tensor) -> Tensor:
        r"""The array moved by g.

        Args:
            g: element, an int in `0..order-1`.
            x: array (..., space) of any dtype on any device; the space is the last one or two axes.

        Returns:
            Array of the shape, dtype and device of x; `x` itself, not a copy, for the identity. Differentiable.

        Raises:
            TypeError: x is no tensor, or g no int.
            ValueError: g out of range, or a space the group does not act on.

        Law: `act(compose(g, h), x) == act(g, act(h, x))`, bitwise, for all g and h.
        """
        caller = f"{self!r}.act"
        g = self._element(g, "act")
        self.check_space(tuple(check_tensor(caller, "x", x).shape), caller)
        return x if g == 0 else self._move(g, x)

    def act_regular(self, g: int, f: Tensor) -> Tensor:
        r"""The regular feature moved by g: `act_regular(g, f)[:, :, h] = act(g, f[:, :, g^-1 h])`.

        Args:
            g: element, an int in `0..order-1`.
            f: feature (B, C, |G|), or (B, C, |G|, *space) whose space moves as well.

        Returns:
            Feature of the shape, dtype and device of f; `f` itself for the identity. Differentiable.

        Raises:
            TypeError: f is no tensor, or g no int.
            ValueError: axis 2 is not the fiber, or the space is not one the group acts on.

        Law: `act_regular(compose(g, h), f) == act_regular(g, act_regular(h, f))`, bitwise, for all g and h.
        """
        caller = f"{self!r}.act_regular"
        g = self._element(g, "act_regular")
        self.check_fiber(check_tensor(caller, "f", f), caller)
        if f.ndim > 3:
            self.check_space(tuple(f.shape[3:]), caller)
        if g == 0:
            return f
        source = torch.tensor(_row(self, self.inverse(g)), device=f.device)  # h -> g^-1 h
        moved = f.index_select(2, source)
        return self._move(g, moved) if f.ndim > 3 else moved

    def act_vectors(self, g: int, v: Tensor, *, axes: str = "right-up") -> Tensor:
        r"""Vectors of the plane moved by g: they turn, and on a map the places where they stand move as well.

        `act_vectors(g, v)[b, c] = vector_matrix(g) act(g, v)[b, c]`

        Args:
            g: element, an int in `0..order-1`.
            v: vectors (B, C, 2) or (B, C, 2, N), or fields (B, C, 2, H, W), whose pixels move; floating-point.
            axes: what the components are: "right-up", "right-down" (flows in pixels, whose second component runs down
                as rows do) or "down-right" (offsets of row and column).

        Returns:
            Vectors of the dtype and device of v, and of its shape but that odd quarter turns carry (H, W) to (W, H);
            `v` itself for the identity. Differentiable.

        Raises:
            TypeError: v is not floating-point, or g no int.
            ValueError: axis 2 does not hold two components, unknown axes, or a group that does not act on the plane.

        Law: `act_vectors(compose(g, h), v) == act_vectors(g, act_vectors(h, v))` for all g and h, at the level of
            `exactness`.
        """
        caller = f"{self!r}.act_vectors"
        g = self._element(g, "act_vectors")
        check_vectors(caller, v)
        matrix = in_axes(self._vector_matrix(g, 1), check_axes(caller, axes))
        if v.ndim == 5:
            self.check_space(tuple(v.shape[3:]), caller)
        if g == 0:
            return v
        turned = turn(v, matrix)
        return self._move(g, turned) if v.ndim == 5 else turned

    def vector_matrix(self, g: int, *, order: int = 1, axes: str = "right-up") -> Matrix:
        r"""The 2x2 matrix of g on vectors of the plane, ((a, b), (c, d)); whole numbers for quarter turns and mirrors.

        Args:
            g: element, an int in `0..order-1`.
            order: m for what turns m times as fast, (cos m·a, sin m·a): 2 for directions without a sign.
            axes: what the components are, as for `act_vectors`.

        Raises:
            TypeError: g or order is no int.
            ValueError: an argument out of range, or a group that does not act on the plane.

        Law: `vector_matrix(compose(g, h)) = vector_matrix(g) vector_matrix(h)`.
        """
        caller = f"{self!r}.vector_matrix"
        check_int(caller, "order", order, 1)
        return in_axes(self._vector_matrix(self._element(g, "vector_matrix"), order), check_axes(caller, axes))

    def _vector_matrix(self, g: int, order: int) -> Matrix:  # noqa: ARG002
        r"""`vector_matrix` for checked arguments, in (right, up)."""
        hint = "Vectors turn under rotations and mirrors, and stay under shifts."
        refuse(f"{self!r}", "a group that acts on the plane, for vectors", repr(self), hint)

    def orbit(self, x: Tensor) -> Tensor:
        r"""All images of x: array (|G|, *x.shape) whose entry g is `act(g, x)`; ValueError where shapes change."""
        self.check_stackable(tuple(check_tensor(f"{self!r}.orbit", "x", x).shape), f"{self!r}.orbit")
        return torch.stack([self.act(g, x) for g in range(self.order)])

    def check_fiber(self, f: Tensor, caller: str) -> None:
        r"""Raise ValueError, in the name of `caller`, unless axis 2 of f is a fiber of this group."""
        if f.ndim < 3 or f.shape[2] != self.order:
            hint = "A regular feature is (B, C, |G|) or (B, C, |G|, H, W)."
            refuse(caller, f"f with axis 2 of length {self.order}, the order of {self!r}", tuple(f.shape), hint)

    def _inverse_table(self) -> NDArray[np.int64]:
        r"""The inverse of each element, (|G|,): where its row of the Cayley table has the identity."""
        return np.argmin(self.cayley_table, axis=1)

    def _element(self, g: int, method: str) -> int:
        if type(g) is int and 0 <= g < self.order:  # the common case, without the words of the error
            return g
        return check_int(f"{self!r}.{method}", "g", g, 0, self.order - 1)


@table
def _cayley(group: Group) -> NDArray[np.int64]:
    return _read_only(group._table())


@constant_when_compiled
def _row(group: Group, g: int) -> tuple[int, ...]:
    r"""Row g of the Cayley table as plain ints, which a compiler takes for constants."""
    return tuple(group.cayley_table[g].tolist())


@table
def _inverse_row(group: Group) -> tuple[int, ...]:
    r"""The inverses as plain ints. A compiler takes the tuple for a constant, and places in it too, but not entries."""
    return tuple(group.inverses.tolist())


@table
def _inverses(group: Group) -> NDArray[np.int64]:
    return _read_only(group._inverse_table())


def _read_only(numbers: NDArray[Any]) -> NDArray[np.int64]:
    made: NDArray[np.int64] = numbers.astype(np.int64, copy=False)
    made.setflags(write=False)
    return made
