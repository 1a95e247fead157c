r"""Finite groups and how they move images, flat vectors and regular features."""

from equilayers.groups._base import Group
from equilayers.groups._permutation import PermutationGroup
from equilayers.groups._product import DirectProduct
from equilayers.groups._rotation import CyclicRotation, Dihedral
from equilayers.groups._translation import CyclicTranslation

__all__ = ["CyclicRotation", "CyclicTranslation", "Dihedral", "DirectProduct", "Group", "PermutationGroup"]
