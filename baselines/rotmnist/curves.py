r"""Invariance error of the networks of `python -m baselines rotmnist` over the rotation angle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.common.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, figure
from baselines.common.runner import load_checkpoint
from baselines.rotmnist.models import build
from baselines.rotmnist.runs import Run, digits_of
from equilayers.metrics import RotationErrorCurve, rotation_error_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANGLES, DIGITS = tuple(range(0, 181, 5)), 100
STYLES = {
    "Z2CNN": (VERMILLION, "-"),
    "P4CNN": (ORANGE, "--"),
    "P4MCNN": (PURPLE, "--"),
    "C8": (SKY, "-."),
    "C16": (BLUE, "-."),
    "H-Net": (GREEN, "-"),
}


def invariance_curves(runs: list[Run], out: Path) -> dict[str, RotationErrorCurve]:
    r"""The error of each network's logits on digits of the test set, from the weights kept in a folder."""
    found = {}
    for run in runs:
        path = out / f"{run.name}.pt"
        if run.model in found or not path.exists():
            continue
        model = build(run.model, run.seed)
        model.load_state_dict(load_checkpoint("rotmnist", path, run.settings())["model"])
        _, test = digits_of(run.data_dir, run.validate)
        found[run.model] = rotation_error_curve(model, test.x[:DIGITS], ANGLES)
    return found


def drawing(found: Mapping[str, RotationErrorCurve]) -> Figure:
    r"""Error against angle; dotted, the floor of the test."""
    made = figure(8, 4.4)
    axes = made.subplots()
    for name, curve in found.items():
        colour, dash = STYLES[name]
        axes.plot(curve.angles, curve.error, dash, color=colour, linewidth=1.8, label=name)
        axes.plot(curve.angles, curve.floor, ":", color=colour, linewidth=1)
    axes.set(xlabel="degrees", ylabel="relative change of the logits", xticks=range(0, 181, 45), ylim=(0, None))
    axes.set_title("A digit of the test set is rotated; dotted: what interpolating it there and back does", fontsize=10)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return made
