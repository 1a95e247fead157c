r"""Shift invariance of subsampling networks: max, blur and polyphase pooling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from baselines.common.runner import Result
from baselines.shift.command import runs_of
from baselines.shift.models import KINDS, TASKS
from baselines.shift.runs import PROTOCOLS, Run, ShiftJob
from baselines.shift.tables import rows_of, titles, verdict
from baselines.study.parts.base import Finding, Page, Picture, StandalonePart, Table

if TYPE_CHECKING:
    from baselines.study.config import Plan

ALTS = {
    "toy": "A toy signal and its shift by one, and what max, blur and polyphase pooling make of them.",
    "accuracy": "Accuracy of the detector at every shift, for each pooling, circular and cropped.",
    "probability": "Probability of the true class along diagonal shifts, for each pooling.",
    "segmentation": "A scene segmented as it is and shifted by a pixel, for each pooling.",
}


class ShiftPart(StandalonePart):
    r"""A detector and a segmentor with each pooling, at every shift."""

    title = "Shifts and subsampling"
    claim = (
        "Max pooling aliases and its networks change their mind when the image is shifted; blurring makes that rarer, "
        "polyphase pooling makes it impossible under circular shifts (Zhang 2019, Chaman and Dokmanic 2021)."
    )

    def jobs(self, plan: Plan, out: Path) -> list[ShiftJob]:
        return [ShiftJob(run, out) for run in _runs(plan)]

    def results(self, found: list[Result]) -> list[Result]:
        return [{key: value for key, value in result.items() if key != "training_seconds"} for result in found]

    def page(self, results: list[Result]) -> Page:
        from baselines.shift.figures import drawings

        detectors = {run["kind"]: run for run in results if run["task"] == "detector"}
        wobble = [detectors[kind]["circular"]["largest_wobble"] for kind in KINDS]
        same = detectors["polyphase"]["consistency"]["circular"] == 1
        findings = [Finding(line[0].upper() + line[1:] + ".") for line in verdict(results)]
        text = "Under circular shifts the probability wobbles most with max, less with blur, least with polyphase"
        ordered = wobble[0] > wobble[1] > wobble[2]
        findings.append(Finding(f"{text} pooling: {'yes' if ordered else 'no'}.", (ordered, same)))
        tables = [Table(titles(task), rows_of(results, task)) for task in TASKS]
        return Page(findings, tables, [Picture(f"shift-{n}", f, ALTS[n]) for n, f in drawings(results).items()])


def _runs(plan: Plan) -> list[Run]:
    protocol = PROTOCOLS[plan.source.data]
    own = max(protocol.detector_epochs, protocol.segmentor_epochs)
    fewer = plan.epochs if plan.epochs and plan.epochs < own else None
    return runs_of(plan.source.data, plan.source.data_dir, fewer, 1, None)
