r"""Learning curves of `python -m baselines vit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from baselines.common.figures import BLUE, GREEN, ORANGE, VERMILLION, figure
from baselines.common.runner import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "plain": (VERMILLION, ":"),
    "augmented": (ORANGE, "--"),
    "C4": (BLUE, "-."),
    "D4": (GREEN, "-"),
}


def drawing(found: Mapping[str, Sequence[Result]]) -> Figure:
    r"""Accuracy on turned test images: a row for each data set, a column for what is equal, steps or time."""
    data = list(dict.fromkeys(result["data"] for results in found.values() for result in results))
    made = figure(4.6 * len(found) + 1.4, 3.2 * len(data))
    axes = made.subplots(len(data), len(found), squeeze=False)
    for column, (equal, results) in enumerate(found.items()):
        for result in results:
            panel = axes[data.index(result["data"]), column]
            steps, seconds, accuracy = zip(*result["curve"], strict=True)
            colour, dash = STYLES[result["method"]]
            label = result["method"] if result["seed"] == 0 else None
            panel.plot(steps if equal == "steps" else seconds, accuracy, dash, color=colour, linewidth=1.8, label=label)
            panel.set_title(f"{result['data']}, equal {equal}", fontsize=10)
            panel.set(xlabel="steps" if equal == "steps" else "seconds on one core", ylabel="accuracy", xlim=(0, None))
    axes[0, -1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return made
