r"""Measures of invariance on the outputs of any model, and the formulas that compare two outputs, per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from equilayers._modules import Model
from equilayers.groups import Group
from equilayers.metrics._orbit import Total, orbit_total


def class_logits(f: Tensor) -> Tensor:
    r"""Logits of two classes or more: a single logit (B, 1) of a sigmoid stands beside a logit 0 of the other class."""
    return torch.cat((torch.zeros_like(f), f), -1) if f.shape[-1] == 1 else f


def logit_gap(f: Tensor, fg: Tensor) -> Tensor:
    r"""Half the squared distance of logits (B, K): `1/2 ||f - fg||^2`, (B,). Moskalev et al. 2023, Eq. 2."""
    return 0.5 * difference(f, fg).square().sum(-1)


def difference(f: Tensor, fg: Tensor) -> Tensor:
    r"""`f - fg`, 0 where both are the same infinity, as of masked classes."""
    masked = f.isinf() & (f == fg)
    return f.masked_fill(masked, 0) - fg.masked_fill(masked, 0)


def normalized_logit_gap(f: Tensor, fg: Tensor) -> Tensor:
    r"""The squared distance relative to the output: `||f - fg||^2 / ||f||^2`, (B,); 0 where both are zero."""
    gap = difference(f, fg).square().sum(-1)
    size = f.masked_fill(f.isinf() & (f == fg), 0).square().sum(-1)
    return gap / torch.where((gap == 0) & (size == 0), torch.ones_like(size), size)


def distribution_gap(f: Tensor, fg: Tensor) -> Tensor:
    r"""`KL(softmax f || softmax fg)` in nats, (B,), from log-softmax. Moskalev et al. 2023, Eq. 1.

    Summed as `sum_k Q_k - P_k - P_k t_k` with t = log Q - log P: the first two terms add up to nothing, and with them
    every summand is at least 0, so that rounding cannot make the sum negative.
    """
    p, q = class_logits(f).log_softmax(-1), class_logits(fg).log_softmax(-1)
    t, P, Q = q - p, p.exp(), q.exp()
    impossible = p == -torch.inf  # P = 0: the class adds nothing but its Q
    near = t.abs() < 1
    # Each branch sees only the numbers it is meant for, or their gradients would meet as 0 · inf.
    small, large = torch.where(near, t, 0), torch.where(near | impossible, 0, t)
    terms = torch.where(near, P * (small.expm1() - small), Q - P - P * large)
    return torch.where(impossible, Q, terms).sum(-1)


def agreement(f: Tensor, fg: Tensor) -> Tensor:
    r"""1 where the largest logits are at the same place, else 0, (B,); NaN where a logit is NaN."""
    f, fg = class_logits(f), class_logits(fg)
    same = (f.argmax(-1) == fg.argmax(-1)).to(f.dtype)
    return torch.where(f.isnan().any(-1) | fg.isnan().any(-1), torch.nan, same)


def cosine(m: Tensor, n: Tensor) -> Tensor:
    r"""Cosine of the angle between maps (B, ...), (B,), in float64; 1 for two zero maps, 0 for a zero and another."""
    m, n = m.flatten(1).double(), n.flatten(1).double()
    # Maps are scaled to a largest entry of 1 first: gradients of a confident model underflow when they are squared.
    m, n = (v / torch.where((top := v.abs().amax(1, keepdim=True)) > 0, top, 1) for v in (m, n))
    dot, sizes = (m * n).sum(1), (m * m).sum(1) * (n * n).sum(1)
    both_zero = (m == 0).all(1) & (n == 0).all(1)
    return torch.where(both_zero, 1.0, dot / torch.where(sizes == 0, 1.0, sizes).sqrt())


# What `InvarianceLoss` and the measures call these.
GAPS = {"logit": logit_gap, "distribution": distribution_gap, "normalized_logit": normalized_logit_gap}


def logit_invariance_error(
    model: Model,
    x: Tensor,
    group: Group | str,
    *,
    normalized: bool = False,
    batch_size: int | None = None,
    include_identity: bool = False,
) -> Tensor:
    r"""LI: how far the logits move when the input does.

    `LI = mean of 1/2 ||f(x) - f(gx)||^2` over samples and g; normalized: `mean of ||f(x) - f(gx)||^2 / ||f(x)||^2`.

    Args:
        model: any callable from (B, ...) to logits (B, K); a module is run in eval mode and put back afterwards.
        x: inputs (B, ...), floating-point, that the group acts on.
        group: the symmetry.
        normalized: divide by the size of the output, so that a small output cannot pass for an invariant one.
        batch_size: samples per call of the model, a bound on memory; all at once when None. Each element of the group
            is a call of its own, on a batch of one shape, so that an exact model is reported as exact.
        include_identity: count g = e, whose error is 0, among the elements averaged over.

    Returns:
        Scalar tensor of the dtype of the logits, in squared logits (or a ratio), on the device of x. 0 exactly for a
        bitwise invariant model; NaN when an output is NaN or there is no sample.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, is trivial, or the model does not return (B, K).

    Source: Moskalev et al. 2023, Eq. 2 (arXiv:2308.03904).
    """
    return logit_total("logit_invariance_error", model, x, group, normalized, batch_size, include_identity).value()


def logit_total(
    caller: str,
    model: Model,
    x: Tensor,
    group: Group | str,
    normalized: bool,
    batch_size: int | None,
    include_identity: bool,
) -> Total:
    r"""The sum behind `logit_invariance_error`."""
    compare = normalized_logit_gap if normalized else logit_gap
    return orbit_total(caller, model, x, group, compare, batch_size, include_identity)


def distribution_invariance_error(
    model: Model, x: Tensor, group: Group | str, *, batch_size: int | None = None, include_identity: bool = False
) -> Tensor:
    r"""DI: how far the predicted distribution moves when the input does.

    `DI = mean of KL(softmax f(x) || softmax f(gx))` over samples and g, in nats, computed from log-softmax.

    Args:
        model: any callable from (B, ...) to logits (B, K).
        x: inputs (B, ...), floating-point, that the group acts on.
        group: the symmetry.
        batch_size: samples per call of the model; all at once when None.
        include_identity: count g = e as well.

    Returns:
        Scalar tensor in nats, of the dtype of the logits, on the device of x.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, is trivial, or the model does not return (B, K).

    Source: Moskalev et al. 2023, Eq. 1 (arXiv:2308.03904).
    """
    caller = "distribution_invariance_error"
    return orbit_total(caller, model, x, group, distribution_gap, batch_size, include_identity).value()


def prediction_consistency(
    model: Model, x: Tensor, group: Group | str, *, batch_size: int | None = None, include_identity: bool = False
) -> Tensor:
    r"""How often the predicted class of gx is that of x, a fraction in 0..1.

    Args:
        model: any callable from (B, ...) to logits (B, K).
        x: inputs (B, ...), floating-point, that the group acts on.
        group: the symmetry.
        batch_size: samples per call of the model; all at once when None.
        include_identity: count g = e as well.

    Returns:
        Scalar tensor of the dtype of the logits, on the device of x; NaN when an output is NaN.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, is trivial, or the model does not return (B, K).
    """
    return orbit_total("prediction_consistency", model, x, group, agreement, batch_size, include_identity).value()
