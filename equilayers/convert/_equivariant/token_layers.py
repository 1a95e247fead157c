r"""Linear layers and attention on tokens (..., C·|G|) whose fibers are innermost: what token models are made of.

Head splits, residual sums, layer norms and pointwise steps around them stay as they are, as they do around layers on
maps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers.functional import WeightCache, is_plain
from equilayers.groups import Group
from equilayers.nn import GroupLinear
from equilayers.nn._init import add_parameters, reset
from equilayers.nn._tokens import untouched


class FiberTokenLinear(nn.Module):
    r"""A group linear layer on tokens (..., C·|G|), to (..., O·|G|): in the place of torch.nn.Linear.

    Args:
        linear: from C features to O.

    Raises:
        ValueError: in forward, another last axis.

    Law: as of `GroupLinear`, at every token alike.
    """

    def __init__(self, linear: GroupLinear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        n, width = self.linear.group.order, self.linear.in_features
        if not x.ndim or x.shape[-1] != width * n:
            hint = f"They are {width} fields of {n} planes, the planes of a field side by side."
            refuse("FiberTokenLinear", f"x of shape (..., {width * n})", tuple(x.shape), hint)
        if self.linear.algorithm == "auto" and untouched(self.linear, kinds=(GroupLinear,)):
            return self.linear._on_fibers(x)
        y: Tensor = self.linear(x.reshape(-1, width, n))
        return y.reshape(*x.shape[:-1], self.linear.out_features * n)


class TiedLinear(nn.Module):
    r"""A linear layer (..., D) to (..., O·|G|), fibers innermost, from entries that the group permutes in any way.

    `y[(o, h)] = sum_i weight[o, i] x[pi_h i] + bias_o`, where g moves entry i to pi_g i: `(g·x)[pi_g i] = x[i]`. So are
    the pixels of a patch, or features of several places side by side.

    Args:
        group: the symmetry.
        permutations: (|G|, D), pi_g in row g.
        out_fields: O.
        bias: learn a bias, one per field.

    Attributes:
        weight: (O, D), initialised as in torch.nn.Linear. bias: (O,) or None.

    Raises:
        ValueError: permutations of another shape, or that are none; in forward, another last axis.

    Law: `layer(g·x) == g·layer(x)` to rounding, where g turns the fibers of the output.

    Source: Cohen and Welling 2016, Eq. 10 (arXiv:1602.07576).
    """

    permutations: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, group: Group, permutations: Tensor, out_fields: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.group = group
        wanted = torch.arange(permutations.shape[-1], device=permutations.device).expand(group.order, -1)
        if permutations.shape != wanted.shape or not torch.equal(permutations.sort(1).values, wanted):
            hint = "Each element of the group moves every entry to a place of its own."
            refuse("TiedLinear", f"{group.order} permutations", tuple(permutations.shape), hint)
        self.register_buffer("permutations", permutations.clone(), persistent=False)
        self._cache = WeightCache()
        add_parameters(self, (out_fields, permutations.shape[1]), bias, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Linear does."""
        reset(self.weight, self.bias)

    def expanded(self) -> Tensor:
        r"""The weight of the plain layer, (O·|G|, D): `W[(o, h), pi_h i] = weight[o, i]`."""
        return self.weight[:, self.permutations.argsort(1)].flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not x.ndim or x.shape[-1] != self.weight.shape[1]:
            hint = "They are the entries that the group permutes."
            refuse("TiedLinear", f"x of shape (..., {self.weight.shape[1]})", tuple(x.shape), hint)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.group.order)
        usable = not torch.compiler.is_compiling() and not torch.is_grad_enabled() and is_plain(self.weight)
        weight = self._cache.get(self.weight, self.expanded) if usable else self.expanded()
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.group!r}, {self.weight.shape[1]}, out_fields={len(self.weight)}, bias={self.bias is not None}"
