r"""The layers: parameters, checks and one call of `equilayers.functional` each."""

from equilayers.nn._linear import GroupLinear, LiftingLinear
from equilayers.nn._pool import OrbitPool

__all__ = ["GroupLinear", "LiftingLinear", "OrbitPool"]
