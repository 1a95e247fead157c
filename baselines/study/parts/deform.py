r"""Stability to deformations: how far the logits of three networks move when the image is warped, against how much."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from baselines.common.data import Dataset
from baselines.common.figures import BLUE, GREEN, VERMILLION, figure, save
from baselines.common.files import read_json, writable_folder, write_json, write_text
from baselines.common.runner import Advance, Result, SerialExecutor, all_results
from baselines.common.tables import markdown_table
from baselines.common.terminal import add_training_arguments, require
from baselines.study.config import PROTOCOLS
from baselines.study.models import PLANES, cnn, parameters, weight_tied_cnn
from baselines.study.parts.base import Finding, Page, Picture, StandalonePart, Table
from baselines.study.runs import cached_dataset
from baselines.study.training import accuracy, train
from equilayers.groups import CyclicRotation
from equilayers.metrics import deformation_stability
from equilayers.nn import BlurConv2d, MaxBlurPool2d

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from baselines.study.config import Plan

FORMAT = 1  # of a network's file
GROUP = CyclicRotation(4)
MODELS = ("max pooling", "blur pooling", "weight tying")
MAGNITUDES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
SAMPLES = 200
BOUNDED = 2.0  # distance by size, at the smallest deformation by that at the next: no sudden step at nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines deform`."""
    add_training_arguments(parser, "deform", epochs="the study's for a CNN")


def main(args: argparse.Namespace) -> None:
    r"""Train the three, warp test images, and leave deform.json, deform.md and deform.png in the folder."""
    require("deform", "matplotlib")
    console = Console()
    out = writable_folder(args.out, "deform")
    jobs = jobs_of(args.data, args.data_dir, args.epochs, out)
    found = all_results(jobs, SerialExecutor(), console, "training and warping", resume=args.resume)
    results = dict(zip(MODELS, found, strict=True))
    write_json(out / "deform.json", {"data": args.data, "epochs": jobs[0].epochs, "models": results})
    table = markdown_table(*head_and_rows(results)) + "\n"
    write_text(out / "deform.md", table)
    save(drawing(results), out / "deform.png")
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    console.print(f"deform.json, deform.md and deform.png are in {out}")


@dataclass(frozen=True)
class DeformJob:
    r"""One of MODELS, trained on a data set and measured; the result is kept in `out`."""

    model: str
    data: str
    data_dir: str | None
    epochs: int
    out: Path
    steps: int = 1

    @property
    def path(self) -> Path:
        return self.out / f"{self.model.replace(' ', '-')}.json"

    def settings(self) -> Result:
        r"""Everything the result depends on, as JSON."""
        settings = {"data": self.data, "epochs": self.epochs, "magnitudes": list(MAGNITUDES), "samples": SAMPLES}
        return {**settings, "format": FORMAT, "torch": torch.__version__.split("+")[0]}

    def finished(self) -> Result | None:
        r"""The result of an earlier invocation with the same settings, or None."""
        known: Result = read_json(self.path) if self.path.exists() else {}
        return known if self.settings().items() <= known.items() else None

    def carry_out(self, advance: Advance) -> Result:
        r"""Train and measure."""
        data = cached_dataset(self.data, self.data_dir, 0)
        recipe = replace(PROTOCOLS["cnn", self.data].recipe, epochs=self.epochs, augment=False)
        torch.manual_seed(0)
        model = build(self.model, data)
        train(model, data, GROUP, recipe, seed=0)
        curve = deformation_stability(model, data.test.x[:SAMPLES], magnitudes=MAGNITUDES)
        result = {
            **self.settings(),
            "parameters": parameters(model),
            "accuracy": accuracy(model, data.test.x, data.test.y),
            **{key: value.tolist() for key, value in curve._asdict().items()},
        }
        write_json(self.path, result)
        advance(1)
        return result


