r"""How two outputs are compared: the formulas behind the measures and the losses, per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_gap(f: Tensor, fg: Tensor) -> Tensor:
    r"""Half the squared distance of logits (B, K): `1/2 ||f - fg||^2`, (B,). Moskalev et al. 2023, Eq. 2."""
    return 0.5 * (f - fg).square().sum(-1)


def normalized_logit_gap(f: Tensor, fg: Tensor) -> Tensor:
    r"""The squared distance relative to the output: `||f - fg||^2 / ||f||^2`, (B,); 0 where both are zero."""
    gap, size = (f - fg).square().sum(-1), f.square().sum(-1)
    return gap / torch.where((gap == 0) & (size == 0), torch.ones_like(size), size)


def distribution_gap(f: Tensor, fg: Tensor) -> Tensor:
    r"""`KL(softmax f || softmax fg)` in nats, (B,), from log-softmax. Moskalev et al. 2023, Eq. 1.

    Summed as `sum_k Q_k - P_k - P_k t_k` with t = log Q - log P: the first two terms add up to nothing, and with them
    every summand is at least 0, so that rounding cannot make the sum negative.
    """
    p, q = f.log_softmax(-1), fg.log_softmax(-1)
    t, P, Q = q - p, p.exp(), q.exp()
    impossible = p == -torch.inf  # P = 0: the class adds nothing but its Q
    near = t.abs() < 1
    # Each branch sees only the numbers it is meant for, or their gradients would meet as 0 · inf.
    small, large = torch.where(near, t, 0), torch.where(near | impossible, 0, t)
    terms = torch.where(near, P * (small.expm1() - small), Q - P - P * large)
    return torch.where(impossible, Q, terms).sum(-1)


def agreement(f: Tensor, fg: Tensor) -> Tensor:
    r"""1 where the largest logits are at the same place, else 0, (B,); NaN where a logit is NaN."""
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
