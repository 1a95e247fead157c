r"""Proposition 3.1: the gradient flow of the invariance error of a linear network.

For `f(x) = W x` the invariance error is `LI(W) = 1/2 tr(W S W^T)`, with `S = mean of (x - gx)(x - gx)^T` over samples
and elements. Its gradient flow `dW/dt = -W S` has the solution `W(t) = W(0) exp(-S t)`: every direction in which the
group moves the data dies out, none grows, so the largest singular value never rises.

Source: Moskalev et al. 2023, Proposition 3.1 (arXiv:2308.03904).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from baselines.common.data import load_dataset
from baselines.common.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, figure
from baselines.common.runner import Advance, Result
from baselines.study.parts.base import Finding, Page, Picture, StandalonePart, Table
from baselines.study.runs import Source
from baselines.study.tables import paper_label
from equilayers.groups import Group, group_from_name
from equilayers.losses import InvarianceLoss

if TYPE_CHECKING:
    from baselines.study.config import Plan

TIMES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
PER_UNIT = 8.0  # steps per unit of time and of the largest eigenvalue of S
SAMPLES = 500  # test images
MORE = ("D4",)  # beside the groups of the plan
CLOSE = 1e-5  # of the integrated flow to the closed form
COLOURS = VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY


@dataclass(frozen=True)
class Flow:
    r"""One flow at `times` (T,), in units of one over the largest eigenvalue of S.

    sigma, exact_sigma: (T,), largest singular values of W, as integrated and as of `W(0) exp(-S t)`. loss: (T,), LI.
    error: (T,), `||W - W(0) exp(-S t)|| / ||W(0)||`. kept: the share of directions in which the group does
    not move the samples.
    """

    times: Tensor
    sigma: Tensor
    exact_sigma: Tensor
    loss: Tensor
    error: Tensor
    kept: float


def displacement(x: Tensor, group: Group) -> Tensor:
    r"""S (N, N), float64: the mean of `(x - gx)(x - gx)^T` over samples x (B, ...) and g other than e."""
    gaps = [(x - group.act(g, x)).flatten(1).double() for g in range(1, group.order)]
    return sum((d.mT @ d for d in gaps[1:]), gaps[0].mT @ gaps[0]) / (len(x) * len(gaps))


def gradient_flow(x: Tensor, group: Group, outputs: int = 10, times: Sequence[float] = TIMES, seed: int = 0) -> Flow:
    r"""The flow of a random linear network on samples x (B, ...) by Runge-Kutta steps along the gradient of LI.

    The gradient is that of `equilayers.losses.InvarianceLoss` by autograd, in float64, which knows no solution.
    """
    S = displacement(x, group)
    eigenvalues, basis = torch.linalg.eigh(S)
    top = float(eigenvalues[-1])
    layer = nn.Linear(S.shape[0], outputs, bias=False, dtype=torch.float64)
    start = torch.randn(outputs, S.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    penalty, samples = InvarianceLoss(group), x.double()

    def descent(W: Tensor) -> Tensor:
        layer.weight.data = W
        loss = penalty(lambda x: layer(x.flatten(1)), samples)
        (gradient,) = torch.autograd.grad(loss, layer.weight)
        return -gradient

    W, now, records = start.clone(), 0.0, []
    for time in times:
        steps = max(1, round(PER_UNIT * (time - now)))
        for _ in range(steps if time > now else 0):
            W = _step(descent, W, (time - now) / (steps * top))
        now = time
        exact = start @ basis @ (-eigenvalues * time / top).exp().diag() @ basis.mT
        lost, off = 0.5 * float((W @ S * W).sum()), float((W - exact).norm() / start.norm())
        records.append((_largest(W), _largest(exact), lost, off))
    sigma, exact_sigma, loss, error = torch.tensor(records, dtype=torch.float64).T
    kept = float((eigenvalues <= 1e-9 * top).double().mean())
    return Flow(torch.tensor([float(time) for time in times]), sigma, exact_sigma, loss, error, kept)


def _step(descent: Callable[[Tensor], Tensor], W: Tensor, h: float) -> Tensor:
    r"""One step of the classical Runge-Kutta method of order four."""
    a = descent(W)
    b = descent(W + h / 2 * a)
    c = descent(W + h / 2 * b)
    d = descent(W + h * c)
    return W + h / 6 * (a + 2 * b + 2 * c + d)


def _largest(W: Tensor) -> float:
    return float(torch.linalg.matrix_norm(W, 2))


@dataclass(frozen=True)
class FlowJob:
    r"""The flow for one group on test images of a data set."""

    source: Source
    group: str
    steps: int = 1

    def finished(self) -> None:
        r"""It takes seconds, and is never kept."""

    def carry_out(self, advance: Advance) -> Result:
        r"""Integrate it."""
        x = load_dataset(self.source.data, data_dir=self.source.data_dir).test.x[:SAMPLES]
        flow = gradient_flow(x, group_from_name(self.group))
        advance(1)
        numbers = {key: getattr(flow, key).tolist() for key in ("times", "sigma", "exact_sigma", "loss", "error")}
        return {"group": paper_label(self.group), "images": len(x), "kept": flow.kept, **numbers}


class FlowPart(StandalonePart):
    r"""The flow for the groups of the plan, on the plan's images."""

    title = "Gradient flow of the invariance error"
    claim = (
        "Minimising the invariance error of a linear network lets its largest singular value never rise, and decays "
        "every direction in which the group moves the data: W(t) = W(0) exp(-S t) (Proposition 3.1)."
    )

    def jobs(self, plan: Plan, out: Path) -> list[FlowJob]:  # noqa: ARG002 - nothing is kept
        return [FlowJob(plan.source, group) for group in dict.fromkeys((*plan.groups, *MORE))]

    def page(self, results: list[Result]) -> Page:
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


def _picture(results: list[Result]) -> Picture:
    made = figure(8.4, 3.4)
    left, right = made.subplots(1, 2)
    for flow, colour in zip(results, itertools.cycle(COLOURS), strict=False):
        left.plot(flow["times"], flow["sigma"], "o", color=colour, markersize=5, label=f"{flow['group']}, integrated")
        left.plot(flow["times"], flow["exact_sigma"], color=colour, linewidth=1)
        right.plot(flow["times"], [loss / flow["loss"][0] for loss in flow["loss"]], "o-", color=colour, markersize=4)
    left.plot([], [], color="black", linewidth=1, label="W(0) exp(-S t)")
    left.set(xlabel="t", ylabel="sigma max", xscale="symlog")
    right.set(xlabel="t", ylabel="LI, relative to its start", xscale="symlog", yscale="log")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    left.legend(fontsize=8)
    alt = "Largest singular value and invariance error of a linear network along the gradient flow."
    return Picture("flow", made, alt)
