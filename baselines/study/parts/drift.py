r"""Fig. 4: invariance errors on data that drift away from the training data."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.common.data import Dataset
from baselines.common.figures import figure
from baselines.common.runner import Result
from baselines.study.measures import BATCHES, exact, invariance, orbit_logits
from baselines.study.parts.base import Finding, Page, Picture, RunPart, Table
from baselines.study.parts.plots import band
from baselines.study.runs import Run, Subject, cached_dataset
from baselines.study.tables import ROUNDING, cell, grouped

BETAS = tuple(round(0.1 * i, 1) for i in range(11))
SAMPLES = 10_000  # test images, or as many as there are
AWAY = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}  # where the data drift to


def drifted(first: Tensor, second: Tensor, beta: float) -> Tensor:
    r"""Images of the drifting data: `D(beta) = (1 - beta) D1 + beta D2`, pixel by pixel, of images (N, ...) of both.

    A model was trained on D1; beta = 0 gives D1, 1 gives D2, exactly.

    Raises:
        ValueError: shapes that differ, or a beta outside 0..1.
    """
    if first.shape != second.shape:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"drifted: expected first and second of one shape, got {got}. Cut the larger one.")
    if not 0 <= beta <= 1:
        raise ValueError(f"drifted: expected beta from 0 to 1, got {beta}. 0 is the first data set, 1 the second.")
    return (1 - beta) * first + beta * second


def other(data: Dataset, run: Run) -> Tensor:
    r"""The images D2 that a run's data drift to.

    Fashion-MNIST for MNIST and the other way around. There is no second set of 8x8 images: digits drift to themselves
    with their pixels in another order, the same for all and drawn once, which has the same values and no strokes.
    """
    source = run.source
    if source.data in AWAY:
        return cached_dataset(AWAY[source.data], source.data_dir, run.seed, source.padding).test.x
    x = data.test.x
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(0))
    return x.flatten(1)[:, order].view_as(x)


class DriftPart(RunPart):
    r"""DI and accuracy on the way from one data set to another."""

    title = "Drifting data"
    claim = (
        "Away from the data it was learned on, augmentation's invariance fails at once, while weight tying and "
        "regularisation stay invariant (Fig. 4)."
    )

    def measure(self, trained: Subject) -> Result:
        run, data, group = trained.run, trained.data, trained.group
        second = other(data, run)
        n = min(SAMPLES, len(data.test.x), len(second))
        exact(trained.model)
        curves: dict[str, list[float]] = {"DI": [], "accuracy": [], "consistency": []}
        for beta in BETAS:
            x = drifted(data.test.x[:n], second[:n], beta)
            logits = orbit_logits(trained.model, x, group, BATCHES[run.model].logits)
            measures = invariance(logits, data.test.y[:n], group)
            for key, values in curves.items():
                values.append(measures[key])
        return {"drift_samples": n, "drift_to": AWAY.get(run.source.data, "scrambled digits"), "drift": curves}

    def page(self, results: list[Result]) -> Page:
        curves = {key: _curves(runs) for key, runs in grouped(results).items()}
        rounding = ROUNDING[results[0]["model"]]
        findings = [finding for group in _groups(curves) for finding in _findings(group, curves, rounding)]
        head = ("group", "method", *(f"DI at {beta:g}" for beta in BETAS[::2]), "accuracy % at 0", "drop at 0.5")
        rows = []
        for key, c in curves.items():
            di = (cell("DI", list(c["DI"][:, i])) for i in range(0, len(BETAS), 2))
            rows.append(
                [*key, *di, cell("accuracy", list(c["accuracy"][:, 0])), f"{100 * c['drop'][:, 5].mean():.1f} %"]
            )
        caption = (
            f"{results[0]['drift_samples']} test images of {results[0]['source']['data']}, with labels of their own, "
            f"on the way to {results[0]['drift_to']}. Drop: (accuracy at 0 - accuracy at beta) / accuracy at 0."
        )
        return Page(findings, [Table(head, rows, caption)], [_picture(results, curves)])


Curves = dict[str, NDArray[np.float64]]  # each (seeds, betas)


def _groups(curves: dict[tuple[str, str], Curves]) -> list[str]:
    return list(dict.fromkeys(group for group, _ in curves))


def _curves(runs: list[Result]) -> Curves:
    curves = {key: np.array([run["drift"][key] for run in runs]) for key in ("DI", "accuracy", "consistency")}
    start = np.maximum(curves["accuracy"][:, :1], 1e-12)  # a network that gets nothing right has nothing to lose
    return {**curves, "drop": (start - curves["accuracy"]) / start}


def _findings(group: str, curves: dict[tuple[str, str], Curves], rounding: float) -> list[Finding]:
    r"""What the curves of a group say of the claim."""
    di = {method: c["DI"].mean(0) for (name, method), c in curves.items() if name == group}
    found = []
    if "WT" in di:
        text = "0 at every beta, to the last bit" if not di["WT"].any() else f"at most {di['WT'].max():.2g} nats"
        found.append(Finding(f"{group}: DI of weight tying is {text}.", (bool(di["WT"].max() <= rounding),)))
    if "DA" in di:
        start, soon, top = di["DA"][0], di["DA"][1], di["DA"].max()
        where = BETAS[int(di["DA"].argmax())]
        text = f"{group}: DI of augmentation goes from {start:.2g} nats to {soon:.2g} at beta 0.1 and {top:.2g} at"
        found.append(Finding(f"{text} {where}.", (bool(soon > start), bool(top > 2 * start))))
    if "DA" in di and "IR" in di:
        share = di["IR"].max() / di["DA"].min() if di["DA"].min() else float("inf")
        top = di["IR"].max()
        text = f"{group}: DI of regularisation is at most {top:.2g} nats, {share:.2g} times augmentation's least."
        found.append(Finding(text, (bool(share < 0.1),)))
    drops = {method: c["drop"].mean(0)[5] for (name, method), c in curves.items() if name == group}
    text = ", ".join(f"{method} {100 * drop:.0f} %" for method, drop in sorted(drops.items(), key=lambda item: item[1]))
    found.append(Finding(f"{group}: of their accuracy at beta 0 they lose at 0.5: {text}."))
    return found


def _picture(results: list[Result], curves: dict[tuple[str, str], Curves]) -> Picture:
    groups = _groups(curves)
    made = figure(4.2 * len(groups), 6)
    axes = made.subplots(2, len(groups), sharex=True, squeeze=False)
    for column, group in enumerate(groups):
        for (name, method), c in curves.items():
            if name == group:
                band(axes[0, column], BETAS, c["DI"], method)
                band(axes[1, column], BETAS, c["drop"], method)
        axes[0, column].set_title(group)
        axes[0, column].set_yscale("symlog", linthresh=1e-4)
        axes[0, column].set_ylim(bottom=0)
        axes[1, column].set_xlabel(f"beta, from {results[0]['source']['data']} to {results[0]['drift_to']}")
        for ax in axes[:, column]:
            ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("DI, nats")
    axes[1, 0].set_ylabel("accuracy-drop ratio")
    axes[0, 0].legend()
    alt = "DI and accuracy-drop ratio over beta for each method; bands from the least to the largest seed."
    return Picture("drift", made, alt)
