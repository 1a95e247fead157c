r"""Which choice that the paper leaves open moves which figure of its Table 1, and by how much."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from baselines.common.figures import BLUE, ORANGE, figure
from baselines.common.runner import Result
from baselines.study.explain import attributions, shown, start_of_path
from baselines.study.measures import BATCHES, invariance, orbit_logits
from baselines.study.parts.base import Finding, Page, Picture, RunPart, Table
from baselines.study.runs import Run, Subject
from baselines.study.tables import PAPER, cell, group_name
from equilayers.groups import group_from_name
from equilayers.metrics import saliency_invariance_similarity

if TYPE_CHECKING:
    from baselines.study.config import Plan

SEEDS = 2
FIGURES = ("accuracy", "LI", "DI", "SI")
USUAL = "as measured here"
# Trainings of augmentation with one thing unlike the protocol.
TRAININGS: dict[str, dict[str, Any]] = {
    "Glorot's start": {"init": "glorot"},
    "He's start": {"init": "he"},
    "rate falls as a cosine": {"schedule": "cosine"},
    "padded after standardising": {"padding": "after"},
}
# Saliency with one thing unlike the protocol: baseline, logit or log-softmax, threshold, blur.
SALIENCIES: dict[str, tuple[str, bool, float, bool]] = {
    "gradients from black": ("black", True, 0.9, True),
    "of log-softmax": ("zero", False, 0.9, True),
    "of log-softmax, from black": ("black", False, 0.9, True),
    "no blur": ("zero", True, 0.9, False),
    "threshold 0.5": ("zero", True, 0.5, True),
    "no threshold": ("zero", True, 0.0, True),
}
Figures = dict[str, float]
Key = tuple[str, str]  # group, method


class SensitivityPart(RunPart):
    r"""Table 1 of augmentation under every choice, one at a time; of regularisation where nothing is trained anew."""

    title = "What the paper leaves open"
    claim = "The figures of Table 1 under other choices, one at a time. No choice is made to fit."
    needs_measures_of = ("table",)

    def runs(self, plan: Plan) -> list[Run]:
        methods = [method for method in ("DA", "IR") if method in plan.methods]
        usual = [run for run in plan.runs(methods) if run.seed < SEEDS]
        return usual + [_other(run, how) for run in usual if run.method == "DA" for how in TRAININGS.values()]

    def measure(self, trained: Subject) -> Result:
        if _training(trained.run.settings()) != USUAL:
            return {"choices": {}}  # of a training of its own only the usual measures
        few = trained.run.source.saliency_samples
        choices: dict[str, Figures] = {name: {"SI": _similarity(trained, name, few)} for name in SALIENCIES}
        return {"choices": {"last epoch": _last_epoch(trained), **choices}}

    def page(self, results: list[Result]) -> Page:
        table = {key: _moved(runs) for key, runs in _by_key(results).items()}
        rows = []
        for key, choices in table.items():
            if key in PAPER and results[0]["source"]["data"] == "mnist":
                rows.append([*key, "the paper", *PAPER[key]])
            for choice, values in choices.items():
                cells = (cell(name, values[name]) if name in values else "" for name in FIGURES)
                rows.append([*key, choice, *cells])
        head = ("group", "method", "choice", "accuracy %", "LI", "DI", "SI")
        caption = f"Means over {len({run['seed'] for run in results})} seed(s). Empty: the choice cannot move it."
        return Page(_findings(table), [Table(head, rows, caption)], [_picture(table)])


def _other(run: Run, how: dict[str, Any]) -> Run:
    if "padding" in how:
        return replace(run, source=replace(run.source, **how))
    return replace(run, recipe=replace(run.recipe, **how))


def _training(settings: Result) -> str:
    r"""Which of TRAININGS a run is; those of the protocol, whatever the command line made it, are as usual."""
    recipe, source = settings["recipe"], settings["source"]
    for name, how in TRAININGS.items():
        if all({**recipe, **source}[key] == value for key, value in how.items()):
            return name
    return USUAL


def _by_key(results: list[Result]) -> dict[Key, list[Result]]:
    keys: dict[Key, list[Result]] = {}
    for run in results:
        keys.setdefault((run["group"], run["method"]), []).append(run)
    return keys


def _last_epoch(trained: Subject) -> Figures:
    run, data, group = trained.run, trained.data, trained.group
    few, batches = run.source.saliency_samples, BATCHES[run.model]
    measured = invariance(orbit_logits(trained.last, data.test.x, group, batches.logits), data.test.y, group)
    x, y = data.test.x[:few], data.test.y[:few]
    similarity = saliency_invariance_similarity(trained.last, x, y, group, batch_size=batches.saliency)
    return {**{name: measured[name] for name in FIGURES[:3]}, "SI": float(similarity)}


def _similarity(trained: Subject, choice: str, few: int) -> float:
    r"""SI of the first test images, under one of SALIENCIES."""
    baseline, of_logit, threshold, blur = SALIENCIES[choice]
    begin, x, y = start_of_path(baseline, trained.data), trained.data.test.x[:few], trained.data.test.y[:few]

    def saliency(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return shown(attributions(model, x, target, begin, of_logit=of_logit), trained.group, threshold, blur=blur)

    size = BATCHES[trained.run.model].saliency
    with torch.enable_grad():
        found = saliency_invariance_similarity(trained.model, x, y, trained.group, saliency=saliency, batch_size=size)
    return float(found)


def _moved(runs: list[Result]) -> dict[str, dict[str, list[float]]]:
    r"""For each choice the figures it can move, over seeds."""
    trained: dict[str, list[Result]] = {}
    for run in runs:
        trained.setdefault(_training(run), []).append(run)
    usual = trained.pop(USUAL)
    found = {USUAL: {name: [run[name] for run in usual] for name in FIGURES}}
    found |= {choice: {name: [run[name] for run in seeds] for name in FIGURES} for choice, seeds in trained.items()}
    found["LI without the 1/2"] = {"LI": [2 * run["LI"] for run in usual]}
    n = group_from_name(group_name(usual[0]["group"])).order
    found["identity among the elements"] = {
        "LI": [run["LI"] * (n - 1) / n for run in usual],
        "DI": [run["DI"] * (n - 1) / n for run in usual],
        "SI": [(run["SI"] * (n - 1) + 1) / n for run in usual],
    }
    for choice in usual[0]["choices"]:
        moved = usual[0]["choices"][choice]
        found[choice] = {name: [run["choices"][choice][name] for run in usual] for name in moved}
    return found


def _findings(table: dict[Key, dict[str, dict[str, list[float]]]]) -> list[Finding]:
    r"""For each figure the choice that moves it most, either way."""
    found = []
    for (group, method), choices in table.items():
        usual = {name: fmean(values) for name, values in choices[USUAL].items()}
        for name in FIGURES:
            others = {choice: moved for choice, moved in choices.items() if name in moved and choice != USUAL}
            means = {choice: fmean(moved[name]) for choice, moved in others.items()}
            if not means:
                continue
            low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            scale, form = (100, ".1f") if name == "accuracy" else (1, ".3g")
            here, least, most = (f"{scale * value:{form}}" for value in (usual[name], means[low], means[high]))
            text = f"{group} {method}: {name} {here} goes from {least} ({low}) to {most} ({high})."
            found.append(Finding(text))
    return found


def _picture(table: dict[Key, dict[str, dict[str, list[float]]]]) -> Picture:
    keys = [key for key in table if key[1] == "DA"] or list(table)
    choices = list(dict.fromkeys(choice for key in keys for choice in table[key]))
    made = figure(2.6 * len(FIGURES) + 2, 0.27 * len(choices) + 1.2)
    axes = made.subplots(1, len(FIGURES), sharey=True)
    for ax, name in zip(axes, FIGURES, strict=True):
        scale = 100 if name == "accuracy" else 1
        for key, colour in zip(keys, (BLUE, ORANGE) * len(keys), strict=False):
            points = [
                (scale * fmean(moved[name]), choices.index(choice))
                for choice, moved in table[key].items()
                if name in moved
            ]
            ax.plot(*zip(*points, strict=True), "o", color=colour, markersize=4, label=" ".join(key))
            ax.axvline(points[0][0], color=colour, linewidth=0.8, alpha=0.5)
            if key in PAPER:
                ax.axvline(float(PAPER[key][FIGURES.index(name)].split()[0]), color=colour, linestyle=":", linewidth=1)
        ax.set_title("accuracy %" if name == "accuracy" else name, fontsize=9)
        ax.grid(alpha=0.3)
    axes[0].set_yticks(range(len(choices)), choices, fontsize=8)
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=7)
    alt = "The figures of augmentation under each choice; lines: as measured here, dotted: the paper's."
    return Picture("sensitivity", made, alt)
