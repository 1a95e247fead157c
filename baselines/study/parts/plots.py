r"""Colours, dashes and markers of the methods, and images packed into JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.common.figures import BLUE, GREEN, VERMILLION
from baselines.common.runner import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"WT": GREEN, "DA": VERMILLION, "IR": BLUE, "UP": "#999999"}
DASHES = {"WT": "-.", "DA": "-", "IR": "--", "UP": ":"}
MARKERS = {"WT": "s", "DA": "o", "IR": "^", "UP": "x"}
NAMES = {"WT": "weight tying", "DA": "augmentation", "IR": "regularisation", "UP": "upright training"}


def band(ax: Axes, x: Sequence[float], values: NDArray[np.float64], method: str) -> None:
    r"""The mean of values (seeds, points) over seeds, and from the least to the largest of them."""
    colour = COLOURS[method]
    ax.plot(x, values.mean(0), DASHES[method], color=colour, marker=MARKERS[method], markersize=4, label=NAMES[method])
    ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


Packed = dict[str, Any]


def packed(image: Tensor) -> Packed:
    r"""An image (H, W) as JSON: bytes between the least and the largest value, as text."""
    low, high = float(image.min()), float(image.max())
    scaled = (image - low) / (high - low) if high > low else torch.zeros_like(image)
    pixels = (255 * scaled).round().to(torch.uint8)
    data = base64.b64encode(pixels.contiguous().numpy().tobytes()).decode()
    return {"shape": list(image.shape), "low": low, "high": high, "pixels": data}


def unpacked(image: Packed) -> NDArray[np.float64]:
    r"""The image (H, W) that was packed, up to a 255th of its range."""
    pixels = np.frombuffer(base64.b64decode(image["pixels"]), np.uint8).reshape(image["shape"])
    return image["low"] + (image["high"] - image["low"]) * (pixels / 255)


def drawn(runs: dict[tuple[str, str], list[Result]], group: str, key: str) -> dict[str, Any]:
    r"""What was kept under `key` of a group's networks to be drawn, by method."""
    return {method: run[key] for (name, method), seeds in runs.items() for run in seeds if name == group and key in run}


def bare(ax: Axes) -> None:
    r"""No ticks and no frame: for pictures."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
