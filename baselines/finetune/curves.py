r"""The picture of `python -m baselines finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from baselines.common.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, figure
from baselines.common.runner import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = {"plain": VERMILLION, "augmented": ORANGE, "converted": GREEN, "annealed": PURPLE, "scratch": SKY}
CURVES = {"softened": (BLUE, "o-", "softened, trained on"), "projected": ("#777777", "s--", "softened, not trained")}
FLOOR = 1e-8  # where errors of rounding alone are drawn


def drawing(results: Sequence[Result]) -> Figure:
    r"""Accuracy over the orbit, and on upright images, against the invariance error; the softness beside each point."""
    made = figure(11.5, 4.2)
    panels = made.subplots(1, 2, sharey=True)
    for panel, key, title in zip(
        panels, ("accuracy", "upright_accuracy"), ("moved test images", "upright test images"), strict=True
    ):
        for method, (colour, dash, label) in CURVES.items():
            found = sorted((r for r in results if r["method"] == method), key=lambda r: r["softness"])
            errors, accuracies = [max(FLOOR, r["LI_normalized"]) for r in found], [r[key] for r in found]
            panel.plot(errors, accuracies, dash, color=colour, label=label, markersize=4)
            for result, error, accuracy in zip(found, errors, accuracies, strict=True):
                panel.annotate(
                    f"{result['softness']:g}", (error, accuracy), (3, -10), textcoords="offset points", size=7
                )
        for method, colour in POINTS.items():
            found = [r for r in results if r["method"] == method]
            errors = [max(FLOOR, r["LI_normalized"]) for r in found]
            panel.plot(errors, [r[key] for r in found], "D", color=colour, label=method, markersize=7)
        panel.set(xscale="log", xlabel="normalised logit invariance error", title=title)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return made
