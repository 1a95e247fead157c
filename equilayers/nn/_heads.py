r"""What ends a network of regular features: attention pooling of the positions, an invariant classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import autocast, check_choice, check_float, check_int, check_same_dtype, in_autocast, refuse
from equilayers.functional import ORBIT_REDUCTIONS, invariant_avg_pool2d, orbit_pool
from equilayers.groups import Group
from equilayers.nn._attention import GroupMultiheadAttention
from equilayers.nn._init import add_parameters, reset
from equilayers.nn._position import STD


class GroupAttentionPool(nn.Module):
    r"""Pool the positions of a regular feature by attention, (B, C, |G|, *S) to (B, C, |G|).

    `y = attention(query, f, f)` with learned queries of C numbers each, constant over the fiber: the group leaves them
    in place, and they stand nowhere.

    Args:
        group: the symmetry, or its name, "C4".
        num_features: channels, C.
        num_heads: heads; must divide C.
        num_queries: Q, for an output (B, C, |G|, Q); None for one query and an output (B, C, |G|).
        bias: learn biases.
        dropout: probability of dropping an attention weight, in training.
        algorithm: "auto", "fourier" or "dense", as of `GroupMultiheadAttention`.

    Attributes:
        weight: the queries, (Q, C). attention: GroupMultiheadAttention. exactness: "rounding".

    Raises:
        TypeError, ValueError: as `GroupMultiheadAttention`; num_queries below 1.

    Law: `pool(act_regular(g, f))[:, :, h] == pool(f)[:, :, g^-1 h]` for all g, to rounding: the fiber alone moves.

    Source: Lee et al. 2019, section 3.2 (arXiv:1810.00825); in ViT, Zhai et al. 2022 (arXiv:2106.04560).
    """

    exactness = "rounding"
    weight: Tensor

    def __init__(
        self,
        group: Group | str,
        num_features: int,
        num_heads: int,
        num_queries: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        algorithm: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.attention = GroupMultiheadAttention(
            group, num_features, num_heads, bias, dropout, algorithm=algorithm, device=device, dtype=dtype
        )
        self.group, self.num_features = self.attention.group, self.attention.num_features
        count = 1 if num_queries is None else check_int("GroupAttentionPool", "num_queries", num_queries, 1)
        self.num_queries = num_queries
        self.weight = nn.Parameter(torch.empty(count, self.num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the queries from a normal distribution of deviation 0.02, cut off at 2."""
        nn.init.trunc_normal_(self.weight, std=STD)

    def forward(self, f: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        r"""The pooled feature; key_padding_mask (B, N) is True for positions that nobody sees."""
        query = self.weight.mT[:, None].expand(-1, self.group.order, -1)
        y: Tensor = self.attention(query.expand(f.shape[0], -1, -1, -1), f, key_padding_mask=key_padding_mask)
        return y.squeeze(3) if self.num_queries is None else y

    def extra_repr(self) -> str:
        return f"num_queries={self.num_queries}"


class InvariantHead(nn.Module):
    r"""Classify a regular feature, (B, C, |G|, *S) to (B, num_classes): the last layer of an invariant network.

    `y = W mean_s(orbit_pool(f))_s + b`: orbit pooling of the fiber, the mean over the positions if there are any, and
    an ordinary linear layer.

    Args:
        num_features: channels, C.
        num_classes: numbers out.
        reduction: "max", "mean", "logsumexp" or "norm" of the fiber; see `equilayers.functional.orbit_pool`.
        bias: learn a bias.

    Attributes:
        weight: (num_classes, C), bias: (num_classes,) or None, drawn as in torch.nn.Linear. exactness: "rounding";
            bitwise for vectors and maps and every reduction but "logsumexp".

    Raises:
        TypeError: a size no int; in forward, an input that is not floating-point.
        ValueError: an unknown reduction; in forward, another number of channels, no fiber, no positions.

    Law: `head(act_regular(g, f)) == head(f)` for all g.
    """

    exactness = "rounding"
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        reduction: str = "mean",
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "InvariantHead"
        self.num_features = check_int(caller, "num_features", num_features, 1)
        self.num_classes = check_int(caller, "num_classes", num_classes, 1)
        self.reduction = check_choice(caller, "reduction", reduction, ORBIT_REDUCTIONS)
        add_parameters(self, (self.num_classes, self.num_features), bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Linear does."""
        reset(self.weight, self.bias)

    def forward(self, f: Tensor) -> Tensor:
        caller = "InvariantHead"
        check_float(caller, "f", f)
        if f.ndim < 3 or f.shape[1] != self.num_features or not all(f.shape[2:]):
            hint = "It takes a regular feature, of vectors, tokens or maps."
            refuse(caller, f"f of shape (B, {self.num_features}, |G|, *positions)", tuple(f.shape), hint)
        if not in_autocast(f):
            check_same_dtype(caller, "f", f, self.weight)
        y = orbit_pool(f, self.reduction)
        if y.ndim == 4:  # a map, in whose mean no rotation changes a bit
            y = invariant_avg_pool2d(y)
        elif y.ndim > 2:
            y = y.flatten(2).mean(2)
        return F.linear(autocast(y), autocast(self.weight), None if self.bias is None else autocast(self.bias))

    def extra_repr(self) -> str:
        sizes = f"num_features={self.num_features}, num_classes={self.num_classes}"
        return f"{sizes}, reduction={self.reduction!r}, bias={self.bias is not None}"
