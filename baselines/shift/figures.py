r"""The figures of `python -m baselines shift`."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from baselines.common.figures import BLUE, GREEN, VERMILLION, figure
from baselines.common.runner import Result
from baselines.shift.models import KINDS
from baselines.shift.scenes import MOTIONS
from baselines.shift.tables import grouped
from baselines.shift.toy_signal import SIGNAL, shifted, toy_rows

Image = NDArray[np.float64]

COLOURS = {"max": VERMILLION, "blur": BLUE, "polyphase": GREEN}
DASHES = {"max": "-", "blur": "--", "polyphase": "-."}
TITLES = {"max": "max pooling", "blur": "max, blur pooling", "polyphase": "max, polyphase pooling"}
CLASSES = ListedColormap(
    ["#1A1A1A", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF", "#999999"]
)


def drawings(results: list[Result]) -> dict[str, Figure]:
    r"""All figures, by name."""
    detectors, segmentors = grouped(results, "detector"), grouped(results, "segmentor")
    drawn = toy(), accuracy(detectors), probability(detectors), segmentation(segmentors)
    return dict(zip(("toy", "accuracy", "probability", "segmentation"), drawn, strict=True))


def toy() -> Figure:
    r"""The toy signal and its shift, and what each pooling makes of them."""
    rows = toy_rows()
    made = figure(7, 5.6)
    axes = made.subplots(len(rows) + 1, 2, sharey=True)
    for column, (signal, title) in enumerate(((SIGNAL, "signal"), (shifted(), "shifted by one"))):
        _stems(axes[0, column], signal, 1, "#444444")
        axes[0, column].set_title(title)
    axes[0, 0].set_ylabel("input")
    for ax, row in zip(axes[1:], rows, strict=True):
        colour = COLOURS[row.pooling.split(",")[0]]
        _stems(ax[0], row.plain, 2, colour)
        _stems(ax[1], row.shifted, 2, colour)
        ax[0].set_ylabel(row.pooling.replace(", ", ",\n"))
        said = "the same up to a shift" if row.apart == 0 else f"{row.apart:g} apart"
        ax[1].text(1.02, 0.5, said, transform=ax[1].transAxes, va="center", fontsize=9, color=colour)
    return made


def _stems(ax: Axes, values: tuple[float, ...], step: int, colour: str) -> None:
    places = step * np.arange(len(values)) + (step - 1) / 2
    ax.bar(places, values, width=0.9 * step, color=colour)
    for place, value in zip(places, values, strict=True):
        ax.text(place, value + 0.04, f"{value:g}", ha="center", va="bottom", fontsize=8)
    ax.set(xlim=(-0.6, len(SIGNAL) - 0.4), ylim=(0, 1.35), xticks=[], yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)


def accuracy(detectors: dict[str, list[Result]]) -> Figure:
    r"""The accuracy at every shift, its least and largest in the titles: mean over the seeds."""
    maps = {
        (motion, kind): 100 * np.mean([run[motion]["accuracy_map"] for run in runs], axis=0)
        for kind, runs in detectors.items()
        for motion in MOTIONS
    }
    low = min(values.min() for values in maps.values())
    made = figure(8, 5.4)
    axes = made.subplots(len(MOTIONS), len(KINDS), sharex=True, sharey=True)
    for i, motion in enumerate(MOTIONS):
        for j, kind in enumerate(KINDS):
            values, ax = maps[motion, kind], axes[i, j]
            shown = ax.imshow(values, vmin=low, vmax=100, cmap="viridis", interpolation="nearest")
            ax.set_title(f"{TITLES[kind]}\n{values.min():.1f} to {values.max():.1f} %", fontsize=10)
        axes[i, 0].set_ylabel(f"{motion}\nshift down, pixels")
    for ax in axes[-1]:
        ax.set_xlabel("shift right, pixels")
    made.colorbar(shown, ax=axes, label="accuracy, %", shrink=0.8)
    return made


def probability(detectors: dict[str, list[Result]]) -> Figure:
    r"""The probability of the true class along diagonal shifts, of the scene where max pooling wobbles most."""
    made = figure(8, 3)
    axes = made.subplots(1, len(MOTIONS), sharey=True)
    for ax, motion in zip(axes, MOTIONS, strict=True):
        lines = {kind: np.array(runs[0][motion]["probability_diagonal"]) for kind, runs in detectors.items()}
        scene = int(np.ptp(lines["max"], axis=1).argmax())
        for kind, values in lines.items():
            ax.plot(values[scene], DASHES[kind], color=COLOURS[kind], label=TITLES[kind], marker="o", markersize=3)
        ax.set(title=f"{motion} shifts", xlabel="shift down and right, pixels", ylim=(-0.03, 1.03))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("probability of the true class")
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS), frameon=False)
    return made


def segmentation(segmentors: dict[str, list[Result]]) -> Figure:
    r"""A scene segmented as it is, and shifted by one pixel each way: the scene that max pooling changes most."""
    examples = {kind: runs[0]["examples"] for kind, runs in segmentors.items()}
    scene = max(range(len(examples["max"])), key=lambda i: int(_changed(examples["max"][i]).sum()))
    made = figure(8, 5.6)
    axes = made.subplots(len(KINDS), 4)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    first = examples["max"][scene]
    axes[0, 0].imshow(pixels(first["image"]), cmap="gray", vmin=0, vmax=15)
    axes[0, 0].set_title("scene", fontsize=10)
    axes[1, 0].set_title("true classes", fontsize=10)
    _classes(axes[1, 0], first["truth"])
    axes[2, 0].set_axis_off()
    for i, kind in enumerate(KINDS):
        example = examples[kind][scene]
        _classes(axes[i, 1], example["found"])
        _classes(axes[i, 2], example["found_shifted"])
        changed = _changed(example)
        axes[i, 3].imshow(changed, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes[i, 3].set_title(f"{int(changed.sum())} pixels changed", fontsize=10)
        axes[i, 1].set_title(f"{TITLES[kind]}", fontsize=10)
        axes[i, 2].set_title("shifted, and back", fontsize=10)
    return made


def pixels(rows: list[str]) -> Image:
    r"""Rows of hexadecimal digits as numbers."""
    return np.array([[int(value, 16) for value in row] for row in rows], dtype=np.float64)


def _changed(example: dict[str, list[str]]) -> Image:
    return (pixels(example["found"]) != pixels(example["found_shifted"])).astype(np.float64)


def _classes(ax: Axes, rows: list[str]) -> None:
    ax.imshow(pixels(rows), cmap=CLASSES, vmin=-0.5, vmax=9.5, interpolation="nearest")
