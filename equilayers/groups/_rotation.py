r"""Rotations and mirrors of images: the groups C_n and D_n, exact on the pixel grid for n in 1, 2, 4.

Other n need an interpolation, and say so: their `exactness` is "approximate".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import check_choice, check_int, refuse
from equilayers.groups._base import Group
from equilayers.groups._interpolation import INTERPOLATIONS, rotate

EXACT = (1, 2, 4)


def _checked(caller: str, n: object, interpolation: str | None) -> tuple[int, str | None]:
    r"""The number of turns, and the interpolation that they need: None where they are exact."""
    n = check_int(caller, "n", n, 1)
    if interpolation is not None:
        check_choice(caller, "interpolation", interpolation, INTERPOLATIONS)
    elif n not in EXACT:
        hint = "Turns are exact for 1, 2, 4 alone: pass interpolation='bilinear' or 'bicubic', which is approximate."
        refuse(caller, "n to be 1, 2 or 4", n, hint)
    return n, None if n in EXACT else interpolation


def _check_image(n: int, shape: tuple[int, ...], caller: str) -> None:
    if len(shape) < 2:
        refuse(caller, "x to be an image (..., H, W)", shape, "Give it two trailing space axes.")
    height, width = shape[-2:]
    if n > 2 and height != width:
        hint = "A quarter turn needs a square: crop or zero-pad the image to H == W."
        refuse(caller, "x with H == W", f"H={height}, W={width}", hint)


@dataclass(frozen=True, repr=False)
class CyclicRotation(Group):
    r"""The cyclic group C_n of image rotations; element g turns counter-clockwise by g·360/n degrees.

    `act(g, x) = torch.rot90(x, 4*g//n, (-2, -1))` for n in 1, 2, 4. For any other n quarter turns are the same, and the
    rest of the angle is interpolated. Needs H == W but for n in 1, 2.

    Args:
        n: order of the group.
        interpolation: for n other than 1, 2, 4: "bilinear" (order 1) or "bicubic" (order 3); zeros come in from
            outside. The exact groups need none and ignore it.

    Attributes:
        exactness: "bitwise", or "approximate" where something is interpolated: then the law of the action holds to the
            error of the interpolation, inside the largest disk, and to rounding for quarter turns.

    Raises:
        TypeError: n is no int; when it acts by interpolation, x is not floating-point.
        ValueError: n is not 1, 2 or 4 and there is no interpolation, or one of another name.
    """

    n: int
    interpolation: str | None = None

    def __post_init__(self) -> None:
        for name, value in zip(
            ("n", "interpolation"), _checked("CyclicRotation", self.n, self.interpolation), strict=True
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"CyclicRotation({_settings(self)})"

    @property
    def name(self) -> str:
        return _name("C", self)

    @property
    def order(self) -> int:
        return self.n

    @property
    def space_ndim(self) -> int:
        return 2

    @property
    def exactness(self) -> str:
        return "bitwise" if self.interpolation is None else "approximate"

    def check_space(self, shape: tuple[int, ...], caller: str) -> None:
        _check_image(self.n, shape, caller)

    def _table(self) -> NDArray[np.int64]:
        g = np.arange(self.n)
        return (g[:, None] + g) % self.n

    def _move(self, g: int, x: Tensor) -> Tensor:
        return _turned(self, g, x)


@dataclass(frozen=True, repr=False)
class Dihedral(Group):
    r"""The dihedral group D_n of image rotations and mirrors, of order 2n.

    Element `r + n*m` mirrors left-right m times (`torch.flip(x, [-1])`), then turns counter-clockwise r times by 360/n
    degrees. Needs H == W but for n in 1, 2.

    Args:
        n: number of rotations.
        interpolation: as of `CyclicRotation`.

    Attributes:
        exactness: as of `CyclicRotation`.

    Raises:
        TypeError, ValueError: as `CyclicRotation`.
    """

    n: int
    interpolation: str | None = None

    def __post_init__(self) -> None:
        for name, value in zip(("n", "interpolation"), _checked("Dihedral", self.n, self.interpolation), strict=True):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Dihedral({_settings(self)})"

    @property
    def name(self) -> str:
        return _name("D", self)

    @property
    def order(self) -> int:
        return 2 * self.n

    @property
    def space_ndim(self) -> int:
        return 2

    @property
    def exactness(self) -> str:
        return "bitwise" if self.interpolation is None else "approximate"

    def check_space(self, shape: tuple[int, ...], caller: str) -> None:
        _check_image(self.n, shape, caller)

    def _table(self) -> NDArray[np.int64]:
        turn, mirror = np.arange(self.order) % self.n, np.arange(self.order) // self.n
        # A mirror reverses the turns that it is moved past: flip · rot^r = rot^-r · flip.
        turns = (turn[:, None] + np.where(mirror[:, None], -turn, turn)) % self.n
        return turns + self.n * ((mirror[:, None] + mirror) % 2)

    def _move(self, g: int, x: Tensor) -> Tensor:
        mirror, turn = divmod(g, self.n)
        x = torch.flip(x, [-1]) if mirror else x
        return _turned(self, turn, x)


def _turned(group: CyclicRotation | Dihedral, turn: int, x: Tensor) -> Tensor:
    if group.interpolation is not None:
        return rotate(x, 360 * turn / group.n, group.interpolation)
    return torch.rot90(x, 4 * turn // group.n, (-2, -1)) if turn else x


def _name(letter: str, group: CyclicRotation | Dihedral) -> str:
    return f"{letter}{group.n}" if group.interpolation in (None, "bilinear") else repr(group)


def _settings(group: CyclicRotation | Dihedral) -> str:
    return f"{group.n}" if group.interpolation is None else f"{group.n}, interpolation={group.interpolation!r}"


Rotations = CyclicRotation | Dihedral


def interpolates(group: Group) -> TypeGuard[Rotations]:
    r"""Whether the group acts by interpolation, so that filters have to be steered."""
    return isinstance(group, CyclicRotation | Dihedral) and group.interpolation is not None
