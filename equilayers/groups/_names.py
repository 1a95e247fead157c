r"""Names of groups, "C4", "D4", "T3", "T3:-2", "T3xT3:-2", and the one parser of them."""

from __future__ import annotations

import re

from equilayers._checks import refuse
from equilayers.groups._base import Group
from equilayers.groups._product import DirectProduct
from equilayers.groups._rotation import EXACT, CyclicRotation, Dihedral
from equilayers.groups._translation import CyclicTranslation

EXAMPLES = (
    "Pass, for example, 'C4' (rotations), 'D4' (and mirrors), 'T3' (shifts along the width), 'T3:-2' or 'T3xT3:-2'."
)
FACTOR = re.compile(r"([CDT])([0-9]{1,6})(?::(-[12]))?")


def group_from_name(name: str) -> Group:
    r"""The group of this name.

    Args:
        name: "C4" is CyclicRotation(4), "D4" Dihedral(4), "T3" CyclicTranslation(3), "T3:-2" that along the height,
            "T3xT3:-2" a DirectProduct. Rotations that are not exact on pixels, such as "C8", interpolate bilinearly.

    Returns:
        The group.

    Raises:
        TypeError: name is no string.
        ValueError: no such name, or factors whose actions do not commute.

    Law: `group_from_name(group.name) == group` for every group that has such a name.
    """
    return _parsed("group_from_name", name)


def as_group(caller: str, group: object, *, exact: bool = False, plane: bool = False) -> Group:
    r"""The group that an argument `group` stands for: a group itself, or its name.

    Args:
        caller: the function or class that was called, for the message of an error.
        group: a group or a name such as "C4".
        exact: whether the action may only move entries, and not interpolate.
        plane: whether it has to be rotations of the plane, with or without mirrors, exact ones.

    Raises:
        TypeError: neither a group nor a string.
        ValueError: an unknown name; with `exact`, a group that interpolates; with `plane`, any but C1, C2, C4, D1, D2,
            D4.
    """
    if isinstance(group, str):
        group = _parsed(caller, group)
    if not isinstance(group, Group):
        hint = "Pass a group, for example CyclicRotation(4), or its name, 'C4'."
        refuse(caller, "group to be a group of equilayers.groups", repr(group), hint, TypeError)
    if exact and group.exactness != "bitwise":
        hint = "It interpolates: convolutions steer their filters, other layers take CyclicRotation(4)."
        refuse(caller, "an exact group", repr(group), hint)
    if plane and not (isinstance(group, CyclicRotation | Dihedral) and group.exactness == "bitwise"):
        hint = "Positions are measured in the plane: take C1, C2, C4, D1, D2 or D4."
        refuse(caller, "group to be exact rotations, with or without mirrors", repr(group), hint)
    return group


def _parsed(caller: str, name: object) -> Group:
    if not isinstance(name, str):
        refuse(caller, "the name of a group to be a string", repr(name), EXAMPLES, TypeError)
    first, *others = (_factor(caller, name, factor) for factor in name.split("x"))
    for other in others:
        first = DirectProduct(first, other)
    return first


def _factor(caller: str, name: str, factor: str) -> Group:
    match = FACTOR.fullmatch(factor)
    if match is None or int(match[2]) < 1 or (match[3] and match[1] != "T"):
        hint = "The paper's R4 is 'C4'." if name == "R4" else EXAMPLES
        refuse(caller, "group to be a name such as 'C4', 'D4', 'T3', 'T3:-2' or 'T3xT3:-2'", repr(name), hint)
    kind, n = match[1], int(match[2])
    if kind == "T":
        return CyclicTranslation(n, int(match[3] or -1))
    interpolation = None if n in EXACT else "bilinear"
    return CyclicRotation(n, interpolation) if kind == "C" else Dihedral(n, interpolation)
