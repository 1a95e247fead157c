r"""What the layers of a transformer share: checks, dropout, drop path, layer scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import check_float, check_same_dtype, in_autocast, refuse
from equilayers.groups import Group

TOKEN_ALGORITHMS = ("auto", "fourier", "dense")


def check_probability(caller: str, name: str, value: float) -> float:
    r"""`value` itself where it is a probability below one."""
    if not 0 <= value < 1:
        refuse(caller, f"{name} in [0, 1)", value, "It is the probability of dropping.")
    return float(value)


def check_tokens(caller: str, name: str, f: Tensor, group: Group, weight: Tensor) -> None:
    r"""Refuse what is no feature (B, C, |G|, *S) with positions, of the group and the channels of the weight (O, C, |G|)."""
    check_float(caller, name, f)
    group.check_fiber(f, caller)
    if f.ndim < 4 or f.shape[1] != weight.shape[1]:
        hint = "Tokens stand on the trailing axes: (B, C, |G|, N) or (B, C, |G|, H, W)."
        refuse(caller, f"{name} of shape (B, {weight.shape[1]}, {group.order}, *positions)", tuple(f.shape), hint)
    if not f[0, 0, 0].numel() and len(f):
        refuse(caller, f"{name} with at least one position", tuple(f.shape), "Attention needs tokens.")
    if not in_autocast(f):
        check_same_dtype(caller, name, f, weight)


def dropped(x: Tensor, probability: float, training: bool) -> Tensor:
    r"""Dropout of whole fibers of tokens (R, |G|, C): each channel of a token with all its planes.

    So it commutes with the action of the group on the fiber and with every change of basis.
    """
    if not training or not probability:
        return x
    return x * F.dropout(torch.ones_like(x[:, :1]), probability)


def dropped_paths(x: Tensor, probability: float, training: bool, batch: int) -> Tensor:
    r"""Stochastic depth: the whole branch of a sample dropped; x (B·N, |G|, C)."""
    if not training or not probability:
        return x
    kept = F.dropout(torch.ones(batch, 1, 1, 1, dtype=x.dtype, device=x.device), probability)
    return (x.unflatten(0, (batch, -1)) * kept).flatten(0, 1)
