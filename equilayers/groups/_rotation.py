r"""Rotations and mirrors of images: the groups C_n and D_n, exact on the pixel grid for n in 1, 2, 4."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import check_int, refuse
from equilayers.groups._base import Group


def _check_turns(who: str, n: object) -> int:
    n = check_int(who, "n", n, 1)
    if n not in (1, 2, 4):
        todo = "Rotations are exact for 1, 2, 4 alone: other angles leave the pixel grid."
        refuse(who, "n to be 1, 2 or 4", n, todo)
    return n


def _check_image(n: int, shape: tuple[int, ...], who: str) -> None:
    if len(shape) < 2:
        refuse(who, "x to be an image (..., H, W)", shape, "Give it two trailing space axes.")
    height, width = shape[-2:]
    if n == 4 and height != width:
        todo = "A quarter turn needs a square: crop or zero-pad the image to H == W."
        refuse(who, "x with H == W", f"H={height}, W={width}", todo)


@dataclass(frozen=True, repr=False)
class CyclicRotation(Group):
    r"""The cyclic group C_n of image rotations; element g turns counter-clockwise by g·360/n degrees.

    `act(g, x) = torch.rot90(x, 4*g//n, (-2, -1))`. C_4 needs H == W.

    Args:
        n: order of the group: 1, 2 or 4.

    Raises:
        TypeError: n is no int.
        ValueError: n is not 1, 2 or 4.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _check_turns("CyclicRotation", self.n))

    def __repr__(self) -> str:
        return f"CyclicRotation({self.n})"

    @property
    def order(self) -> int:
        return self.n

    @property
    def space_ndim(self) -> int:
        return 2

    def check_space(self, shape: tuple[int, ...], who: str) -> None:
        _check_image(self.n, shape, who)

    def _table(self) -> NDArray[np.int64]:
        g = np.arange(self.n)
        return (g[:, None] + g) % self.n

    def _move(self, g: int, x: Tensor) -> Tensor:
        return torch.rot90(x, 4 * g // self.n, (-2, -1))


@dataclass(frozen=True, repr=False)
class Dihedral(Group):
    r"""The dihedral group D_n of image rotations and mirrors, of order 2n.

    Element `r + n*m` mirrors left-right m times (`torch.flip(x, [-1])`), then turns counter-clockwise r times by 360/n
    degrees. D_4 needs H == W.

    Args:
        n: number of rotations: 1, 2 or 4.

    Raises:
        TypeError: n is no int.
        ValueError: n is not 1, 2 or 4.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _check_turns("Dihedral", self.n))

    def __repr__(self) -> str:
        return f"Dihedral({self.n})"

    @property
    def order(self) -> int:
        return 2 * self.n

    @property
    def space_ndim(self) -> int:
        return 2

    def check_space(self, shape: tuple[int, ...], who: str) -> None:
        _check_image(self.n, shape, who)

    def _table(self) -> NDArray[np.int64]:
        turn, mirror = np.arange(self.order) % self.n, np.arange(self.order) // self.n
        # A mirror reverses the turns that it is moved past: flip · rot^r = rot^-r · flip.
        turns = (turn[:, None] + np.where(mirror[:, None], -turn, turn)) % self.n
        return turns + self.n * ((mirror[:, None] + mirror) % 2)

    def _move(self, g: int, x: Tensor) -> Tensor:
        mirror, turn = divmod(g, self.n)
        x = torch.flip(x, [-1]) if mirror else x
        return torch.rot90(x, 4 * turn // self.n, (-2, -1)) if turn else x
