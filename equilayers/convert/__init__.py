r"""Conversions of whole models: equivariant, anti-aliased, symmetrised, and back to plain torch."""

from equilayers.convert._antialiased import to_antialiased
from equilayers.convert._equivariant.to_equivariant import to_equivariant
from equilayers.convert._plain.to_plain import to_plain
from equilayers.convert._report import Entry, Report
from equilayers.convert._soften import set_softness, soften, softness_bounds
from equilayers.convert._symmetrize import Symmetrized, symmetrize

__all__ = [
    "Entry",
    "Report",
    "Symmetrized",
    "set_softness",
    "soften",
    "softness_bounds",
    "symmetrize",
    "to_antialiased",
    "to_equivariant",
    "to_plain",
]
