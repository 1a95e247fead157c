r"""Linear layers and attention on tokens (..., C·|G|) whose fibers are innermost: what token models are made of.

Head splits, residual sums, layer norms and pointwise steps around them stay as they are, as they do around layers on
maps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import check_choice, refuse
from equilayers.convert._equivariant.map_layers import kept
from equilayers.functional import WeightCache
from equilayers.functional.choices import token_choice
from equilayers.functional.cost import Choice
from equilayers.functional.tokens import TOKEN_ALGORITHMS, TokenWeight, fiber_linear, token_space
from equilayers.groups import Group


class _Linear(nn.Module):
    r"""What both layers have: a weight (O, ...), a bias (O,) or None, drawn as torch.nn.Linear does."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, group: Group, size: tuple[int, ...], bias: bool, **factory: Any) -> None:
        super().__init__()
        self.group = group
        self._cache = WeightCache()
        self.weight = nn.Parameter(torch.empty(size, **factory))
        self.register_parameter("bias", nn.Parameter(torch.empty(size[0], **factory)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Linear does."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.group!r}, {self.weight[0].numel()}, out_fields={len(self.weight)}, bias={self.bias is not None}"


def expanded_rows(weight: Tensor, group: Group) -> Tensor:
    r"""The plain weight (O·|G|, C·|G|) of a group linear weight (O, C, |G|), fibers innermost in rows and columns."""
    rows = [group.act_regular(h, weight).flatten(1) for h in range(group.order)]
    return torch.stack(rows, 1).flatten(0, 1)


class FiberTokenLinear(_Linear):
    r"""A group linear layer on tokens (..., C·|G|), to (..., O·|G|): in the place of torch.nn.Linear.

    `y[(o, h)] = sum_{c,k} weight[o, c, h^-1 k] x[(c, k)] + bias_o`, as `equilayers.nn.GroupLinear`.

    Args:
        group: the symmetry.
        in_fields, out_fields: C and O.
        bias: learn a bias, one per field.

    Attributes:
        weight: (O, C, |G|), initialised as in torch.nn.Linear. bias: (O,) or None. algorithm: "auto" (the faster by the
            cost model), "fourier" or "dense".

    Raises:
        ValueError: an unknown algorithm; in forward, another last axis.

    Law: `layer(g·x) == g·layer(x)` to rounding, where g turns fibers and moves tokens in any way.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576).
    """

    ALGORITHMS = TOKEN_ALGORITHMS
    exactness = "rounding"

    def __init__(
        self,
        group: Group,
        in_fields: int,
        out_fields: int,
        bias: bool = True,
        algorithm: str = "auto",
        **factory: Any,
    ) -> None:
        super().__init__(group, (out_fields, in_fields, group.order), bias, **factory)
        self.algorithm = check_choice("FiberTokenLinear", "algorithm", algorithm, TOKEN_ALGORITHMS)

    def expanded(self) -> Tensor:
        r"""The weight of the plain layer, (O·|G|, C·|G|)."""
        return expanded_rows(self.weight, self.group)

    def chosen(self, x: Tensor) -> Choice:
        r"""The algorithm that runs for x, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        features, channels, _ = self.weight.shape
        return token_choice(x, self.group, channels, features, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        features, channels, n = self.weight.shape
        if not x.ndim or x.shape[-1] != channels * n:
            hint = f"They are {channels} fields of {n} planes, the planes of a field side by side."
            refuse("FiberTokenLinear", f"x of shape (..., {channels * n})", tuple(x.shape), hint)
        space = token_space(x, self.group, channels, features, self.algorithm)
        return fiber_linear(x, TokenWeight(self.weight, self.bias), space, self._cache)


class TiedLinear(_Linear):
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

    def __init__(self, group: Group, permutations: Tensor, out_fields: int, bias: bool = True, **factory: Any) -> None:
        super().__init__(group, (out_fields, permutations.shape[-1]), bias, **factory)
        wanted = torch.arange(permutations.shape[-1], device=permutations.device).expand(group.order, -1)
        if permutations.shape != wanted.shape or not torch.equal(permutations.sort(1).values, wanted):
            hint = "Each element of the group moves every entry to a place of its own."
            refuse("TiedLinear", f"{group.order} permutations", tuple(permutations.shape), hint)
        self.register_buffer("permutations", permutations.clone(), persistent=False)

    def expanded(self) -> Tensor:
        r"""The weight of the plain layer, (O·|G|, D): `W[(o, h), pi_h i] = weight[o, i]`."""
        return self.weight[:, self.permutations.argsort(1)].flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not x.ndim or x.shape[-1] != self.weight.shape[1]:
            hint = "They are the entries that the group permutes."
            refuse("TiedLinear", f"x of shape (..., {self.weight.shape[1]})", tuple(x.shape), hint)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.group.order)
        return F.linear(x, kept(self._cache, self.weight, self.expanded), bias)
