r"""Which of our groups an escnn field type belongs to, and where the entries of a fiber stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from equilayers._checks import refuse
from equilayers.groups import CyclicRotation, Dihedral, Group

GROUPS = (CyclicRotation(1), CyclicRotation(2), Dihedral(1), CyclicRotation(4), Dihedral(2), Dihedral(4))


@dataclass(frozen=True)
class Fields:
    r"""The fields of one escnn type, all trivial or all regular.

    `places[g]` is where the entry of our element g stands in a fiber of escnn; a trivial field has the one place 0.
    """

    group: Group
    channels: int
    regular: bool
    places: list[int]


def escnn_nn() -> Any:
    r"""The module escnn.nn; an ImportError that says what to install where there is none."""
    try:
        import escnn.nn
    except ImportError as error:
        hint = "Install it with pip install 'equilayers[escnn]'."
        refuse("equilayers.interop.escnn", "escnn 1.0.11 to be importable", error, hint, ImportError)
    return escnn.nn


def fields_of(caller: str, what: str, kind: Any) -> Fields:
    r"""The fields of an escnn FieldType; ValueError, in the name of `caller` about `what`, where they do not fit."""
    space, found = kind.gspace, set(kind.representations)
    group, elements = _matched(caller, what, space)
    if found == {space.trivial_repr}:
        return Fields(group, len(kind), False, [0])
    if found != {space.regular_repr}:
        names = ", ".join(sorted(representation.name for representation in found))
        hint = "Other fields, and mixtures, have no counterpart among plain features."
        refuse(caller, f"{what} to have trivial fields alone or regular fields alone", names, hint)
    # The regular representation of e takes the entry of the identity to the entry of e.
    identity = list(space.fibergroup.elements).index(space.fibergroup.identity)
    return Fields(group, len(kind), True, [int(np.argmax(space.regular_repr(e)[:, identity])) for e in elements])


def _matched(caller: str, what: str, space: Any) -> tuple[Group, list[Any]]:
    r"""The group of ours that moves the plane as the escnn gspace does, and escnn's elements in the order of ours."""
    theirs = {}
    if space.dimensionality == 2 and not space.fibergroup.continuous:
        theirs = {_key(space.basespace_action(e)): e for e in space.fibergroup.elements}
    for group in (group for group in GROUPS if group.order == len(theirs)):
        ours = [_key(_matrix(group, g)) for g in range(group.order)]
        if set(ours) == set(theirs):
            return group, [theirs[key] for key in ours]
    names = ", ".join(map(repr, GROUPS))
    hint = "Take a gspace of the plane that moves pixels to pixels, such as rot2dOnR2(4) or flipRot2dOnR2(4)."
    return refuse(caller, f"{what} to have the symmetry of one of {names}", space, hint)


def _matrix(group: Group, g: int) -> Any:
    r"""The matrix (2, 2) by which g moves points (x to the right, y upwards), read off its action on 3 x 3 pixels."""
    y, x = torch.meshgrid(torch.tensor([1, 0, -1]), torch.tensor([-1, 0, 1]), indexing="ij")
    moved = group.act(g, torch.stack([x, y]))  # at the pixel of the point p stands the point g^-1 p
    return torch.stack([moved[:, 1, 2], moved[:, 0, 1]]).numpy()  # g^-1 (1, 0) and g^-1 (0, 1) are the rows of g


def _key(matrix: Any) -> tuple[float, ...]:
    r"""The entries of the matrix, rounding errors removed."""
    return tuple((np.round(np.asarray(matrix, dtype=float), 6) + 0.0).ravel().tolist())
