r"""Accuracy against invariance: what regularisation costs, how little it can, and a first layer tied at the start."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import nn

from baselines.common.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, figure
from baselines.common.runner import Result
from baselines.study.config import ARMS, SALIENCY_TARGET
from baselines.study.parts.base import Finding, Page, Picture, RunPart, Table
from baselines.study.runs import Run, Subject
from baselines.study.starts import departure
from baselines.study.tables import cell, nu, paper_label

if TYPE_CHECKING:
    from baselines.study.config import Plan

NEAR = 0.015  # of accuracy: what costs no more than this is called nearly free
NAMES = {
    "WT": "weight tying",
    "DA": "augmentation",
    "constant": "regularisation",
    "cosine": "regularisation, cosine",
    "orbits": "whole orbits, cosine",
    "tied": "whole orbits, tied at the start",
}
COLOURS = dict(zip(NAMES, (GREEN, VERMILLION, SKY, BLUE, PURPLE, ORANGE), strict=True))
Curve = dict[float, list[Result]]  # nu to its seeds; one of 0 without a regulariser


class MitigationPart(RunPart):
    r"""Accuracy and SI of every way to regularise, over its weight."""

    title = "Accuracy against invariance"
    claim = (
        "Regularisation buys invariance with accuracy, and whether it has to is open (section 5). Here: a rate that "
        "decays, whole orbits, and a first layer that is tied at the start and never after."
    )
    needs_measures_of = ("table",)

    def runs(self, plan: Plan) -> list[Run]:
        r"""WT and DA, and of every arm its whole curve with seed 0."""
        points = [(group, arm, weight) for group, arm, weights in plan.curves for weight in weights]
        curves = [run for point in points if (run := _run(plan, *point)) is not None]
        return plan.runs([method for method in ("WT", "DA") if method in plan.methods]) + curves

    def further_runs(self, plan: Plan, results: list[Result]) -> list[Run]:
        r"""The other seeds of the nu chosen for each arm, and of that of tied weights for its control."""
        curves = by_arm(results)
        wanted: dict[Run, None] = {}
        for group, arm, _ in plan.curves:
            weights = [chosen(curves[paper_label(group), arm])]
            if arm == "orbits" and (paper_label(group), "tied") in curves:
                weights.append(chosen(curves[paper_label(group), "tied"]))
            first = (_run(plan, group, arm, weight) for weight in weights)
            wanted |= {replace(run, seed=n): None for run in first if run for n in range(plan.seeds)}
        there = {result["name"] for result in results}
        return [run for run in wanted if run.name not in there]

    def measure(self, trained: Subject) -> Result:
        layers = [module for module in trained.model.modules() if isinstance(module, nn.Linear)]
        begun_tied = trained.run.recipe.init == "symmetric" and trained.run.method != "WT"
        return {"departure": departure(layers[0].weight.detach(), trained.group)} if begun_tied else {}

    def page(self, results: list[Result]) -> Page:
        curves = by_arm(results)
        picked = {key: curve[chosen(curve)] for key, curve in curves.items()}
        for (group, arm), runs in list(picked.items()):
            if arm == "tied" and (group, "orbits") in curves:
                weight = runs[0]["recipe"]["nu"]
                if control := curves[group, "orbits"].get(weight):
                    picked[group, "control"] = control
        twice = {
            (g, arm) for (g, arm), runs in picked.items() if arm == "control" and runs is picked.get((g, "orbits"))
        }
        shown = sorted((item for item in picked.items() if item[0] not in twice), key=_order)
        rows = [_row(group, arm, runs) for (group, arm), runs in shown]
        head = ("group", "method", "ν", "seeds", "accuracy %", "SI", "LI", "DI", "validation SI", "departure")
        caption = (
            "nu of each method: the most accurate on validation images of those that reach SI "
            f"{SALIENCY_TARGET} there with seed 0, or else the one of the highest SI. Control: the recipe of tied at "
            "the start, from torch's start, where whole orbits have another nu. Departure: distance of the first "
            "layer's rows from orbits, relative."
        )
        return Page(_findings(picked), [Table(head, rows, caption)], [_picture(curves, picked)])


def _run(plan: Plan, group: str, arm: str, weight: float) -> Run | None:
    run = plan.first(group, "IR", plan.form, weight)
    return run and replace(run, recipe=replace(run.recipe, **_changes(arm)))


def _changes(arm: str) -> dict[str, Any]:
    return dict(ARMS[arm][0])


def arm_of(result: Result) -> str:
    r"""The arm a run belongs to, read off its recipe; its method without a regulariser."""
    recipe = result["recipe"]
    if not recipe["nu"]:
        return str(result["method"])
    if recipe["elements"] == "all":
        return "tied" if recipe["init"] == "symmetric" else "orbits"
    return "cosine" if recipe["schedule"] == "cosine" else "constant"


def by_arm(results: list[Result]) -> dict[tuple[str, str], Curve]:
    r"""The runs of each group and arm, by nu."""
    curves: dict[tuple[str, str], Curve] = {}
    for run in results:
        curves.setdefault((run["group"], arm_of(run)), {}).setdefault(run["recipe"]["nu"], []).append(run)
    return curves


def chosen(curve: Curve) -> float:
    r"""The weight taken of a curve, by validation images of seed 0 alone."""
    firsts = {weight: next(run for run in runs if run["seed"] == 0) for weight, runs in curve.items()}
    reaching = {w: run for w, run in firsts.items() if run.get("validation_SI", 0.0) >= SALIENCY_TARGET}
    if reaching:
        return max(reaching, key=lambda w: (reaching[w]["validation_accuracy"], -w))
    return max(firsts, key=lambda w: firsts[w].get("validation_SI", 0.0))


def _order(item: tuple[tuple[str, str], list[Result]]) -> tuple[str, int]:
    (group, arm), _ = item
    return group, [*NAMES, "control"].index(arm)


def _mean(runs: list[Result], key: str) -> float:
    return fmean(run[key] for run in runs)


def _row(group: str, arm: str, runs: list[Result]) -> list[str]:
    cells = [cell(key, [run[key] for run in runs]) for key in ("accuracy", "SI", "LI", "DI")]
    validation = f"{_mean(runs, 'validation_SI'):.3f}" if "validation_SI" in runs[0] else ""
    apart = f"{_mean(runs, 'departure'):.1e}" if "departure" in runs[0] else ""
    return [group, NAMES.get(arm, "its control, torch's start"), nu(runs), str(len(runs)), *cells, validation, apart]


def _findings(picked: dict[tuple[str, str], list[Result]]) -> list[Finding]:
    found = []
    for (group, arm), runs in sorted(picked.items(), key=_order):
        augmented = picked.get((group, "DA"))
        if arm in ("WT", "DA", "control") or not augmented:
            continue
        cost, similarity = _mean(augmented, "accuracy") - _mean(runs, "accuracy"), _mean(runs, "SI")
        reached = similarity >= SALIENCY_TARGET
        text = (
            f"{group}: {NAMES[arm]} has {100 * abs(cost):.1f} points {'less' if cost > 0 else 'more'} than augmentation"
        )
        text += f" at SI {similarity:.3f}" + ("" if reached else f", which is under the target of {SALIENCY_TARGET}")
        if arm == "tied":
            control = picked.get((group, "control"))
            text += f"; from torch's start the same recipe has SI {_mean(control, 'SI'):.3f}" if control else ""
            found.append(Finding(text + ".", (reached and cost <= NEAR,)))
        else:
            found.append(Finding(text + "."))
    return found


def _picture(curves: dict[tuple[str, str], Curve], picked: dict[tuple[str, str], list[Result]]) -> Picture:
    groups = list(dict.fromkeys(group for group, _ in curves))
    made = figure(4.8 * len(groups), 4.2)
    for ax, group in zip(made.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        for arm, name in NAMES.items():
            if (group, arm) not in curves:
                continue
            firsts = sorted((w, run) for w, runs in curves[group, arm].items() for run in runs[:1])
            x, y = ([run[key] for _, run in firsts] for key in ("SI", "accuracy"))
            ax.plot(x, [100 * value for value in y], "-", color=COLOURS[arm], marker=".", alpha=0.6)
            for weight, run in firsts:
                if weight:
                    place = run["SI"], 100 * run["accuracy"]
                    how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": COLOURS[arm]}
                    ax.annotate(f"{weight:g}", place, (3, 3), **how)
            seeds = picked[group, arm]
            points = [run["SI"] for run in seeds], [100 * run["accuracy"] for run in seeds]
            ax.plot(*points, "o", color=COLOURS[arm], label=name, markersize=6)
        ax.axvline(SALIENCY_TARGET, color="#999999", linestyle=":", linewidth=1)
        ax.set_title(group)
        ax.margins(x=0.09)  # room for the last weights
        ax.set_xlabel("SI")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7, loc="lower left")
    made.supylabel("accuracy %")
    alt = "Accuracy over SI, one curve over nu for each method, small numbers nu; large dots: seeds of the chosen nu."
    return Picture("mitigation", made, alt)
