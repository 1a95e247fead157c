r"""The parts of the study, by name, in the order of the report."""

from baselines.study.parts.base import Part, RunPart, StandalonePart
from baselines.study.parts.deform import DeformPart
from baselines.study.parts.drift import DriftPart
from baselines.study.parts.gradient_flow import FlowPart
from baselines.study.parts.mitigation import MitigationPart
from baselines.study.parts.saliency import SaliencyPart
from baselines.study.parts.sensitivity import SensitivityPart
from baselines.study.parts.shift import ShiftPart
from baselines.study.parts.spectral_decay import DecayPart
from baselines.study.parts.table1 import TablePart
from baselines.study.parts.tsne import TsnePart

RUN_PARTS: dict[str, RunPart] = {
    "table": TablePart(),
    "drift": DriftPart(),
    "decay": DecayPart(),
    "saliency": SaliencyPart(),
    "tsne": TsnePart(),
    "mitigation": MitigationPart(),
    "sensitivity": SensitivityPart(),
}
STANDALONE_PARTS: dict[str, StandalonePart] = {
    "flow": FlowPart(),
    "deform": DeformPart(),
    "shift": ShiftPart(),
}
PARTS: dict[str, Part] = {**RUN_PARTS, **STANDALONE_PARTS}
EXTRA = ("mitigation", "sensitivity")  # beyond the paper, many trainings each
__all__ = ["EXTRA", "PARTS", "RUN_PARTS", "STANDALONE_PARTS", "Part"]
