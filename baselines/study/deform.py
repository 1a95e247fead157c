r"""Stability to deformations: how far the logits of three networks move when the image is warped, against how much."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from baselines.common.data import DATASETS, Dataset, load_dataset
from baselines.common.files import read_json, writable_folder, write, write_json, write_text
from baselines.common.terminal import positive
from baselines.study.models import PLANES, cnn, parameters, weight_tied_cnn
from baselines.study.protocols import PROTOCOLS
from baselines.study.training import Recipe, accuracy, train
from equilayers.groups import CyclicRotation
from equilayers.metrics import deformation_stability
from equilayers.nn import BlurConv2d, MaxBlurPool2d

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1  # of a network's file
GROUP = CyclicRotation(4)
MODELS = ("max pooling", "blur pooling", "weight tying")
MAGNITUDES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
SAMPLES = 200
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines deform`."""
    parser.add_argument("--data", choices=DATASETS, default="digits", help="data set (default: digits, built in)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the idx files; else EQUILAYERS_DATA")
    parser.add_argument(
        "--epochs", type=positive, help="passes over the training split (default: the study's for a CNN)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/deform"), help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="keep the finished networks found in --out")


def main(args: argparse.Namespace) -> None:
    r"""Train the three, warp test images, and leave deform.json, deform.md and deform.png in the folder."""
    console = Console()
    out = writable_folder(args.out, "deform")
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training and warping", total=len(MODELS))
        results = carry_out(
            args.data, args.data_dir, args.epochs, out, lambda n: progress.update(bar, completed=n), resume=args.resume
        )
    epochs = next(iter(results.values()))["epochs"]
    write_json(out / "deform.json", {"data": args.data, "epochs": epochs, "models": results})
    write_text(out / "deform.md", table(results))
    drawn = drawing(results)
    write(out / "deform.png", partial(drawn.savefig, format="png"))
    console.print(table(results), markup=False, highlight=False, soft_wrap=True)
    console.print(f"deform.json, deform.md and deform.png are in {out}")


def carry_out(
    name: str, data_dir: str | None, epochs: int | None, out: Path, advance: Callable[[int], object], *, resume: bool
) -> dict[str, Result]:
    r"""What is measured of each of MODELS on a data set; each is kept in `out` when it is done."""
    recipe = PROTOCOLS["cnn", name].recipe
    recipe = replace(recipe, epochs=epochs or recipe.epochs, augment=False)
    settings = {"data": name, "epochs": recipe.epochs, "magnitudes": list(MAGNITUDES), "samples": SAMPLES}
    settings |= {"format": FORMAT, "torch": torch.__version__.split("+")[0]}
    results = {}
    data = None
    for number, model_name in enumerate(MODELS):
        path = out / f"{model_name.replace(' ', '-')}.json"
        known = read_json(path) if resume and path.exists() else {}
        if {key: known.get(key) for key in settings} != settings:
            data = data or load_dataset(name, data_dir=data_dir)
            known = {**settings, **_measured(model_name, data, recipe)}
            write_json(path, known)
        results[model_name] = known
        advance(number + 1)
    return results


def _measured(name: str, data: Dataset, recipe: Recipe) -> Result:
    torch.manual_seed(0)
    model = build(name, data)
    train(model, data, GROUP, recipe, seed=0)
    curve = deformation_stability(model, data.test.x[:SAMPLES], magnitudes=MAGNITUDES)
    return {
        "parameters": parameters(model),
        "accuracy": accuracy(model, data.test.x, data.test.y),
        **{key: value.tolist() for key, value in curve._asdict().items()},
    }


def build(name: str, data: Dataset) -> nn.Module:
    r"""One of MODELS, of equal width: plain, with anti-aliased subsampling, or tied under quarter turns."""
    in_shape, classes = tuple(data.train.x.shape[1:]), data.num_classes
    if name == "weight tying":
        return weight_tied_cnn(GROUP, in_shape, classes)
    model = cnn(in_shape, classes)
    if name == "blur pooling":
        norm = nn.Sequential(nn.BatchNorm2d(PLANES[0]), nn.ReLU())
        blurred = BlurConv2d(
            in_shape[0], PLANES[0], 5, padding=2, bias=False, activation=norm, conv_padding_mode="zeros"
        )
        model = nn.Sequential(blurred, MaxBlurPool2d(), *list(model)[4:])
    return model


def table(results: dict[str, Any]) -> str:
    r"""The distances in Markdown; the last row is what the warp itself loses."""
    first = next(iter(results.values()))
    lines = [f"| sup of the gradient | accuracy % | {' | '.join(f'{m:.2f}' for m in first['gradient_norm'])} |"]
    lines += [f"|{'---|' * (len(first['gradient_norm']) + 2)}"]
    for name, result in results.items():
        cells = " | ".join(f"{distance:.3f}" for distance in result["distance"])
        lines += [f"| {name} | {100 * result['accuracy']:.1f} | {cells} |"]
    floor = " | ".join(f"{value:.3f}" for value in first["interpolation_floor"])
    return "\n".join([*lines, f"| interpolation, of the image | – | {floor} |"]) + "\n"


def drawing(results: dict[str, Any]) -> Figure:
    r"""The curves with their quartiles, and the interpolation floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((7, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ("#D55E00", "#0072B2", "#009E73")
    for (name, result), colour, dash in zip(results.items(), colours, ("-", "--", "-."), strict=True):
        low, _, high = result["quartiles"]
        axes.plot(result["gradient_norm"], result["distance"], dash, color=colour, label=name, marker="o", markersize=3)
        axes.fill_between(result["gradient_norm"], low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(
        result["gradient_norm"], result["interpolation_floor"], ":", color="black", label="interpolation, of the image"
    )
    axes.set_xlabel("largest gradient of the displacement, sup |grad tau|")
    axes.set_ylabel("how far the logits move, relative")
    axes.set_title("Warped images: mean over images and fields, and the middle half")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
