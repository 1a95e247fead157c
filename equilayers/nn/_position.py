r"""Layers that tell attention where a token stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import (
    check_even,
    check_float,
    check_int,
    check_positive,
    check_same_dtype,
    in_autocast,
    pair_of,
    refuse,
)
from equilayers.functional import (
    position_embedding,
    prepend_tokens,
    relative_position_bias,
    relative_position_orbits,
    rotary_embedding,
)
from equilayers.groups import Group, as_group

STD = 0.02  # of what is added to features or scores at the start, as in ViT and Swin


class GroupPositionEmbedding(nn.Module):
    r"""Add a learned embedding of positions, (B, C, |G|, *size) to the same shape, that the group leaves in place.

    `y[b, c, h] = f[b, c, h] + act(h, weight[c])`; see `equilayers.functional.position_embedding`.

    Args:
        group: the symmetry, or its name, "C4"; it may not interpolate.
        num_features: C.
        size: of the maps, such as (H, W); one int for a space of that length on each axis that the group moves.
        device, dtype: of the parameters.

    Attributes:
        weight: (C, *size).
        exactness: "bitwise".

    Raises:
        TypeError: an argument of another type; in forward, an input of another dtype.
        ValueError: a size that the group does not act on; in forward, an input of another shape.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929), there without a group.
    """

    exactness = "bitwise"
    weight: Tensor

    def __init__(
        self,
        group: Group | str,
        num_features: int,
        size: int | Sequence[int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "GroupPositionEmbedding"
        self.group = as_group(caller, group, exact=True)
        self.num_features = check_int(caller, "num_features", num_features, 1)
        axes = size if isinstance(size, Sequence) else [size] * self.group.space_ndim
        self.size = tuple(check_int(caller, "size", n, 1) for n in axes)
        self.group.check_stackable(self.size, caller)
        self.weight = nn.Parameter(torch.empty(self.num_features, *self.size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw from a normal distribution of deviation 0.02, cut off at 2."""
        nn.init.trunc_normal_(self.weight, std=STD)

    def resized(self, size: int | Sequence[int]) -> GroupPositionEmbedding:
        r"""A layer for maps of another size, its weight interpolated bicubically; the law holds there as well."""
        like = self.weight
        layer = GroupPositionEmbedding(self.group, self.num_features, size, device=like.device, dtype=like.dtype)
        if len(self.size) != 2 or len(layer.size) != 2:
            hint = "Only maps (H, W) are interpolated."
            refuse("GroupPositionEmbedding.resized", "size (H, W) on both sides", (self.size, layer.size), hint)
        with torch.no_grad():
            resampled = F.interpolate(like[None], layer.size, mode="bicubic", antialias=True, align_corners=False)
            layer.weight.copy_(resampled[0])
        return layer

    def forward(self, f: Tensor) -> Tensor:
        caller = "GroupPositionEmbedding"
        check_float(caller, "f", f)
        wanted = (self.num_features, self.group.order, *self.size)
        if f.shape[1:] != wanted:
            hint = "The map must be the embedding's: make one of that size, or take resized(size)."
            refuse(caller, f"f of shape (B, {', '.join(map(str, wanted))})", tuple(f.shape), hint)
        if not in_autocast(f):
            check_same_dtype(caller, "f", f, self.weight)
        return f + position_embedding(self.weight, self.group)

    def extra_repr(self) -> str:
        return f"{self.group!r}, num_features={self.num_features}, size={self.size}"


