r"""The parts of the study, by name, in the order of the report."""

from baselines.parts.base import Part
from baselines.parts.table import TablePart

PARTS: dict[str, Part] = {"table": TablePart()}

__all__ = ["PARTS", "Part"]
