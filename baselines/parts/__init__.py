r"""The parts of the study, by name, in the order of the report."""

from baselines.parts.base import AlonePart, Part, RunPart
from baselines.parts.decay import DecayPart
from baselines.parts.deform import DeformPart
from baselines.parts.drift import DriftPart
from baselines.parts.flow import FlowPart
from baselines.parts.saliency import SaliencyPart
from baselines.parts.shift import ShiftPart
from baselines.parts.table import TablePart
from baselines.parts.tsne import TsnePart

RUN_PARTS: dict[str, RunPart] = {
    "table": TablePart(),
    "drift": DriftPart(),
    "decay": DecayPart(),
    "saliency": SaliencyPart(),
    "tsne": TsnePart(),
}
ALONE_PARTS: dict[str, AlonePart] = {
    "flow": FlowPart(),
    "deform": DeformPart(),
    "shift": ShiftPart(),
}
PARTS: dict[str, Part] = {**RUN_PARTS, **ALONE_PARTS}

__all__ = ["ALONE_PARTS", "PARTS", "RUN_PARTS", "Part"]
