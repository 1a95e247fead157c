r"""Proposition 3.1: the gradient flow of the invariance error of a linear network, in numbers and in closed form."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.data import load_dataset
from baselines.flow import gradient_flow
from baselines.models import group_of
from baselines.parts.base import AlonePart, Finding, Page, Picture, Table
from baselines.pool import Advance
from baselines.runs import Result

if TYPE_CHECKING:
    from baselines.plan import Plan

SAMPLES = 500  # test images
MORE = ("D4",)  # beside the groups of the plan
CLOSE = 1e-5  # of the integrated flow to the closed form


class FlowPart(AlonePart):
    r"""The flow for the groups of the plan, on the plan's images."""

    title = "Gradient flow of the invariance error"
    claim = (
        "Minimising the invariance error of a linear network lets its largest singular value never rise, and decays "
        "every direction in which the group moves the data: W(t) = W(0) exp(-S t) (Proposition 3.1)."
    )

    def steps(self, plan: Plan) -> int:
        return len(_groups(plan))

    def alone(self, plan: Plan, out: Path, advance: Advance, *, resume: bool) -> list[Result]:  # noqa: ARG002
        x = load_dataset(plan.source.data, data_dir=plan.source.data_dir).test.x[:SAMPLES]
        results = []
        for number, name in enumerate(_groups(plan)):
            flow = gradient_flow(x, group_of(name))
            numbers = {key: getattr(flow, key).tolist() for key in ("times", "sigma", "exact_sigma", "loss", "error")}
            results.append({"group": name, "images": len(x), "kept": flow.kept, **numbers})
            advance(number + 1)
        return results

    def show(self, results: list[Result]) -> Page:
        findings, rows = [], []
        for flow in results:
            sigma, error = flow["sigma"], max(flow["error"])
            falls = all(later <= earlier for earlier, later in itertools.pairwise(sigma))
            never = "never rises" if falls else "RISES at some time"
            text = (
                f"{flow['group']}: sigma max {never}, from {sigma[0]:.4g} to {sigma[-1]:.4g}; the invariance error "
                f"falls to {flow['loss'][-1] / flow['loss'][0]:.2g} of its start; the integrated flow is within "
                f"{error:.1g} of W(0) exp(-S t); in {100 * flow['kept']:.0f} % of the directions the group does not "
                "move these images."
            )
            findings.append(Finding(text, (falls, error < CLOSE)))
            rows.append([flow["group"], *(f"{value:.4g}" for value in sigma), f"{error:.1g}"])
        head = ("group", *(f"t = {time:g}" for time in results[0]["times"]), "error")
        caption = (
            f"sigma max of a random linear network of ten outputs under the flow, {results[0]['images']} test images; "
            "t in units of one over the largest eigenvalue of S, the mean of (x - gx)(x - gx)^T."
        )
        return Page(findings, [Table(head, rows, caption)], [_picture(results)])


def _groups(plan: Plan) -> list[str]:
    return list(dict.fromkeys((*plan.groups, *MORE)))


def _picture(results: list[Result]) -> Picture:
    from baselines.parts.plots import figure

    made = figure(8.4, 3.4)
    left, right = made.subplots(1, 2)
    colours = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    for number, flow in enumerate(results):
        colour = colours[number % len(colours)]
        left.plot(flow["times"], flow["sigma"], "o", color=colour, markersize=5, label=f"{flow['group']}, integrated")
        left.plot(flow["times"], flow["exact_sigma"], color=colour, linewidth=1)
        right.plot(flow["times"], [loss / flow["loss"][0] for loss in flow["loss"]], "o-", color=colour, markersize=4)
    left.plot([], [], color="black", linewidth=1, label="W(0) exp(-S t)")
    left.set(xlabel="t", ylabel="sigma max", xscale="symlog")
    right.set(xlabel="t", ylabel="LI, relative to its start", xscale="symlog", yscale="log")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    left.legend(fontsize=8)
    return Picture(
        "flow", made, "Largest singular value and invariance error of a linear network along the gradient flow."
    )
