r"""The pictures of the page: what the model looks at over an orbit, and the error of every layer."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equilayers._files import Html, tag
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


def orbits(subject: Subject) -> tuple[list[Html], str]:
    r"""Saliency over the orbits of the first samples, or why there is none."""
    if subject.several:
        return [], subject.several
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
            samples = range(min(ROWS, len(subject.x)))
            return [piece for sample in samples for piece in _orbit(subject, sample)], ""
    except Exception as error:  # the page has more to show
        return [], clean(said(error))


def _orbit(subject: Subject, sample: int) -> tuple[Html, Html]:
    r"""The orbit of one sample: the inputs, what the model looks at, and how alike that is to g = 0."""
    group, x = subject.group, subject.x[sample : sample + 1]
    target = subject.y[sample : sample + 1].argmax(1)
    moved = [group.act(g, x) for g in range(min(group.order, MOST))]
    maps = [integrated_gradients_saliency(subject, m, target, group) for m in moved]
    back = [group.act(group.inverse(g), m) for g, m in enumerate(maps)]
    figures = []
    for g, (m, s, b) in enumerate(zip(moved, maps, back, strict=True)):
        images = _png(_picture(m[0]), f"input moved by g = {g}"), _png(_glowing(m[0], s[0]), "its saliency")
        figures.append(tag("figure", *images, tag("figcaption", f"g = {g}, SI {float(cosine(maps[0], b)):.2f}")))
    note = tag("p", f"Sample {sample}, class {int(target)}", class_="note")
    return note, tag("div", *figures, class_="orbit")


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


def _png(pixels: Pixels, words: str) -> Html:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels), format="png")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Html(f'<img src="data:image/png;base64,{data}" alt="{words}">')


def plot(layers: Sequence[LayerError]) -> Html:
    r"""The error of every layer on a logarithmic scale, in the order of the calls from left to right."""
    named, bottom = len(layers) <= NAMED, TOP + HEIGHT
    names = [_short(layer) for layer in layers]
    step = (WIDTH - LEFT) / max(1, len(layers))

    def up(error: float) -> float:
        decade = math.log10(error) if 0 < error < math.inf else (HIGHEST + 1 if error else LOWEST)
        height = HEIGHT * (min(max(decade, LOWEST), HIGHEST + 1) - LOWEST) / (HIGHEST + 1 - LOWEST)
        return round(bottom - height, 1)

    ticks = [(float(bottom), "0"), *((up(10.0**decade), f"1e{decade}") for decade in range(-15, 0, 5)), (up(1.0), "1")]
    drawn = []
    for y, label in ticks:
        drawn.append(tag("line", x1=LEFT, x2=WIDTH, y1=y, y2=y, stroke="#d8dee4"))
        drawn.append(tag("text", label, x=LEFT - 8, y=y + 4, text_anchor="end"))
    places = [(round(LEFT + step * (number + 0.5), 1), up(layer.error)) for number, layer in enumerate(layers)]
    points = " ".join(f"{x},{y}" for x, y in places)
    drawn.append(tag("polyline", fill="none", stroke="#8c959f", stroke_width=1.2, points=points))
    for (x, y), layer, name in zip(places, layers, names, strict=True):
        words = clean(f"{layer.path or '(the model)'}: {layer.name}, error {layer.error:.3g}")
        radius, colour = (7, "#a40e26") if layer.lost else (4, "#0969da")
        drawn.append(tag("circle", tag("title", words), cx=x, cy=y, r=radius, fill=colour))
        if named:
            turn = f"rotate(-60 {x} {bottom + 12})"
            how = {"class_": "lost" if layer.lost else None, "text_anchor": "end", "transform": turn}
            drawn.append(tag("text", name, x=x, y=bottom + 16, **how))
    height = bottom + BELOW + 6.2 * (max(map(len, names), default=0) if named else 0)
    label = "error of every layer, on a logarithmic scale"
    return tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label)


def _short(layer: LayerError) -> str:
    r"""Path and class, or the end of it."""
    name = clean(f"{layer.path} {layer.name}")
    return name if len(name) <= LETTERS else f"...{name[3 - LETTERS :]}"
