r"""All the mathematics, as functions of plain tensors."""

from equilayers.functional._linear import group_linear, lift_linear
from equilayers.functional._pool import orbit_pool

__all__ = ["group_linear", "lift_linear", "orbit_pool"]
