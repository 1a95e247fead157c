r"""The pictures of the documentation: features, layers and predictions under a quarter turn.

Nothing is timed, and every picture is the same at every call on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.data import load_dataset
from baselines.common.figures import BLUE, ORANGE, VERMILLION, save
from baselines.common.figures import figure as new_figure
from baselines.common.files import writable_folder
from baselines.study.models import cnn, weight_tied_cnn
from benchmarks import rotations, turning
from equilayers.groups import CyclicRotation
from equilayers.nn import (
    GroupConv2d,
    InvariantAvgPool2d,
    LiftingConv2d,
    MaxBlurPool2d,
    OrbitPool,
    VectorHead,
    VectorLiftingConv2d,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUP = CyclicRotation(4)
PLAIN, LOPSIDED, TIED = VERMILLION, ORANGE, BLUE
INK = "#1f2a37"


def lines(out: Path, names: Sequence[str] = ()) -> Iterator[str]:
    r"""Draw the pictures of these names, or all, into the folder, and say where they are."""
    folder = writable_folder(out)
    for name in names or DRAWINGS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            figure = DRAWINGS[name]()
        path = folder / f"{name}.png"
        save(figure, path, dpi=150, metadata={"Software": None})
        yield str(path)
    if not names:
        yield turning.animation(folder / "turning.gif")


def features() -> Figure:
    r"""One channel of a plain network and one field of a tied one, for a digit and its quarter turn."""
    x = F.interpolate(_digit(), size=(24, 24), mode="bilinear")
    plain = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    tied = nn.Sequential(
        LiftingConv2d(GROUP, 1, 8, 5, padding=2, algorithm="bitwise"),
        nn.ReLU(),
        GroupConv2d(GROUP, 8, 1, 3, padding=1, algorithm="bitwise"),
    )
    turned = GROUP.act(1, x)
    with torch.no_grad():
        p, pg, t, tg = plain(x)[0], plain(turned)[0], tied(x), tied(turned)
    moved = GROUP.act_regular(1, t)[0, 0]
    t, tg = t[0, 0], tg[0, 0]
    rows = [
        ("x", [x[0], p, *t]),
        ("x, turned", [turned[0], pg, *tg]),
        ("the second\nless the first,\nmoved along", [None, pg - GROUP.act(1, p), *(tg - moved)]),
    ]
    titles = ["input", "nn.Conv2d", *(f"GroupConv2d,\nplane {h}" for h in range(4))]
    return _grid(rows, titles)


def _grid(rows: list[tuple[str, list[Tensor | None]]], titles: list[str]) -> Figure:
    figure = new_figure(9, 4.9, None)
    axes = figure.subplots(len(rows), len(titles))
    for column, title in enumerate(titles):
        shown = [row[1][column] for row in rows]
        largest = _largest(shown)
        for place, image, (label, _) in zip(axes[:, column], shown, rows, strict=True):
            place.set(xticks=[], yticks=[])
            place.spines[:].set(color="#c8ccd2", linewidth=0.8)
            if column == 0:
                place.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10, color=INK)
            if image is None:
                place.spines[:].set_visible(False)
                continue
            colours = "gray_r" if column == 0 else "RdBu"
            low = 0.0 if column == 0 else -largest
            place.imshow(image.squeeze(0).numpy(), cmap=colours, vmin=low, vmax=largest)
        axes[0, column].set_title(title, fontsize=10, color=INK)
        last = shown[-1]
        if last is not None:
            size = float(last.abs().max())
            text = "0, exactly" if size == 0 else f"up to {size / _largest(shown[:-1]):.1f} of\nthe largest feature"
            axes[-1, column].set_xlabel(text, fontsize=9, color=INK)
    return figure


def _largest(images: list[Tensor | None]) -> float:
    return max(float(image.abs().max()) for image in images if image is not None)


def lost() -> Figure:
    r"""How far each layer of three networks is from following a quarter turn."""
    x = F.pad(F.interpolate(_digit(), size=(29, 29), mode="bilinear"), (3, 3, 3, 3)).double()
    curves = {name: _errors(model.double().eval(), x) for name, model in _networks().items()}
    figure = new_figure(8, 4.4, None)
    place = figure.subplots()
    first = ["input", "convolution", "ReLU", "pool by 2", "convolution", "ReLU"]
    steps = [*first, "mean over\nthe map", "fibers", "linear"]
    for (name, errors), colour, marker in zip(curves.items(), (PLAIN, LOPSIDED, TIED), "os^", strict=True):
        drawn = [max(error, FLOOR) for error in errors]
        place.plot(range(len(drawn)), drawn, marker=marker, color=colour, label=name, linewidth=1.8, markersize=5)
    place.set_yscale("log")
    place.set_ylim(FLOOR / 3, 10)
    place.set_yticks([FLOOR, 1e-6, 1e-4, 1e-2, 1], ["0", "$10^{-6}$", "$10^{-4}$", "0.01", "1"])
    place.minorticks_off()
    place.set_xticks(range(len(steps)), steps, rotation=30, ha="right", fontsize=9)
    place.set_ylabel("relative error after the layer")
    place.grid(axis="y", alpha=0.25)
    place.spines[["top", "right"]].set_visible(False)
    place.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=9)
    return figure


def flows() -> Figure:
    r"""A flow, what two untrained networks make of it, and the same of the flow turned by a quarter."""
    places = torch.linspace(-1, 1, 12)
    down, right = torch.meshgrid(places, places, indexing="ij")
    field = torch.stack((0.8 - down, (2 * right).sin()))[None, None] * (1.2 - right**2 - down**2 / 2)
    plain = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    tied = nn.Sequential(
        VectorLiftingConv2d(GROUP, 1, 8, 3, padding=1, algorithm="bitwise"),
        *(nn.ReLU(), GroupConv2d(GROUP, 8, 8, 3, padding=1, algorithm="bitwise"), nn.ReLU(), VectorHead(GROUP, 8, 1)),
    )
    turned = GROUP.act_vectors(1, field)
    with torch.no_grad():
        p, pg = (plain(v[:, 0])[:, None] for v in (field, turned))
        t, tg = tied(field), tied(turned)
    rows: list[tuple[str, list[Tensor | None]]] = [
        ("a flow", [field, p, t]),
        ("the flow, turned", [turned, pg, tg]),
        ("the second\nless the first,\nturned", [None, pg - GROUP.act_vectors(1, p), tg - GROUP.act_vectors(1, t)]),
    ]
    figure = new_figure(7, 7, None)
    axes = figure.subplots(3, 3)
    for place, (label, _) in zip(axes[:, 0], rows, strict=True):
        place.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10, color=INK)
    for column, title in enumerate(["input", "nn.Conv2d", "VectorLiftingConv2d\nto VectorHead"]):
        axes[0, column].set_title(title, fontsize=10, color=INK)
        shown = [row[column] for _, row in rows]
        for place, vectors in zip(axes[:, column], shown, strict=True):
            place.set(xticks=[], yticks=[], aspect="equal")
            place.spines[:].set(color="#c8ccd2", linewidth=0.8, visible=vectors is not None)
            if vectors is not None:
                u, v = vectors[0, 0].flip(1).numpy()  # rows of arrows run upwards
                place.quiver(u, v, color=(INK, PLAIN, TIED)[column], scale=14 * _largest(shown[:2]), width=0.008)
        exact = shown[-1] is not None and not bool(shown[-1].any())
        axes[-1, column].set_xlabel("0, exactly" if exact else "", fontsize=9, color=INK)
    return figure


FLOOR = 1e-8  # where an error of exactly zero is drawn


def _networks() -> dict[str, nn.Sequential]:
    r"""A plain network and two tied ones, alike but for how they subsample; each has eight layers."""
    plain = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), InvariantAvgPool2d(), nn.Identity(), nn.Linear(16, 9)),
    )

    def tied(pool: nn.Module) -> nn.Sequential:
        first = LiftingConv2d(GROUP, 1, 4, 3, padding=1, algorithm="bitwise")
        second = GroupConv2d(GROUP, 4, 16, 3, padding=1, algorithm="bitwise")
        head = InvariantAvgPool2d(), OrbitPool("max"), nn.Linear(16, 9)
        return nn.Sequential(first, nn.ReLU(), pool, second, nn.ReLU(), *head)

    return {
        "nn.Conv2d": plain,
        "group convolutions, MaxPool: 35 pixels by 2 is lopsided": tied(nn.MaxPool3d((1, 2, 2))),
        "group convolutions, MaxBlurPool2d": tied(MaxBlurPool2d()),
    }


@torch.no_grad()
def _errors(model: nn.Sequential, x: Tensor) -> list[float]:
    r"""The relative error under a quarter turn of the input and of what comes out of each layer."""
    y, moved, found = x, GROUP.act(1, x), [0.0]
    for layer in model:
        y, moved = layer(y), layer(moved)
        expected = _moved(y)
        found.append(float((moved - expected).abs().max() / y.abs().max()))
    return found


def _moved(y: Tensor) -> Tensor:
    r"""What y should be for the turned input: a feature with a fiber, an image, or numbers that stay."""
    if y.ndim in (3, 5):
        return GROUP.act_regular(1, y)
    return GROUP.act(1, y) if y.ndim == 4 else y


def predictions() -> Figure:
    r"""What two networks trained on upright digits say of one digit in its four orientations."""
    data = load_dataset("digits")
    shape, classes = tuple(data.train.x.shape[1:]), data.num_classes
    networks = {"nn.Conv2d": cnn(shape, classes), "weight-tied": weight_tied_cnn(GROUP, shape, classes)}
    for model in networks.values():
        _train(model, data.train.x, data.train.y)
    x = data.test.x[data.test.y == 7][:1]
    orbit = GROUP.orbit(x)[:, 0]
    figure = new_figure(7.5, 3.9, None)
    axes = figure.subplots(3, 4, height_ratios=(1.25, 1, 1))
    for g, place in enumerate(axes[0]):
        place.imshow(orbit[g, 0].numpy(), cmap="gray_r")
        place.axis("off")
    for row, (name, model), colour in zip(axes[1:], networks.items(), (PLAIN, TIED), strict=True):
        with torch.no_grad():
            probabilities = model(orbit).softmax(1)
        for place, p in zip(row, probabilities, strict=True):
            place.bar(range(classes), p.numpy(), color=colour)
            place.set(ylim=(0, 1.05), yticks=[], xticks=range(classes))
            place.tick_params(labelsize=8, length=0)
            place.spines[["top", "right", "left"]].set_visible(False)
            place.set_title(f"{int(p.argmax())}, {100 * float(p.max()):.0f} %", fontsize=9, color=INK)
        row[0].set_ylabel(name, fontsize=10, color=INK)
    return figure


def _train(model: nn.Module, x: Tensor, y: Tensor, epochs: int = 12) -> None:
    r"""Adam on the samples as they are."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(100):
            loss = F.cross_entropy(model(x[index]), y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()


def _digit() -> Tensor:
    r"""A handwritten four, (1, 1, 8, 8), in 0..1."""
    data = load_dataset("digits")
    x = data.test.x[data.test.y == 4][:1, :, 2:-2, 2:-2]
    return (x - x.min()) / (x.max() - x.min())


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "turned-features": features,
    "lost": lost,
    "turned-flow": flows,
    "turned-predictions": predictions,
    "rotation-errors": rotations.error_figure,
    "turning": turning.strip,
}
