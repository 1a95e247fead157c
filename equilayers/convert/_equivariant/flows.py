r"""What is recorded when a model runs: what its tensors hold, and what its modules were called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equilayers.convert._report import Cause

IMAGE, LIFTED, MIXED, INVARIANT = "image", "lifted", "mixed", "invariant"
UNWHOLE = (
    "; the {} channels of {} are no whole fields of |G| = {}, so that all of them became numbers: let one layer make "
    "fields and another one numbers"
)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Flow:
    r"""What a tensor holds: an image, lifted features, both side by side, or numbers that rotations leave alone.

    channels: of the map it was last. producers: the convolutions it comes from by other steps alone. parts: the path
    and channels of each convolution whose outputs stand side by side in it; () if that is not known.
    """

    kind: str
    channels: int
    producers: frozenset[str] = frozenset()
    parts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Call:
    r"""A call of a module: its path, the flow and shape of its first tensor, and the shape of its output.

    moves: (|G|, D), how each element permutes the last axis of its input, `(g·x)[..., pi_g i] = x[..., i]`, in all rows
    alike; None where it does not, or nobody knows. lost: why nobody knows.
    """

    path: str
    input: Flow
    shape: tuple[int, ...]
    out: tuple[int, ...]
    moves: Tensor | None = None
    lost: Cause | None = None


@dataclass(frozen=True)
class Broken:
    r"""Why a function breaks the symmetry; after: of what it is given nothing is known since this, and so of it."""

    why: str
    after: Cause | None = None


@dataclass(frozen=True)
class Dataflow:
    r"""What was seen when a model ran: the calls of its modules by path, and the flow and shapes of its outputs.

    outputs: of each tensor that comes out; None where it does not depend on the input. single: whether it is one tensor
    alone. gates: the linear layers whose output meets features again, as in squeeze and excitation. broken: by the path
    of the module whose `forward` called it, why a function breaks the symmetry; that is in doubt if it follows from a
    cause. entered: paths of all that were called. unfed: causes of those that have parameters and read constants.
    lost: where tokens lost the symmetry that an output has not. known: whether it is known of every entry that comes
    out where the group moves it. outside: parameters of layers that others take the place of, read outside of them.
    """

    calls: dict[str, list[Call]]
    gates: frozenset[str]
    broken: dict[str, Broken]
    outputs: list[Flow | None]
    single: bool
    shapes: list[torch.Size]
    entered: frozenset[str]
    unfed: dict[str, Cause]
    lost: Cause | None = None
    known: bool = False
    outside: frozenset[nn.Parameter] = frozenset()

    @property
    def tokens(self) -> bool:
        r"""Whether a layer reads tokens: sequences of features."""
        return any(call.moves is not None and len(call.shape) > 2 for calls in self.calls.values() for call in calls)


def of_zeros(t: Tensor) -> Flow | None:
    r"""Planes of zeros are features as any others."""
    if t.ndim not in (3, 4) or bool(t.any()):
        return None
    channels = t.shape[1 if t.ndim == 4 else 2]
    return Flow(LIFTED, channels, parts=(("", channels),))


def unwhole(calls: dict[str, list[Call]], flows: Sequence[Flow | None], n: int) -> str:
    r"""What to say of linear layers that something comes from, if one puts out fields and more beside them."""
    for path in sorted(frozenset[str]().union(*(flow.producers for flow in flows if flow is not None))):
        call = calls[path][-1]
        if call.moves is not None and call.out[-1] > n and call.out[-1] % n:
            return UNWHOLE.format(call.out[-1], path, n)
    return ""