class GroupRotaryEmbedding(nn.Module):
    r"""Turn the channel pairs of queries and keys by angles that depend on position and plane.

    Plane h turns pair i by `<h · omega_i, p>`, p measured from the middle of the map; see
    `equilayers.functional.rotary_tables`. Nothing is learned. The score of two tokens, summed over fiber and channels,
    then depends on where they stand by their offset alone.

    Args:
        group: exact rotations, with or without mirrors: C1, C2, C4, D1, D2, D4.
        head_features: d, channels of a head in each plane, even.
        theta: ratio of the frequencies' range.

    Attributes:
        exactness: "bitwise".

    Raises:
        TypeError: an argument of another type; in forward, an input that is not floating-point.
        ValueError: another group, an odd head_features, theta not positive; in forward, an input or a size that does
            not fit.

    Law: `layer(x, size)` commutes with the action of the group on tokens and fiber, for all g. The input of forward is
        (B, T + H·W, |G|, heads, d), with any axes between the fiber and d; its first T tokens, which have no position,
        are left alone.

    Source: Su et al. 2021 (arXiv:2104.09864); on images, Heo et al. 2024 (arXiv:2403.13298).
    """

    exactness = "bitwise"

    def __init__(self, group: Group | str, head_features: int, theta: float = 100.0) -> None:
        super().__init__()
        caller = "GroupRotaryEmbedding"
        self.group = as_group(caller, group, plane=True)
        self.head_features = check_even(caller, "head_features", head_features, 2)
        self.theta = check_positive(caller, "theta", theta)

    def forward(self, x: Tensor, size: int | Sequence[int]) -> Tensor:
        check_float("GroupRotaryEmbedding", "x", x)
        if x.ndim < 4 or x.shape[-1] != self.head_features:
            hint = "The last axis holds the channels of one head."
            wanted = f"x of shape (B, N, {self.group.order}, ..., {self.head_features})"
            refuse("GroupRotaryEmbedding", wanted, tuple(x.shape), hint)
        return rotary_embedding(x, self.group, size, self.theta)

    def extra_repr(self) -> str:
        return f"{self.group!r}, head_features={self.head_features}, theta={self.theta}"


class GroupRelativePositionBias(nn.Module):
    r"""A learned bias of attention scores, (num_heads, N, N), one number for each head and each orbit of offsets.

    `bias[a, s, t] = weight[orbit(t - s), a]`; see `equilayers.functional.relative_position_bias`. Call it without an
    argument and add what it returns to the scores.

    Args:
        group: exact rotations, with or without mirrors: C1, C2, C4, D1, D2, D4.
        num_heads: the number of heads.
        window_size: (height, width) or one int; N is their product.
        device, dtype: of the parameters.

    Attributes:
        weight: (orbits, num_heads).
        exactness: "bitwise".

    Raises:
        TypeError: an argument of another type.
        ValueError: another group, or a window that it does not act on.

    Law: `bias[:, g s, g t] == bias[:, s, t]` for all g.

    Source: Liu et al. 2021, Eq. 4 (arXiv:2103.14030), there without ties.
    """

    exactness = "bitwise"
    weight: Tensor

    def __init__(
        self,
        group: Group | str,
        num_heads: int,
        window_size: int | Sequence[int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "GroupRelativePositionBias"
        self.group = as_group(caller, group, plane=True)
        self.num_heads = check_int(caller, "num_heads", num_heads, 1)
        self.window_size = pair_of(caller, "window_size", window_size, 1)
        self.group.check_stackable(self.window_size, caller)
        orbits = int(relative_position_orbits(self.group, self.window_size).max()) + 1
        self.weight = nn.Parameter(torch.empty(orbits, self.num_heads, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw from a normal distribution of deviation 0.02, cut off at 2."""
        nn.init.trunc_normal_(self.weight, std=STD)

    def forward(self) -> Tensor:
        return relative_position_bias(self.weight, self.group, self.window_size)

    def extra_repr(self) -> str:
        return f"{self.group!r}, num_heads={self.num_heads}, window_size={self.window_size}"


class GroupTokens(nn.Module):
    r"""Put learned tokens before those of a feature: class token or registers, constant over the fiber.

    (B, C, |G|, *S) becomes (B, C, |G|, T + N), N the product of S: maps are flattened here. What was the feature is
    `[..., T:].unflatten(3, S)`. See `equilayers.functional.prepend_tokens`.

    Args:
        num_features: C.
        num_tokens: T.
        device, dtype: of the parameters.

    Attributes:
        weight: (T, C).
        exactness: "bitwise".

    Raises:
        TypeError: an argument of another type; in forward, an input of another dtype.
        ValueError: an argument below 1; in forward, an input of other axes or of no token.

    Law: a moved feature is moved behind the same tokens, for every group and all g.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929); registers, Darcet et al. 2024 (arXiv:2309.16588).
    """

    exactness = "bitwise"
    weight: Tensor

    def __init__(
        self,
        num_features: int,
        num_tokens: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_int("GroupTokens", "num_features", num_features, 1)
        self.num_tokens = check_int("GroupTokens", "num_tokens", num_tokens, 1)
        self.weight = nn.Parameter(torch.empty(self.num_tokens, self.num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw from a normal distribution of deviation 0.02, cut off at 2."""
        nn.init.trunc_normal_(self.weight, std=STD)

    def forward(self, f: Tensor) -> Tensor:
        return prepend_tokens(f, self.weight)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, num_tokens={self.num_tokens}"