def jobs_of(data: str, data_dir: str | None, epochs: int | None, out: Path) -> list[DeformJob]:
    r"""A job for each of MODELS; epochs None: the protocol's."""
    epochs = epochs or PROTOCOLS["cnn", data].recipe.epochs
    return [DeformJob(model, data, data_dir, epochs, out) for model in MODELS]


def build(name: str, data: Dataset) -> nn.Module:
    r"""One of MODELS, of equal width: plain, with anti-aliased subsampling, or tied under quarter turns."""
    in_shape, classes = tuple(data.train.x.shape[1:]), data.num_classes
    if name == "weight tying":
        return weight_tied_cnn(GROUP, in_shape, classes)
    model = cnn(in_shape, classes)
    if name == "blur pooling":
        norm = nn.Sequential(nn.BatchNorm2d(PLANES[0]), nn.ReLU())
        how: dict[str, Any] = {"padding": 2, "bias": False, "activation": norm, "conv_padding_mode": "zeros"}
        model = nn.Sequential(BlurConv2d(None, in_shape[0], PLANES[0], 5, **how), MaxBlurPool2d(), *list(model)[4:])
    return model


def head_and_rows(results: dict[str, Result]) -> tuple[list[str], list[list[str]]]:
    r"""A table of the distances for each largest gradient; its last row is the error of the warp itself."""
    first = next(iter(results.values()))
    rows = [(name, f"{100 * result['accuracy']:.1f}", result["distance"]) for name, result in results.items()]
    rows.append(("interpolation, of the image", "", first["interpolation_floor"]))
    head = ["network", "accuracy %", *(f"{size:.2f}" for size in first["gradient_norm"])]
    return head, [[name, accuracy, *(f"{value:.3f}" for value in values)] for name, accuracy, values in rows]


def drawing(results: dict[str, Result]) -> Figure:
    r"""The curves with their quartiles, and the interpolation floor."""
    made = figure(7, 4.5)
    axes = made.subplots()
    for (name, result), colour, dash in zip(results.items(), (VERMILLION, BLUE, GREEN), ("-", "--", "-."), strict=True):
        size, (low, _, high) = result["gradient_norm"], result["quartiles"]
        axes.plot(size, result["distance"], dash, color=colour, label=name, marker="o", markersize=3)
        axes.fill_between(size, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(size, result["interpolation_floor"], ":", color="black", label="interpolation, of the image")
    axes.set_xlabel("largest gradient of the displacement, sup |grad tau|")
    axes.set_ylabel("how far the logits move, relative")
    axes.set_title("Warped images: mean over images and fields, and the middle half")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return made


class DeformPart(StandalonePart):
    r"""The distance of the logits over the size of the deformation."""

    title = "Stability to deformations"
    claim = "Convolutional networks move little when the image is warped a little, no more than a constant times it."

    def jobs(self, plan: Plan, out: Path) -> list[DeformJob]:
        own = PROTOCOLS["cnn", plan.source.data].recipe.epochs
        return jobs_of(plan.source.data, plan.source.data_dir, min(plan.epochs or own, own), out)

    def results(self, found: list[Result]) -> list[Result]:
        return [{"network": name, **result} for name, result in zip(MODELS, found, strict=True)]

    def page(self, results: list[Result]) -> Page:
        findings = []
        for result in results:
            factors = [d / size for size, d in zip(result["gradient_norm"], result["distance"], strict=True) if size]
            text = (
                f"{result['network']}: the logits move by {min(factors):.2g} to {max(factors):.2g} times the largest "
                f"gradient of the displacement, {factors[0]:.2g} times at the smallest."
            )
            findings.append(Finding(text[0].upper() + text[1:], (factors[0] < BOUNDED * factors[1],)))
        networks = {result["network"]: result for result in results}
        caption = "Relative distance of the logits, for each largest gradient of the displacement."
        picture = Picture("deform", drawing(networks), caption)
        return Page(findings, [Table(*head_and_rows(networks), caption)], [picture])
