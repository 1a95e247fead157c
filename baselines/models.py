r"""The models of the study and the names of its groups."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from torch import nn

from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.nn import LiftingLinear, OrbitPool

METHODS = ("WT", "DA", "IR")
HIDDEN = (128,) * 5


def group_of(name: str) -> Group:
    r"""The group of the paper's name: R4 rotations, T3 translations along the last axis, D4 rotations and mirrors.

    Raises:
        ValueError: a name that is no letter R, D or T with a number, or a number the group does not come in.
    """
    match = re.fullmatch(r"([RDT])(\d+)", name)
    if match is None:
        raise ValueError(f"group_of: expected name like R4, D4 or T3, got {name!r}. Name a letter and an order.")
    n = int(match[2])
    return {"R": CyclicRotation, "D": Dihedral, "T": CyclicTranslation}[match[1]](n)


def mlp(in_shape: Sequence[int], classes: int, hidden: Sequence[int] = HIDDEN) -> nn.Sequential:
    r"""The unconstrained baseline: images (B, *in_shape) to logits (B, classes), ReLU between linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), hidden[0]), *_rest(hidden, classes))


def weight_tied_mlp(
    group: Group, in_shape: Sequence[int], classes: int, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    r"""The same network with its first layer tied: lift, maximum over the orbit, ReLU; as many parameters."""
    first = LiftingLinear(group, tuple(in_shape), hidden[0])
    return nn.Sequential(first, OrbitPool("max"), *_rest(hidden, classes))


def _rest(hidden: Sequence[int], classes: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.ReLU()]
    for width, following in itertools.pairwise(hidden):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return [*layers, nn.Linear(hidden[-1], classes)]
