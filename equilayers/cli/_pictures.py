r"""The pictures of the page: what the model looks at over an orbit, and the error of every layer."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equilayers.cli._measure import QUICK
from equilayers.cli._subject import Subject
from equilayers.cli._words import EXTRA, clean, said
from equilayers.metrics import cosine, integrated_gradients_saliency
from equilayers.testing import LayerError

Pixels = NDArray[np.float64]
ROWS = 3  # samples whose orbits are shown
MOST = 8  # elements of an orbit that are shown
WIDTH, HEIGHT, LEFT, TOP, BELOW = 960, 300, 64, 16, 24  # of the plot, in pixels
NAMED = 40  # layers up to which each has its name below
LETTERS = 24  # of it
LOWEST, HIGHEST = -17, 0  # decades: below is 0


@dataclass(frozen=True)
class Turn:
    r"""One element of the orbit: the input, what the model looks at, both as PNG, and how alike that is to g = 0."""

    g: int
    image: str
    saliency: str
    similarity: float


@dataclass(frozen=True)
class Orbit:
    r"""One sample: the class that is explained, and its orbit."""

    sample: int
    target: int
    turns: list[Turn]


def orbits(subject: Subject) -> tuple[list[Orbit], str]:
    r"""Saliency over the orbits of the first samples, or why there is none."""
    if not subject.logits:
        return [], f"the output {tuple(subject.y.shape)} is no (B, K) of logits that stay"
    if subject.settings.quick:
        return [], QUICK
    try:
        import captum  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        return [], f"needs {error.name}, {EXTRA}"
    try:
        with subject.running():
            return [_orbit(subject, sample) for sample in range(min(ROWS, len(subject.x)))], ""
    except Exception as error:  # the page has more to show
        return [], clean(said(error))


def _orbit(subject: Subject, sample: int) -> Orbit:
    group, x = subject.group, subject.x[sample : sample + 1]
    target = subject.y[sample : sample + 1].argmax(1)
    moved = [group.act(g, x) for g in range(min(group.order, MOST))]
    maps = [integrated_gradients_saliency(subject, m, target, group) for m in moved]
    back = [group.act(group.inverse(g), m) for g, m in enumerate(maps)]
    turns = [
        Turn(g, _png(_picture(m[0])), _png(_glowing(m[0], s[0])), float(cosine(maps[0], b)))
        for g, (m, s, b) in enumerate(zip(moved, maps, back, strict=True))
    ]
    return Orbit(sample, int(target), turns)


def _picture(x: Tensor) -> Pixels:
    r"""An input (..., H, W), or (n,) as a strip, as colours 0..1 of (H, W, 3): grey, but for three channels."""
    x = _unit(x)
    if x.ndim == 3 and len(x) == 3:
        return x.movedim(0, -1).numpy()
    return _plane(x)[..., None].expand(-1, -1, 3).numpy()


def _glowing(x: Tensor, saliency: Tensor) -> Pixels:
    r"""Where the saliency is, over a faint picture of the input."""
    from matplotlib import colormaps

    faint = 0.3 * _picture(x).mean(-1, keepdims=True)
    return np.clip(faint + colormaps["inferno"](_plane(_unit(saliency)).numpy())[..., :3], 0, 1)


def _unit(x: Tensor) -> Tensor:
    x = x.detach().double().cpu()
    return (x - x.min()) / ((x.max() - x.min()) or 1.0)


def _plane(x: Tensor) -> Tensor:
    r"""(H, W): the mean over everything before."""
    return x[None] if x.ndim == 1 else x.reshape(-1, *x.shape[-2:]).mean(0)


def _png(pixels: Pixels) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels), format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Dot:
    r"""A layer in the plot."""

    x: float
    y: float
    name: str
    words: str
    lost: bool


@dataclass(frozen=True)
class Plot:
    r"""The error of every layer on a logarithmic scale, as coordinates; ticks: heights and what stands there."""

    width: float
    height: float
    left: float
    bottom: float
    dots: list[Dot]
    ticks: list[tuple[float, str]]
    named: bool


def plot(layers: Sequence[LayerError]) -> Plot:
    r"""Where each layer stands: in the order of the calls from left to right, with its error upwards."""
    named = len(layers) <= NAMED
    names = [_short(layer) for layer in layers]
    letters = max(map(len, names), default=0) if named else 0
    bottom = TOP + HEIGHT
    step = (WIDTH - LEFT) / max(1, len(layers))

    def up(error: float) -> float:
        decade = math.log10(error) if 0 < error < math.inf else (HIGHEST + 1 if error else LOWEST)
        return bottom - HEIGHT * (min(max(decade, LOWEST), HIGHEST + 1) - LOWEST) / (HIGHEST + 1 - LOWEST)

    dots = [
        Dot(
            round(LEFT + step * (number + 0.5), 1),
            round(up(layer.error), 1),
            name,
            clean(f"{layer.path or '(the model)'}: {layer.name}, error {layer.error:.3g}"),
            layer.lost,
        )
        for number, (layer, name) in enumerate(zip(layers, names, strict=True))
    ]
    ticks = [(round(up(10.0**decade), 1), f"1e{decade}") for decade in range(-15, 1, 5)]
    ticks = [(bottom, "0"), *((y, "1" if label == "1e0" else label) for y, label in ticks)]
    return Plot(WIDTH, bottom + BELOW + 6.2 * letters, LEFT, bottom, dots, ticks, named)


def _short(layer: LayerError) -> str:
    r"""Path and class, or the end of it."""
    name = clean(f"{layer.path} {layer.name}")
    return name if len(name) <= LETTERS else f"...{name[3 - LETTERS :]}"
