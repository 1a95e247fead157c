r"""Table 1: accuracy and invariance of weight tying, augmentation and regularisation."""

from statistics import fmean
from typing import Any

from baselines.common.runner import Result
from baselines.study.config import SALIENCY_TARGET
from baselines.study.explain import saliency_of
from baselines.study.measures import BATCHES, exact, invariance, orbit_logits
from baselines.study.parts.base import Finding, Page, RunPart, Table
from baselines.study.runs import Subject
from baselines.study.tables import COLUMNS, ROUNDING, grouped, head_and_rows, protocol, sizes, verdict
from equilayers.metrics import saliency_invariance_similarity

EQUAL = 0.01  # of accuracy: what is called as accurate


class TablePart(RunPart):
    r"""Accuracy, LI, DI and SI of every method."""

    title = "Accuracy and invariance"
    claim = (
        "Weight tying is invariant and as accurate as augmentation; augmentation learns to classify moved images "
        "without becoming invariant; regularisation buys invariance with accuracy (Table 1)."
    )

    def measure(self, trained: Subject) -> Result:
        r"""One pass over the orbits of the test split; SI over its first samples, and those of the validation split."""
        run, model, data, group = trained.run, trained.model, trained.data, trained.group
        few, batches = slice(0, run.source.saliency_samples), BATCHES[run.model]
        splits = {"SI": data.test} | (
            {"validation_SI": data.validation} if run.recipe.nu else {}
        )  # what nu is tuned by
        how: dict[str, Any] = {"saliency": saliency_of(run.source, data), "batch_size": batches.saliency}
        similarities = {
            key: float(saliency_invariance_similarity(model, s.x[few], s.y[few], group, **how))
            for key, s in splits.items()
        }
        exact(model)
        logits = orbit_logits(model, data.test.x, group, batches.logits)
        return {**invariance(logits, data.test.y, group), **similarities}

    def page(self, results: list[Result]) -> Page:
        runs = grouped(results)
        rounding = ROUNDING[results[0]["model"]]
        means = {key: {name: fmean(run[name] for run in seeds) for name in COLUMNS} for key, seeds in runs.items()}
        findings = [
            Finding(f"{line}.", _claims(key, means, rounding)) for key, line in zip(runs, verdict(results), strict=True)
        ]
        caption = f"{protocol(results)} {sizes(results)}."
        return Page(findings, [Table(*head_and_rows(results), caption)])


Means = dict[tuple[str, str], dict[str, float]]


def _claims(key: tuple[str, str], means: Means, rounding: float) -> tuple[bool, ...]:
    r"""What the means of a group and method say of the claim, where there is something to compare with."""
    group, method = key
    mean, augmented = means[key], means.get((group, "DA"))
    if method == "WT":
        exact = max(mean["LI"], mean["DI"]) <= rounding
        return (exact, mean["accuracy"] > augmented["accuracy"] - EQUAL) if augmented else (exact,)
    if method == "DA":
        return (mean["LI"] > 0, mean["SI"] < SALIENCY_TARGET)
    if method == "IR" and augmented:
        return (mean["LI"] < augmented["LI"], mean["accuracy"] < augmented["accuracy"])
    return ()
