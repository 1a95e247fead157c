r"""Table 1: accuracy and invariance of weight tying, augmentation and regularisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.measures import BATCHES, exact, invariance, orbit_logits, similarity
from baselines.parts.base import Finding, Page, Part, Table
from baselines.runs import Result, Run, Subject
from baselines.tables import COLUMNS, cells, grouped, nu, verdict

if TYPE_CHECKING:
    from baselines.plan import Plan


class TablePart(Part):
    r"""Accuracy, LI, DI and SI of every method."""

    title = "Accuracy and invariance"
    claim = (
        "Weight tying is invariant and as accurate as augmentation; augmentation learns to classify moved images "
        "without becoming invariant; regularisation buys invariance with accuracy (Table 1)."
    )

    def needs(self, plan: Plan) -> list[Run]:
        return plan.runs(plan.methods)

    def measure(self, trained: Subject) -> Result:
        r"""One pass over the orbits of the test split; SI over its first samples, and those of the validation split."""
        run, model, data, group = trained.run, trained.model, trained.data, trained.group
        few, batches = slice(0, run.source.saliency_samples), BATCHES[run.model]
        similarities = {"SI": similarity(model, data.test.x[few], data.test.y[few], group, batches)}
        if run.recipe.nu:  # what nu is tuned by
            validation = data.validation.x[few], data.validation.y[few]
            similarities["validation_SI"] = similarity(model, *validation, group, batches)
        exact(model)
        logits = orbit_logits(model, data.test.x, group, batches.logits)
        return {**invariance(logits, data.test.y, group), **similarities}

    def show(self, results: list[Result]) -> Page:
        rows = [[group, method, nu(runs), *cells(runs)] for (group, method), runs in grouped(results).items()]
        findings = [Finding(line) for line in verdict(results)]
        return Page(findings, [Table(("group", "method", "ν", *COLUMNS.values()), rows)])
