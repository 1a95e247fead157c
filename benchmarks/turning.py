r"""Feature maps of a plain and of a harmonic network under rotations of a digit: a strip, and an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.data import load_dataset
from baselines.common.figures import figure as new_figure
from baselines.common.files import write
from equilayers.functional import rotate
from equilayers.nn import HarmonicBatchNorm, HarmonicConv2d, HarmonicMagnitude, HarmonicNonlinearity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, CHANNELS = 49, 6
ROWS = ("the digit", "nn.Conv2d", "turned back", "harmonic,\nmagnitude", "turned back")


class Frame(NamedTuple):
    r"""Five pictures of one angle, as in `ROWS`."""

    degrees: float
    pictures: tuple[Tensor, ...]


def frames(angles: list[float]) -> list[Frame]:
    r"""One channel of either network, as it comes out and rotated back by the angle."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        plain, harmonic = _plain().eval(), _harmonic().eval()
        digit = _digit()
        found = []
        for a in angles:
            x = rotate(digit, a, "bicubic")
            p, h = plain(x)[:, :1], harmonic(x)[:, 1:2]  # of the harmonic one order 1
            pictures = (x, p, rotate(p, -a, "bicubic"), h, rotate(h, -a, "bicubic"))
            found.append(Frame(a, tuple(picture[0, 0] for picture in pictures)))
        return found


def strip() -> Figure:
    r"""The frames side by side."""
    shown = frames([float(a) for a in range(0, 100, 15)])
    figure = new_figure(1.35 * len(shown) + 1, 1.35 * len(ROWS), None)
    axes = figure.subplots(len(ROWS), len(shown))
    for column, frame in enumerate(shown):
        axes[0, column].set_title(f"{frame.degrees:.0f}°", fontsize=10)
        for row, (place, picture) in enumerate(zip(axes[:, column], frame.pictures, strict=True)):
            _show(place, picture, row, shown)
    for row, name in enumerate(ROWS):
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    return figure


def animation(path: Path) -> str:
    r"""The frames one after the other, all the way around, as a GIF; where it is."""
    from matplotlib.animation import PillowWriter

    shown = frames([float(a) for a in range(0, 360, 6)])
    figure = new_figure(8, 2, None)
    axes = figure.subplots(1, len(ROWS))
    images = [
        _show(place, picture, row, shown)
        for row, (place, picture) in enumerate(zip(axes, shown[0].pictures, strict=True))
    ]
    for place, name in zip(axes, ROWS, strict=True):
        place.set_title(name.replace("\n", " "), fontsize=9)

    def save(temporary: Path) -> None:
        writer = PillowWriter(fps=15)
        writer.setup(figure, str(temporary.with_suffix(".gif")), dpi=80)
        for frame in shown:
            for image, picture in zip(images, frame.pictures, strict=True):
                image.set_data(picture.numpy())
            writer.grab_frame()
        writer.finish()
        temporary.with_suffix(".gif").rename(temporary)

    write(path, save)
    return str(path)


def _plain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, CHANNELS, 7, padding=3), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3), nn.ReLU())
    )


def _harmonic() -> nn.Sequential:
    return nn.Sequential(
        *(HarmonicConv2d(1, CHANNELS, 7, None, 1, padding=3), HarmonicBatchNorm(CHANNELS, 1)),
        *(HarmonicNonlinearity(CHANNELS, 1), HarmonicConv2d(CHANNELS, CHANNELS, 7, 1, 1, padding=3)),
        HarmonicMagnitude(),
    )


def _digit() -> Tensor:
    r"""A 4 of scikit-learn's, large and with room around it to turn."""
    train = load_dataset("digits").train
    digit = train.x[(train.y == 4).nonzero()[0]][:, :, 2:-2, 2:-2]
    large = F.interpolate(digit - digit.min(), size=(29, 29), mode="bicubic").clamp(min=0)
    room = (SIDE - 29) // 2
    return F.pad(large / large.max(), [room] * 4)


def _show(place: Any, picture: Tensor, row: int, shown: list[Frame]) -> Any:
    largest = max(float(frame.pictures[row].abs().max()) for frame in shown)
    place.set(xticks=[], yticks=[])
    colours = "gray_r" if row == 0 else "magma"
    return place.imshow(picture.numpy(), cmap=colours, vmin=0.0, vmax=largest)
