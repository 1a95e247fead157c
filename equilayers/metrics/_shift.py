r"""How a classifier takes small shifts of its input: whether the class stays, and how far its probability moves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from equilayers._checks import check_choice
from equilayers._modules import Model, evaluation
from equilayers.metrics._invariance import agreement, class_logits
from equilayers.metrics._orbit import REDUCTIONS, Total, chunks, logits_of
from equilayers.metrics._shift_sampling import ShiftPlan, Shifts


def shift_consistency(
    model: Model,
    x: Tensor,
    *,
    max_shift: int | None = None,
    crop_size: int | tuple[int, int] | None = None,
    pairs: int = 1,
    exhaustive: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    r"""How often two shifts of one image are given the same class, a fraction in 0..1.

    `mean of [argmax f(S_a x) = argmax f(S_b x)]` over samples and pairs of shifts a, b, drawn for each sample on its
    own. S_(dy, dx) moves the content dy pixels down and dx to the right: `torch.roll` when crop_size is None, else by
    cutting another window of crop_size pixels, the shift 0 being the window in the middle.

    Args:
        model: any callable from (B, ..., H, W), or windows of it, to logits (B, K); a module is run in eval mode and
            put back afterwards.
        x: images (B, ..., H, W), floating-point; larger than what the model sees where crop_size is given.
        max_shift: the largest |dy| and |dx|, in pixels; all there is room for (the whole map when rolling) when None.
        crop_size: height and width of a window, in pixels, one int for both; None rolls the image around instead.
        pairs: pairs of shifts per sample. Both are uniform and independent, as in the source, so that they can
            coincide: with n shifts, one pair in n does.
        exhaustive: compare every shift but 0, each exactly once, with the unshifted image instead of drawing pairs.
        seed: sets the shifts; those of sample i depend on the seed and on i alone, not on batch_size.
        batch_size: samples per call of the model, a bound on memory; all at once when None. Each shift is a call of
            its own, on a batch of one shape, so that an exact model is reported as exact.

    Returns:
        Scalar tensor of the dtype of the logits, on the device of x; NaN when a logit is NaN or there is no sample.

    Raises:
        TypeError: x is not floating-point, or a count or size is no int.
        ValueError: x is no batch of images, there is no room to shift, or the model does not return (B, K).

    Law: 1 for a model that is invariant to the shifts, bitwise.

    Source: Zhang 2019, section 4.1, "classification consistency" (arXiv:1904.11486).
    """
    plan = ShiftPlan("shift_consistency", max_shift, crop_size, "pairs", pairs, exhaustive, seed, batch_size)
    return consistency_total(plan, model, x).value()


def shift_wobble(
    model: Model,
    x: Tensor,
    *,
    max_shift: int | None = None,
    crop_size: int | tuple[int, int] | None = None,
    shifts: int = 16,
    exhaustive: bool = False,
    reduction: str = "mean",
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    r"""How far the probability of the predicted class moves under shifts, at most: in 0..1.

    `w = max over shifts s of |p_c(S_s x) - p_c(x)|`, with p = softmax f and c the class predicted for the unshifted x;
    then the mean, or the maximum, over samples.

    Args:
        model: any callable from (B, ..., H, W), or windows of it, to logits (B, K).
        x: images (B, ..., H, W), floating-point.
        max_shift: the largest |dy| and |dx|, in pixels; all there is room for when None.
        crop_size: height and width of a window, in pixels; None rolls the image around instead.
        shifts: random shifts per sample: the maximum over them is a lower bound of that over all.
        exhaustive: take every shift instead, each exactly once.
        reduction: "mean" or "max" over samples.
        seed: sets the shifts; those of sample i depend on the seed and on i alone.
        batch_size: samples per call of the model; all at once when None.

    Returns:
        Scalar tensor of the dtype of the logits, on the device of x; NaN when a logit is NaN or there is no sample.

    Raises:
        TypeError: x is not floating-point, or a count or size is no int.
        ValueError: x is no batch of images, there is no room to shift, an unknown reduction, or the model does not
            return (B, K).

    Law: 0 for a model that is invariant to the shifts, bitwise.

    Source: Zhang 2019, Figure 1: the probability of a class against the shift (arXiv:1904.11486).
    """
    check_choice("shift_wobble", "reduction", reduction, REDUCTIONS)
    plan = ShiftPlan("shift_wobble", max_shift, crop_size, "shifts", shifts, exhaustive, seed, batch_size)
    return wobble_total(plan, model, x, reduction).value()


def consistency_total(plan: ShiftPlan, model: Model, x: Tensor, first: int = 0) -> Total:
    r"""The sum behind `shift_consistency`; the samples of x are number first, first + 1, ... of their data."""
    parts = chunks(plan.caller, x, plan.batch_size)
    shifts = plan.shifts(x)
    total, count, dtype = torch.zeros((), dtype=torch.float64, device=x.device), 0, x.dtype
    with evaluation(model), torch.no_grad():
        for part in parts:
            for f, fs in _compared(plan, shifts, model, part, first + count):
                total, dtype = total + agreement(f, fs).double().sum(), f.dtype
            count += len(part)
    each = len(shifts.rows) * len(shifts.columns) - 1 if plan.exhaustive else plan.count
    return Total(total, count * each, dtype)


def _compared(plan: ShiftPlan, shifts: Shifts, model: Model, x: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    r"""The pairs of logits that have to agree: of the unshifted and of each shifted x, or of random pairs."""
    if plan.exhaustive:
        f = logits_of(plan.caller, model, shifts.unshifted(x))
        for s in shifts.every(len(x)):
            yield f, logits_of(plan.caller, model, shifts.view(x, *s))
    else:
        drawn = shifts.random(plan.seed, first, len(x), 2 * plan.count)
        logits = (logits_of(plan.caller, model, shifts.view(x, *s)) for s in drawn)
        yield from zip(logits, logits, strict=True)  # two by two


def wobble_total(plan: ShiftPlan, model: Model, x: Tensor, reduction: str, first: int = 0) -> Total:
    r"""The sum or maximum behind `shift_wobble`."""
    parts = chunks(plan.caller, x, plan.batch_size)
    shifts = plan.shifts(x)
    found: list[Tensor] = []
    with evaluation(model), torch.no_grad():
        for part in parts:
            f = logits_of(plan.caller, model, shifts.unshifted(part))
            p, c = class_logits(f.double()).softmax(1).max(1, keepdim=True)
            n, worst = len(part), torch.zeros_like(p)
            start = first + sum(map(len, found))
            for s in shifts.every(n) if plan.exhaustive else shifts.random(plan.seed, start, n, plan.count):
                moved = logits_of(plan.caller, model, shifts.view(part, *s))
                q = class_logits(moved.double()).softmax(1).gather(1, c)
                worst = torch.maximum(worst, (q - p).abs())  # which hands on a NaN
            found.append(worst[:, 0])
    return Total.over(torch.cat(found), f.dtype, reduction)
