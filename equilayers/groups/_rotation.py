r"""Rotations and mirrors of images: the groups C_n and D_n, exact on the pixel grid for n in 1, 2, 4.

Other n need an interpolation, and say so: their `exactness` is "approximate".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import check_choice, check_int, refuse
from equilayers.groups._base import Group
from equilayers.groups._interpolation import INTERPOLATIONS, rotate
from equilayers.groups.vectors import Matrix, rotation_matrix

EXACT = (1, 2, 4)


@dataclass(frozen=True, repr=False)
class Rotations(Group):
    r"""The part that C_n and D_n share: n rotations, exact or interpolated."""

    n: int
    interpolation: str | None = None
    letter: ClassVar[str]

    def __post_init__(self) -> None:
        caller = type(self).__name__
        object.__setattr__(self, "n", check_int(caller, "n", self.n, 1))
        if self.interpolation is not None:
            check_choice(caller, "interpolation", self.interpolation, INTERPOLATIONS)
        elif self.n not in EXACT:
            hint = "Rotations are exact for 1, 2, 4 alone: pass interpolation='bilinear' or 'bicubic' (approximate)."
            refuse(caller, "n to be 1, 2 or 4", self.n, hint)
        if self.n in EXACT:
            object.__setattr__(self, "interpolation", None)

    def __repr__(self) -> str:
        interpolation = "" if self.interpolation is None else f", interpolation={self.interpolation!r}"
        return f"{type(self).__name__}({self.n}{interpolation})"

    @property
    def name(self) -> str:
        return f"{self.letter}{self.n}" if self.interpolation in (None, "bilinear") else repr(self)

    @property
    def space_ndim(self) -> int:
        return 2

    @property
    def exactness(self) -> str:
        return "bitwise" if self.interpolation is None else "approximate"

    def check_space(self, shape: tuple[int, ...], caller: str) -> None:
        if len(shape) < 2:
            refuse(caller, "x to be an image (..., H, W)", shape, "Give it two trailing space axes.")
        if self.interpolation is not None:
            self._check_square(shape, caller)

    def check_stackable(self, shape: tuple[int, ...], caller: str) -> None:
        self.check_space(shape, caller)
        self._check_square(shape, caller)

    def _check_square(self, shape: tuple[int, ...], caller: str) -> None:
        height, width = shape[-2:]
        if self.n > 2 and height != width:
            hint = "A quarter turn needs a square: crop or zero-pad the image to H == W."
            refuse(caller, "x with H == W", f"H={height}, W={width}", hint)

    def _vector_matrix(self, g: int, order: int) -> Matrix:
        mirror, rotation = divmod(g, self.n)
        return rotation_matrix(rotation, self.n, order, mirrored=bool(mirror))

    def _rotated(self, steps: int, x: Tensor) -> Tensor:
        if self.interpolation is not None:
            return rotate(x, 360 * steps / self.n, self.interpolation)
        return torch.rot90(x, 4 * steps // self.n, (-2, -1)) if steps else x


class CyclicRotation(Rotations):
    r"""The cyclic group C_n of image rotations; element g rotates counter-clockwise by g·360/n degrees.

    `act(g, x) = torch.rot90(x, 4*g//n, (-2, -1))` for n in 1, 2, 4; for n = 4 it carries (H, W) to (W, H) at odd g. For
    any other n quarter turns are the same, the rest of the angle is interpolated, and it needs H == W.

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

    letter = "C"

    @property
    def order(self) -> int:
        return self.n

    def _table(self) -> NDArray[np.int64]:
        g = np.arange(self.n)
        return (g[:, None] + g) % self.n

    def _move(self, g: int, x: Tensor) -> Tensor:
        return self._rotated(g, x)


class Dihedral(Rotations):
    r"""The dihedral group D_n of image rotations and mirrors, of order 2n.

    Element `r + n*m` mirrors left-right m times (`torch.flip(x, [-1])`), then rotates counter-clockwise r times by
    360/n degrees; for n = 4 odd r carry (H, W) to (W, H). Needs H == W for n other than 1, 2, 4.

    Args:
        n: number of rotations.
        interpolation: as of `CyclicRotation`.

    Attributes:
        exactness: as of `CyclicRotation`.

    Raises:
        TypeError, ValueError: as `CyclicRotation`.
    """

    letter = "D"

    @property
    def order(self) -> int:
        return 2 * self.n

    def _table(self) -> NDArray[np.int64]:
        mirror, rotation = np.divmod(np.arange(self.order), self.n)
        # A mirror reverses the rotations that it is moved past: flip · rot^r = rot^-r · flip.
        rotations = (rotation[:, None] + np.where(mirror[:, None], -rotation, rotation)) % self.n
        return rotations + self.n * ((mirror[:, None] + mirror) % 2)

    def _move(self, g: int, x: Tensor) -> Tensor:
        mirror, rotation = divmod(g, self.n)
        return self._rotated(rotation, torch.flip(x, [-1]) if mirror else x)


def interpolates(group: Group) -> TypeGuard[Rotations]:
    r"""Whether the group acts by interpolation, so that filters have to be steered."""
    return isinstance(group, Rotations) and group.interpolation is not None
