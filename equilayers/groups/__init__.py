r"""Finite groups and how they move images, flat vectors and regular features."""

from equilayers.groups._base import Group
from equilayers.groups._interpolation import INTERPOLATIONS as INTERPOLATIONS
from equilayers.groups._interpolation import rotate as rotate
from equilayers.groups._names import as_group, group_from_name
from equilayers.groups._permutation import PermutationGroup
from equilayers.groups._product import DirectProduct
from equilayers.groups._rotation import CyclicRotation, Dihedral
from equilayers.groups._rotation import Rotations as Rotations
from equilayers.groups._rotation import interpolates as interpolates
from equilayers.groups._translation import CyclicTranslation

__all__ = [
    "CyclicRotation",
    "CyclicTranslation",
    "Dihedral",
    "DirectProduct",
    "Group",
    "PermutationGroup",
    "as_group",
    "group_from_name",
]
