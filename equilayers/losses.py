r"""Losses that make a model invariant by asking for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilayers._checks import check_batch, check_choice, refuse
from equilayers._modules import Model
from equilayers.groups import Group
from equilayers.metrics import GAPS, compared_elements, logits_of


class InvarianceLoss(nn.Module):
    r"""The invariance error of a model as a differentiable penalty.

    `loss = mean of gap(f(x), f(gx))` over samples and g other than the identity, with gap `1/2 ||f - fg||^2` ("logit"),
    `KL(softmax f || softmax fg)` ("distribution") or `||f - fg||^2 / ||f||^2` ("normalized_logit").

    Args:
        group: the symmetry.
        form: "logit", "distribution" or "normalized_logit".
        elements: "all" evaluates every g, |G| calls of the model; "random" draws one g for each sample, two calls, and
            has the same expectation.
        include_identity: count g = e, whose gap is 0.

    Raises:
        TypeError: group is no group; in forward, x is not floating-point.
        ValueError: unknown form or elements, a trivial group, or an x the group does not act on.

    Source: Moskalev et al. 2023, section 3 (arXiv:2308.03904).
    """

    def __init__(
        self, group: Group | str, form: str = "logit", *, elements: str = "all", include_identity: bool = False
    ) -> None:
        super().__init__()
        self.form = check_choice("InvarianceLoss", "form", form, tuple(GAPS))
        self.elements = check_choice("InvarianceLoss", "elements", elements, ("all", "random"))
        self.group: Group
        self.include_identity = include_identity
        self.group, self._compared = compared_elements("InvarianceLoss", group, include_identity)

    def forward(self, model: Model, x: Tensor) -> Tensor:
        r"""The penalty for inputs x (B, ...): a scalar tensor of the dtype of the logits, differentiable."""
        if isinstance(model, Tensor):
            refuse("InvarianceLoss", "(model, x) in this order", "a tensor as model", "Pass x last.", TypeError)
        check_batch("InvarianceLoss", x)
        f = logits_of("InvarianceLoss", model, x)
        if self.elements == "random":
            return self.between(f, logits_of("InvarianceLoss", model, self.moved(x)))
        moved = (logits_of("InvarianceLoss", model, self.group.act(g, x)) for g in self._compared)
        gaps = [self.between(f, fg) for fg in moved]
        return torch.stack(gaps).mean()

    def between(self, f: Tensor, fg: Tensor) -> Tensor:
        r"""The penalty between outputs f and fg (B, K) that were computed already."""
        return GAPS[self.form](f, fg).mean()

    def moved(self, x: Tensor) -> Tensor:
        r"""Each sample of x (B, ...) moved by its own random element."""
        self.group.check_stackable(tuple(x.shape), "InvarianceLoss")
        drawn = torch.randint(self._compared.start, self._compared.stop, (len(x),), device=x.device)
        out = torch.empty_like(x)
        for g in self._compared:
            chosen = drawn == g
            out[chosen] = self.group.act(g, x[chosen])
        return out

    def extra_repr(self) -> str:  # noqa: D102  torch documents it
        return f"{self.group!r}, form={self.form!r}, elements={self.elements!r}"
