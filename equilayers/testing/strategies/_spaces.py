r"""Which arrays a group acts on."""

from __future__ import annotations

import math
from typing import NamedTuple

from equilayers._checks import refuse
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group, PermutationGroup


class Needs(NamedTuple):
    r"""What a space must be for a group.

    height, width: the axes are multiples of these. square: both are alike. exact: the width, where there is only one.
    ndim: 2 where a flat vector will not do.
    """

    height: int = 1
    width: int = 1
    square: bool = False
    exact: int | None = None
    ndim: int = 2


def needs(caller: str, group: Group | str) -> Needs:
    r"""Of one of the groups of `equilayers.groups`; TypeError for another."""
    if isinstance(group, CyclicRotation | Dihedral):
        return Needs(square=group.n == 4)
    if isinstance(group, CyclicTranslation):
        return Needs(width=group.n, ndim=1) if group.dim == -1 else Needs(height=group.n)
    if isinstance(group, PermutationGroup):
        return Needs(exact=group.degree, ndim=1)
    if not isinstance(group, DirectProduct):
        refuse(caller, "group to be one of equilayers.groups", repr(group), "Pass size, a shape it acts on.", TypeError)
    a, b = needs(caller, group.first), needs(caller, group.second)
    height, width = math.lcm(a.height, b.height), math.lcm(a.width, b.width)
    return Needs(height, width, a.square or b.square, a.exact or b.exact, max(a.ndim, b.ndim))
