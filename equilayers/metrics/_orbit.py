r"""Evaluating a model over orbits, one element at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import check_batch, check_int, check_model, check_output, refuse
from equilayers._modules import Model, evaluation
from equilayers.groups import Group, as_group

Compare = Callable[[Tensor, Tensor], Tensor]
REDUCTIONS = ("mean", "max")


@dataclass(frozen=True)
class Total:
    r"""The sum or the maximum of `count` values in float64, and the dtype that the measure is reported in."""

    total: Tensor
    count: int | Tensor
    dtype: torch.dtype
    reduction: str = "mean"

    @classmethod
    def over(cls, values: Tensor, dtype: torch.dtype, reduction: str = "mean") -> Total:
        r"""Of values (..., B), over the last axis."""
        count = values.shape[-1]
        total = values.amax(-1) if reduction == "max" and count else values.sum(-1)
        return cls(total, count, dtype, reduction)

    def value(self) -> Tensor:
        r"""The mean or the maximum; NaN where there was no value."""
        if not self.count:
            return (self.total * torch.nan).to(self.dtype)
        return (self.total / self.count if self.reduction == "mean" else self.total).to(self.dtype)


def group_in_order(caller: str, group: object, order: str = "(model, x, group)") -> Group:
    r"""The group that the argument stands for; TypeError with the order of the arguments where it is a tensor."""
    if isinstance(group, Tensor):
        got = f"a tensor of shape {tuple(group.shape)} as group"
        refuse(caller, f"{order} in this order", got, "Pass the group last.", TypeError)
    return as_group(caller, group)


def compared_elements(
    caller: str, group: Group | str, include_identity: bool, order: str = "(model, x, group)"
) -> tuple[Group, range]:
    r"""The group, and the elements a measure averages over: all but the identity, which joins on request."""
    group = group_in_order(caller, group, order)
    if group.order == 1 and not include_identity:
        hint = "The trivial group moves nothing; pass include_identity=True to measure it all the same."
        refuse(caller, "a group of more than one element", repr(group), hint)
    return group, range(0 if include_identity else 1, group.order)


def chunks(caller: str, x: Tensor, batch_size: int | None) -> list[Tensor]:
    r"""Cut x (B, ...) into pieces of at most batch_size samples; an empty batch is one empty piece."""
    check_batch(caller, x)
    size = len(x) if batch_size is None else check_int(caller, "batch_size", batch_size, 1)
    return list(x.split(max(1, size)))


def orbit_total(
    caller: str,
    model: Model,
    x: Tensor,
    group: Group | str,
    compare: Compare,
    batch_size: int | None,
    include_identity: bool,
) -> Total:
    r"""The sum of `compare(f(x), f(g x))` over samples and elements, in float64.

    Every element of the orbit is one call of its own, on a batch of the same shape. One call on all of them together
    would put equal samples into different rows of a matrix product, whose last bits depend on the row, and so report a
    rounding error as a broken invariance.
    """
    group, elements = compared_elements(caller, group, include_identity)
    parts = chunks(caller, x, batch_size)
    total, count, dtype = torch.zeros((), dtype=torch.float64, device=x.device), 0, x.dtype
    with evaluation(model), torch.no_grad():
        for part in parts:
            logits = logits_of(caller, model, part)
            for g in elements:
                moved = logits_of(caller, model, group.act(g, part))
                total = total + compare(logits.double(), moved.double()).sum()
            count, dtype = count + len(part) * len(elements), logits.dtype
    return Total(total, count, dtype)


def output_of(caller: str, model: Model, x: Tensor) -> Tensor:
    r"""f(x) of shape (B, ...) for x (B, ...), ValueError or TypeError otherwise.

    The model gets a copy of x, and its output is copied: it may write to its input, or use one buffer for all outputs.
    Integer outputs become floating-point; of an output with `logits` those are taken.
    """
    check_model(caller, model)
    out: object = model(x.clone())
    out = getattr(out, "logits", out)
    if isinstance(out, np.ndarray):
        out = torch.from_numpy(out).to(x.device)
    if isinstance(out, Tensor):
        check_output(caller, out)
    if not isinstance(out, Tensor) or out.ndim < 1 or len(out) != len(x):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        hint = "Return one output per sample; of several outputs pick one, lambda x: model(x)[0]."
        refuse(caller, f"model outputs of shape ({len(x)}, ...)", got, hint)
    return out.clone() if out.is_floating_point() or out.is_complex() else out.to(torch.get_default_dtype())


def logits_of(caller: str, model: Model, x: Tensor) -> Tensor:
    r"""f(x) of shape (B, K) as `output_of`; a single logit (B,) becomes (B, 1)."""
    out = output_of(caller, model, x)
    out = out[:, None] if out.ndim == 1 else out
    if out.ndim != 2 or not out.shape[1]:
        hint = "Return one row of logits per sample."
        refuse(caller, f"model outputs of shape ({len(x)}, K)", tuple(out.shape), hint)
    if out.is_complex():
        refuse(caller, "real logits", out.dtype, "Return their absolute values, for example.", TypeError)
    return out


def outside_inference(x: Tensor) -> Tensor:
    r"""The tensor, or a copy that autograd may save: it saves none that `torch.inference_mode` made."""
    return x.clone() if x.is_inference() else x
