r"""Stability to deformations: how far three convolutional networks are moved by warped images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from baselines.common.workers import Advance
from baselines.study.deform import MODELS, carry_out, drawing
from baselines.study.parts.base import AlonePart, Finding, Page, Picture, Table
from baselines.study.protocols import PROTOCOLS
from baselines.study.runs import Result

if TYPE_CHECKING:
    from baselines.study.config import Plan

BOUNDED = 2.0  # distance by size, at the smallest deformation by that at the next: no sudden step at nothing


class DeformPart(AlonePart):
    r"""The distance of the logits over the size of the deformation."""

    title = "Stability to deformations"
    claim = "Convolutional networks move little when the image is warped a little, no more than a constant times it."

    def steps(self, plan: Plan) -> int:  # noqa: ARG002
        return len(MODELS)

    def alone(self, plan: Plan, out: Path, advance: Advance, *, resume: bool) -> list[Result]:
        own = PROTOCOLS["cnn", plan.source.data].recipe.epochs
        epochs = min(plan.epochs or own, own)
        results = carry_out(plan.source.data, plan.source.data_dir, epochs, out, advance, resume=resume)
        return [{"network": name, **result} for name, result in results.items()]

    def show(self, results: list[Result]) -> Page:
        findings, rows = [], []
        for result in results:
            factors = [d / size for size, d in zip(result["gradient_norm"], result["distance"], strict=True) if size]
            text = (
                f"{result['network']}: the logits move by {min(factors):.2g} to {max(factors):.2g} times the largest "
                f"gradient of the displacement, {factors[0]:.2g} times at the smallest."
            )
            findings.append(Finding(text[0].upper() + text[1:], (factors[0] < BOUNDED * factors[1],)))
            rows.append(
                [result["network"], f"{100 * result['accuracy']:.1f}", *(f"{d:.3f}" for d in result["distance"])]
            )
        floor = results[0]["interpolation_floor"]
        rows.append(["interpolation, of the image", "", *(f"{value:.3f}" for value in floor)])
        head = ("network", "accuracy %", *(f"{size:.2f}" for size in results[0]["gradient_norm"]))
        caption = "Relative distance of the logits, for each largest gradient of the displacement."
        picture = Picture("deform", drawing({r["network"]: r for r in results}), caption)
        return Page(findings, [Table(head, rows, caption)], [picture])
