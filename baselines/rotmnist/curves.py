r"""How far the trained networks of `python -m baselines rotmnist` are from invariant, at every angle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.common.files import write
from baselines.rotmnist.models import build
from baselines.rotmnist.runs import Run, data_of, load_checkpoint
from equilayers.metrics import RotationErrorCurve, rotation_error_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANGLES, DIGITS = tuple(range(0, 181, 5)), 100
# Okabe and Ito's colours, which the colour-blind can tell apart, and a dash for each kind of network.
STYLES = {
    "Z2CNN": ("#D55E00", "-"),
    "P4CNN": ("#E69F00", "--"),
    "P4MCNN": ("#CC79A7", "--"),
    "C8": ("#56B4E9", "-."),
    "C16": ("#0072B2", "-."),
    "H-Net": ("#009E73", "-"),
}


def invariance_curves(runs: list[Run], out: Path) -> dict[str, RotationErrorCurve]:
    r"""The error of each network's logits on digits of the test set, from the weights kept in a folder."""
    found = {}
    for run in runs:
        path = out / f"{run.name}.pt"
        if run.model in found or not path.exists():
            continue
        model = build(run.model, run.seed)
        model.load_state_dict(load_checkpoint(path, run)["model"])
        found[run.model] = rotation_error_curve(model, data_of(run)[1].x[:DIGITS], ANGLES)
    return found


def save_figure(found: Mapping[str, RotationErrorCurve], path: Path) -> None:
    r"""Error against angle, of all networks."""
    write(path, partial(drawing(found).savefig, format="png"))


def drawing(found: Mapping[str, RotationErrorCurve]) -> Figure:
    r"""Error against angle; dotted, the floor of the test."""
    from baselines.study.parts.plots import figure

    made = figure(8, 4.4)
    axes = made.subplots()
    for name, curve in found.items():
        colour, dash = STYLES[name]
        axes.plot(curve.angles, curve.error, dash, color=colour, linewidth=1.8, label=name)
        axes.plot(curve.angles, curve.floor, ":", color=colour, linewidth=1)
    axes.set(xlabel="degrees", ylabel="relative change of the logits", xticks=range(0, 181, 45), ylim=(0, None))
    axes.set_title("A digit of the test set is turned; dotted: what interpolating it there and back does", fontsize=10)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return made
