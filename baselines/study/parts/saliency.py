r"""Fig. 1 and 3: saliency maps over the orbit of an image, moved back into one orientation."""

import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.common.figures import figure
from baselines.common.runner import Result
from baselines.study.explain import saliency_of
from baselines.study.measures import BATCHES
from baselines.study.parts.base import Finding, Page, Picture, RunPart, Table
from baselines.study.parts.plots import NAMES, bare, drawn, packed, unpacked
from baselines.study.runs import Subject
from baselines.study.tables import grouped

SAMPLES = 200  # test images whose maps are compared
SHOWN = 3  # of them are drawn, of different classes
ALIKE = 0.9  # similarity above which maps are called the same


def realigned(trained: Subject, x: Tensor, y: Tensor) -> Tensor:
    r"""Saliency maps `g^-1 m(gx)` of images x (N, C, H, W) of classes y (N,) for every g: (|G|, N, C, H, W)."""
    group, size = trained.group, BATCHES[trained.run.model].saliency
    explain = saliency_of(trained.run.source, trained.data)

    def maps(g: int) -> Tensor:
        parts = zip(x.split(size), y.split(size), strict=True)
        found = [explain(trained.model, group.act(g, a), b, group) for a, b in parts]
        return group.act(group.inverse(g), torch.cat(found))

    return torch.stack([maps(g) for g in range(group.order)])


class SaliencyPart(RunPart):
    r"""Integrated gradients over the orbit."""

    title = "Saliency over the orbit"
    claim = (
        "Augmentation learns every orientation by itself: put back upright, its saliency maps differ from "
        "orientation to orientation; those of weight tying are one and the same (Fig. 1 and 3)."
    )

    def measure(self, trained: Subject) -> Result:
        x, y = trained.data.test.x[:SAMPLES], trained.data.test.y[:SAMPLES]
        maps = realigned(trained, x, y).double().flatten(2)
        alike = F.cosine_similarity(maps[:1], maps[1:], dim=2).mean(1)
        measured: Result = {"similarity": alike.tolist(), "saliency_maps": len(x)}
        if trained.run.seed == 0:
            chosen = [int((y == label).nonzero()[0]) for label in y.unique()[:SHOWN]]
            shown = maps.unflatten(2, x.shape[1:]).mean(2)
            measured["pictures"] = [
                {"image": packed(x[i, 0]), "maps": [packed(m) for m in shown[:, i]]} for i in chosen
            ]
        return measured

    def page(self, results: list[Result]) -> Page:
        runs = grouped(results)
        findings, rows = [], []
        for (group, method), seeds in runs.items():
            each = [statistics.fmean(run["similarity"][g] for run in seeds) for g in range(len(seeds[0]["similarity"]))]
            mean = statistics.fmean(each)
            rows.append([group, method, ", ".join(f"{value:.3f}" for value in each)])
            claims: tuple[bool, ...] = ()
            text = f"{method} has similarity {mean:.3f}."
            if method == "WT":
                text = f"the maps of weight tying are the same in all orientations, similarity {mean:.3f}."
                claims = (mean > 0.999,)
            elif method == "DA":
                text = f"augmentation's maps of one image have similarity {mean:.2f} on average: "
                text += "it decides differently in every orientation." if mean < ALIKE else "nearly the same."
                claims = (mean < ALIKE,)
            findings.append(Finding(f"{group}: {text}", claims))
        caption = (
            f"Cosine similarity of the map of gx, put back, with that of x, for each g but the identity; mean over "
            f"{results[0]['saliency_maps']} test images and all seeds."
        )
        pictures = [_drawing(group, runs) for group in dict.fromkeys(group for group, _ in runs)]
        return Page(findings, [Table(("group", "method", "similarity for each g"), rows, caption)], pictures)


def _drawing(group: str, runs: dict[tuple[str, str], list[Result]]) -> Picture:
    pictures = drawn(runs, group, "pictures")
    methods = list(pictures)
    images, columns = min(2, len(pictures[methods[0]])), 1 + len(pictures[methods[0]][0]["maps"])
    made = figure(1.25 * columns * images, 1.5 * len(methods))
    axes = made.subplots(len(methods), images * columns, squeeze=False)
    for row, method in zip(axes, methods, strict=True):
        for ax in row:
            bare(ax)
        for number, picture in enumerate(pictures[method][:images]):
            first, *others = row[number * columns : (number + 1) * columns]
            image = unpacked(picture["image"])
            first.imshow(image, cmap="gray")
            for g, (ax, packed_map) in enumerate(zip(others, picture["maps"], strict=True)):
                ax.imshow(image, cmap="gray", vmax=2.5 * image.max())  # dark, under the map
                seen = unpacked(packed_map)
                ax.imshow(np.ma.masked_less(seen, 0.02 * seen.max()), cmap="autumn")
                if method == methods[0]:
                    ax.set_title("e" if g == 0 else f"g = {g}, put back", fontsize=8)
        row[0].set_ylabel(NAMES[method])
    alt = f"{group}: test images and their saliency maps for every element of the group, put back into one orientation."
    return Picture(f"saliency-{group}", made, alt)
