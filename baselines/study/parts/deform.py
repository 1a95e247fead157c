r"""Stability to deformations: how far three convolutional networks are moved by warped images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from baselines.common.runner import Advance, Result, nested_results
from baselines.study.deform import MODELS, drawing, head_and_rows, jobs_of
from baselines.study.parts.base import Finding, Page, Picture, StandalonePart, Table
from baselines.study.protocols import PROTOCOLS

if TYPE_CHECKING:
    from baselines.study.config import Plan

BOUNDED = 2.0  # distance by size, at the smallest deformation by that at the next: no sudden step at nothing


class DeformPart(StandalonePart):
    r"""The distance of the logits over the size of the deformation."""

    title = "Stability to deformations"
    claim = "Convolutional networks move little when the image is warped a little, no more than a constant times it."

    def steps(self, plan: Plan) -> int:  # noqa: ARG002
        return len(MODELS)

    def results(self, plan: Plan, out: Path, advance: Advance, *, resume: bool) -> list[Result]:
        own = PROTOCOLS["cnn", plan.source.data].recipe.epochs
        epochs = min(plan.epochs or own, own)
        jobs = jobs_of(plan.source.data, plan.source.data_dir, epochs, out)
        results = nested_results(jobs, advance, resume=resume)
        return [{"network": name, **result} for name, result in zip(MODELS, results, strict=True)]

    def page(self, results: list[Result]) -> Page:
        findings = []
        for result in results:
            factors = [d / size for size, d in zip(result["gradient_norm"], result["distance"], strict=True) if size]
            text = (
                f"{result['network']}: the logits move by {min(factors):.2g} to {max(factors):.2g} times the largest "
                f"gradient of the displacement, {factors[0]:.2g} times at the smallest."
            )
            findings.append(Finding(text[0].upper() + text[1:], (factors[0] < BOUNDED * factors[1],)))
        networks = {result["network"]: result for result in results}
        caption = "Relative distance of the logits, for each largest gradient of the displacement."
        picture = Picture("deform", drawing(networks), caption)
        return Page(findings, [Table(*head_and_rows(networks), caption)], [picture])
