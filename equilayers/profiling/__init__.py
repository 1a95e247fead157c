r"""What each module of a model costs: time, memory, operations, and what to change first."""

from equilayers.profiling._profile import profile
from equilayers.profiling._result import Profile
from equilayers.profiling._rows import Row

__all__ = ["Profile", "Row", "profile"]
