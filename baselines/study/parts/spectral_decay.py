r"""Fig. 5: invariance-induced spectral decay: the largest singular value of the Jacobian of each network."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import torch

from baselines.common.figures import figure
from baselines.common.runner import Result
from baselines.study.config import SALIENCY_TARGET
from baselines.study.measures import BATCHES, exact
from baselines.study.parts.base import Finding, Page, Picture, RunPart, Table
from baselines.study.parts.plots import COLOURS, bare, packed, unpacked
from baselines.study.runs import Run, Subject
from baselines.study.tables import nu
from baselines.study.training import CENTRED
from equilayers.metrics import invariance_gap, jacobian_singular_values, jacobian_spectral_norm

if TYPE_CHECKING:
    from baselines.study.config import Plan

SAMPLES = 1000  # test images, or as many as there are
SHOWN = 0  # the image whose most sensitive direction is drawn
SHORT = {"logit": "LI", "distribution": "DI", "normalized_logit": "normalised LI"}
SHORT[CENTRED] = "normalised LI, centred"
Key = tuple[str, str]  # group, kind of network


class DecayPart(RunPart):
    r"""sigma_max of the Jacobian for augmentation and for every form of the regulariser."""

    title = "Spectral decay"
    claim = (
        "Every form of the invariance regulariser buys its invariance by making the network less sensitive to any "
        "change of its input: sigma_max of its Jacobian is smaller than augmentation's (Fig. 5)."
    )
    needs_measures_of = ("table",)

    def runs(self, plan: Plan) -> list[Run]:
        return plan.runs(plan.methods, plan.forms)

    def measure(self, trained: Subject) -> Result:
        run, model, x = trained.run, trained.model, trained.data.test.x[:SAMPLES]
        batch = BATCHES[run.model].logits
        norms = jacobian_spectral_norm(model, x, batch_size=batch).double()
        exact(model)
        with torch.no_grad():
            sizes = torch.cat([model(part) for part in x.split(batch)]).double().norm(dim=1)
        gap = invariance_gap(model, x, trained.group, batch_size=batch)
        measured: Result = {
            "sigma_max": float(norms.mean()),
            "sigma_relative": float((norms / sizes.clamp_min(1e-300)).mean()),
            "sigma_quartiles": norms.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist(),
            "moved": float(gap.moved),
            "noisy": float(gap.noisy),
            "ratio": float(gap.ratio.nan_to_num(nan=0.0)),  # of a network that hears nothing
            "trivial": gap.trivial,
            "decay_samples": len(x),
        }
        if run.seed == 0:
            measured["direction"] = _direction(trained)
        return measured

    def page(self, results: list[Result]) -> Page:
        groups = _by_kind(results)
        rows = [[group, kind, *_cells(runs)] for (group, kind), runs in groups.items()]
        head = ("group", "network", "ν", "SI", "sigma max", "relative", "moved by g", "by noise", "ratio")
        caption = (
            f"sigma max: mean over {results[0]['decay_samples']} test images of the largest singular value of "
            "d logits / d input; relative: by the length of the logits. Moved: how far logits move under the group, "
            "and under noise as long as that move is, relative to how far those of different images lie apart; ratio: "
            "one by the other."
        )
        pictures = [_bars(groups)]
        if any("direction" in run for run in results):
            pictures.append(_directions(groups))
        return Page(_findings(groups), [Table(head, rows, caption)], pictures)


def _direction(trained: Subject) -> Result:
    r"""An image and the small change of it that moves the logits most, a picture to look at."""
    image = trained.data.test.x[SHOWN : SHOWN + 1]
    change = jacobian_singular_values(trained.model, image, 1).inputs[0, 0]
    change = change * change.flatten()[change.abs().argmax()].sign()  # a singular vector's sign is arbitrary
    return {"image": packed(image[0, 0]), "change": packed(change[0])}


def _by_kind(results: list[Result]) -> dict[Key, list[Result]]:
    kinds: dict[Key, list[Result]] = {}
    for run in results:
        form = f", {SHORT[run['recipe']['form']]}" if run["method"] == "IR" else ""
        kinds.setdefault((run["group"], run["method"] + form), []).append(run)
    return kinds


def _cells(runs: list[Result]) -> list[str]:
    spread = f" ± {statistics.stdev(run['sigma_max'] for run in runs):.2g}" if len(runs) > 1 else ""
    others = (f"{_mean(runs, key):.2g}" for key in ("sigma_relative", "moved", "noisy"))
    ratio = "trivial" if any(run["trivial"] for run in runs) else f"{_mean(runs, 'ratio'):.2g}"
    return [nu(runs), f"{_mean(runs, 'SI'):.3f}", f"{_mean(runs, 'sigma_max'):.3g}{spread}", *others, ratio]


def _mean(runs: list[Result], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def _findings(groups: dict[Key, list[Result]]) -> list[Finding]:
    found = []
    sigma = {key: _mean(runs, "sigma_max") for key, runs in groups.items()}
    for (group, kind), runs in groups.items():
        if not sigma.get((group, "DA")):
            continue
        share = sigma[group, kind] / sigma[group, "DA"]
        if kind.startswith("IR"):
            reached = _mean(runs, "SI")
            relative = _mean(runs, "sigma_relative") / _mean(groups[group, "DA"], "sigma_relative")
            text = (
                f"{group}: sigma max of {kind} is {share:.2g} times augmentation's, relative to the length of the "
                f"logits {relative:.2g} times, at SI {reached:.3f}"
            )
            text += "." if reached >= SALIENCY_TARGET else f", which is under the target of {SALIENCY_TARGET}."
            found.append(Finding(text, (share < 1,)))
        if kind == "WT":
            text = f"{group}: sigma max of weight tying is {share:.2g} times augmentation's, and it moves "
            found.append(Finding(f"{text}{_mean(runs, 'ratio'):.2g} times as far under the group as under noise."))
    return found


def _bars(groups: dict[Key, list[Result]]) -> Picture:
    names = list(dict.fromkeys(group for group, _ in groups))
    made = figure(4.2 * len(names), 3.6)
    for ax, name in zip(made.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        kinds = [kind for group, kind in groups if group == name]
        for place, kind in enumerate(kinds):
            values = [run["sigma_max"] for run in groups[name, kind]]
            ax.bar(place, statistics.fmean(values), color=COLOURS[kind[:2]], alpha=0.8)
            ax.plot([place] * len(values), values, "k.", markersize=5)
            label = f"{statistics.fmean(values):.2g}"
            ax.annotate(label, (place, max(values)), (0, 4), textcoords="offset points", ha="center")
        ax.set_xticks(range(len(kinds)), [kind.replace(", ", ",\n") for kind in kinds])
        ax.set_yscale("log")
        ax.margins(y=0.15)
        ax.set_title(name)
        ax.grid(alpha=0.3, axis="y")
        ax.set_axisbelow(True)
    made.supylabel("sigma max of d logits / d input")
    alt = "Largest singular value of the Jacobian for each network, log scale; a dot for each seed."
    return Picture("decay", made, alt)


def _directions(groups: dict[Key, list[Result]]) -> Picture:
    names = list(dict.fromkeys(group for group, _ in groups))
    firsts = {key: run for key, runs in groups.items() for run in runs if "direction" in run}
    columns = list(dict.fromkeys(kind for _, kind in groups))
    made = figure(1.6 * (len(columns) + 1), 1.9 * len(names))
    axes = made.subplots(len(names), len(columns) + 1, squeeze=False)
    for ax in axes.flat:
        bare(ax)
    for row, name in zip(axes, names, strict=True):
        for ax, kind in zip(row[1:], columns, strict=True):
            if (name, kind) in firsts:
                drawn = firsts[name, kind]["direction"]
                change = unpacked(drawn["change"])
                top = abs(change).max() or 1.0
                ax.imshow(change, cmap="RdBu_r", vmin=-top, vmax=top)
                ax.set_title(kind, fontsize=9)
                row[0].imshow(unpacked(drawn["image"]), cmap="gray")
        row[0].set_title(name, fontsize=9)
    alt = "A test image, and for each network the small change of it that moves the logits most."
    return Picture("directions", made, alt)
