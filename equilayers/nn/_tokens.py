r"""What the layers of a transformer share: checks, and whether they may go past the calls of their parts."""

from __future__ import annotations

from torch import Tensor, nn

from equilayers._checks import check_float, check_same_dtype, in_autocast, refuse
from equilayers.groups import Group


def check_probability(caller: str, name: str, value: float) -> float:
    r"""`value` itself where it is a probability below one."""
    if not 0 <= value < 1:
        refuse(caller, f"{name} in [0, 1)", value, "It is the probability of dropping.")
    return float(value)


def check_tokens(caller: str, name: str, f: Tensor, group: Group, weight: Tensor) -> None:
    r"""Refuse what is no feature (B, C, |G|, *S) of the group with positions and the channels of the weight."""
    check_float(caller, name, f)
    group.check_fiber(f, caller)
    if f.ndim < 4 or f.shape[1] != weight.shape[1]:
        hint = "Tokens stand on the trailing axes: (B, C, |G|, N) or (B, C, |G|, H, W)."
        refuse(caller, f"{name} of shape (B, {weight.shape[1]}, {group.order}, *positions)", tuple(f.shape), hint)
    if not f[0, 0, 0].numel() and f.shape[0]:
        refuse(caller, f"{name} with at least one position", tuple(f.shape), "Attention needs tokens.")
    if not in_autocast(f):
        check_same_dtype(caller, name, f, weight)


def untouched(*modules: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    r"""Whether nothing is hooked to these modules or put in their place: all are of one of these classes, no other.

    Then nobody notices that a layer goes past their calls. Sharding, checkpointing, adapters and probes stand there.
    """
    return all(
        type(m) in kinds
        and not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        for m in modules
    )
