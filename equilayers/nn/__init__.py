r"""The layers: parameters, checks and one call of `equilayers.functional` each."""

from equilayers.nn._conv import GroupConv2d, LiftingConv2d
from equilayers.nn._linear import GroupLinear, LiftingLinear
from equilayers.nn._pool import InvariantAvgPool2d, OrbitPool

__all__ = ["GroupConv2d", "GroupLinear", "InvariantAvgPool2d", "LiftingConv2d", "LiftingLinear", "OrbitPool"]
