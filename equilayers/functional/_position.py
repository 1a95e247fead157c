r"""What tells attention where a token stands: embeddings, rotary tables, biases tied over offsets, extra tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import (
    Pair,
    check_even,
    check_float,
    check_positive,
    check_same_dtype,
    in_autocast,
    pair_of,
    refuse,
)
from equilayers._tables import table
from equilayers.functional._convolution.geometry import swaps_axes
from equilayers.functional._index_tables import moved_places
from equilayers.groups import Group, as_group


def position_embedding(weight: Tensor, group: Group | str) -> Tensor:
    r"""The regular feature that stays where it is when the group moves it, made of a free map.

    `E[c, h] = act(h, weight[c])`

    Args:
        weight: (C, *size), floating-point, on any size that the group acts on: (C, H, W), or (C, n).
        group: the symmetry, or its name, "C4".

    Returns:
        (C, |G|, *size) of the dtype and device of weight, with C innermost in memory. Differentiable.

    Raises:
        TypeError: weight is not floating-point.
        ValueError: a group that interpolates, or a size that it does not act on.

    Law: `act_regular(g, E) == E` for all g, bitwise, at odd and even sizes.
    """
    caller = "position_embedding"
    group = as_group(caller, group, exact=True)
    check_float(caller, "weight", weight)
    if weight.ndim < 2:
        refuse(caller, "weight of shape (C, *size)", tuple(weight.shape), "Give it the axes of the map.")
    group.check_stackable(tuple(weight.shape[1:]), caller)
    planes = [group.act(h, weight).movedim(0, -1) for h in range(group.order)]
    return torch.stack(planes, -2).movedim((-1, -2), (0, 1))


def rotary_tables(
    group: Group | str,
    head_features: int,
    size: int | Sequence[int],
    theta: float = 100.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Cosine and sine of the angles by which plane h turns its channel pairs at each position of a map.

    `angle[h, p, i] = <h · omega_i, p> = <omega_i, h^-1 p>`, `|omega_i| = theta^(-(i // 2) / ceil(head_features / 4))`

    Positions p = (right, down) are measured from the middle of the map, in whole or half pixels: h^-1 p is exact, and
    the tables of all planes are that of the first, moved. Frequencies of even i point right. Those of odd i point down,
    or along the diagonal where the group has quarter turns, which bring the other axis.

    Args:
        group: exact rotations, with or without mirrors: C1, C2, C4, D1, D2, D4.
        head_features: channels of a head in each plane, even.
        size: of the map, (H, W) or one int.
        theta: ratio of the frequencies' range.
        dtype: of the tables, torch's default where None; angles are taken in float64.
        device: of the tables, torch's default where None.

    Returns:
        cos and sin, each (|G|, H, W, head_features / 2).

    Raises:
        TypeError: head_features, size or theta of another type.
        ValueError: another group, an odd head_features, theta not positive, or a size that the group does not act on.

    Law: `act(g, table[g^-1 h]) == table[h]` for all g and h, bitwise, space being the axes H and W.

    Source: Su et al. 2021 (arXiv:2104.09864); on images, Heo et al. 2024 (arXiv:2403.13298).
    """
    caller = "rotary_tables"
    group = as_group(caller, group, plane=True)
    check_even(caller, "head_features", head_features, 2)
    size = pair_of(caller, "size", size, 1)
    theta = check_positive(caller, "theta", theta)
    group.check_stackable(size, caller)
    dtype, device = dtype or torch.get_default_dtype(), torch.device(device or torch.get_default_device())
    return _tables(group, head_features // 2, size, theta, dtype, device)


def _tables(
    group: Group, pairs: int, size: Pair, theta: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    down, right = (torch.arange(n, dtype=torch.float64, device=device) - (n - 1) / 2 for n in size)
    omega = [theta ** (-(i // 2) / math.ceil(pairs / 2)) for i in range(pairs)]
    odd = (math.sqrt(0.5), math.sqrt(0.5)) if swaps_axes(group) else (0.0, 1.0)
    turns = [(f * x, f * y) for i, f in enumerate(omega) for x, y in [odd if i % 2 else (1.0, 0.0)]]
    along, across = torch.tensor(turns, dtype=torch.float64, device=device)[:, :, None, None].unbind(1)
    angles = along * right + across * down[:, None]
    first, second = (position_embedding(wave(angles).to(dtype), group) for wave in (torch.cos, torch.sin))
    return first.movedim(0, -1), second.movedim(0, -1)


@table
def _kept_tables(
    group: Group, pairs: int, size: Pair, theta: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    return _tables(group, pairs, size, theta, dtype, device)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r"""Turn the channel pairs (i, i + d/2) of the last axis by the angles of the tables.

    `y[i] = cos[i] x[i] - sin[i] x[i + d/2]`, `y[i + d/2] = sin[i] x[i] + cos[i] x[i + d/2]`

    Args:
        x: (..., d), floating-point, d even: queries or keys.
        cos: table (..., d/2) that broadcasts to the axes of x.
        sin: likewise.

    Returns:
        Of the shape, dtype and device of x. Half precision is turned in the precision of the tables. Differentiable.

    Raises:
        TypeError: an argument is not floating-point.
        ValueError: an odd d, or tables that do not fit.

    Law: lengths of pairs, and inner products of two that are turned by the same angle, stay: rounding.
    """
    caller = "rotate_pairs"
    for name, given in (("x", x), ("cos", cos), ("sin", sin)):
        check_float(caller, name, given)
    if x.ndim < 1 or x.shape[-1] % 2 or x.shape[-1] == 0:
        refuse(caller, "x of shape (..., d), d even", tuple(x.shape), "Channels are turned in pairs.")
    wanted = (*x.shape[:-1], x.shape[-1] // 2)
    if cos.shape != sin.shape or not _broadcasts(tuple(cos.shape), wanted):
        got = f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        refuse(caller, f"cos and sin that broadcast to {wanted}", got, "Take them from rotary_tables.")
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    r"""Whether an array of the one shape fits the other, its last axis exactly."""
    fits = all(n in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False))
    return 0 < len(shape) <= len(to) and shape[-1] == to[-1] and fits


def rotary_embedding(x: Tensor, group: Group | str, size: int | Sequence[int], theta: float = 100.0) -> Tensor:
    r"""Queries or keys of the tokens of a map, turned by their positions.

    `<y[s], y[t]>`, summed over the fiber and a head's channels, depends on the position of s by `s - t` alone.

    Args:
        x: (B, T + H·W, |G|, heads, d), floating-point, d even; any axes may stand between the fiber and d. The first T
            tokens have no position (class tokens) and are left alone.
        group: exact rotations, with or without mirrors: C1, C2, C4, D1, D2, D4.
        size: of the map, (H, W) or one int.
        theta: as of `rotary_tables`.

    Returns:
        Of the shape, dtype and device of x. Differentiable.

    Raises:
        TypeError: x is not floating-point.
        ValueError: an odd d, an axis 2 that is no fiber, fewer tokens than positions, or as `rotary_tables`.

    Law: turning commutes with the action of the group on tokens and fiber, bitwise, for all g.

    Source: Su et al. 2021 (arXiv:2104.09864).
    """
    caller = "rotary_embedding"
    group = as_group(caller, group, plane=True)
    size = pair_of(caller, "size", size, 1)
    check_float(caller, "x", x)
    free = x.shape[1] - size[0] * size[1] if x.ndim > 3 else -1
    if free < 0 or x.shape[2] != group.order or x.shape[-1] % 2:
        wanted = f"(B, N, {group.order}, ..., d), N >= {size[0] * size[1]} and d even"
        hint = "Tokens are on axis 1, the fiber on axis 2."
        refuse(caller, f"x of shape {wanted}", tuple(x.shape), hint)
    group.check_stackable(size, caller)
    # A compiler takes no tensor from a cache and must leave none there.
    tables = _tables if torch.compiler.is_compiling() else _kept_tables
    dtype, theta = torch.promote_types(x.dtype, torch.float32), check_positive(caller, "theta", theta)
    found = tables(group, x.shape[-1] // 2, size, theta, dtype, x.device)
    cos, sin = (wave.movedim(0, -2).flatten(0, 1) for wave in found)  # (H·W, |G|, d/2)
    if free:  # no angle for what has no position
        cos, sin = (F.pad(wave, (0, 0, 0, 0, free, 0), value=still) for wave, still in ((cos, 1.0), (sin, 0.0)))
    between = [1] * (x.ndim - 4)
    cos, sin = (wave.view(*wave.shape[:2], *between, -1) for wave in (cos, sin))
    return rotate_pairs(x, cos, sin)


def relative_position_orbits(group: Group | str, window_size: int | Sequence[int]) -> Tensor:
    r"""The orbit of the offset t - s under the group, for every pair of positions s, t of a window.

    Args:
        group: exact rotations, with or without mirrors: C1, C2, C4, D1, D2, D4.
        window_size: (height, width) or one int.

    Returns:
        (N, N), int64, N = height·width: the number of the orbit, from 0, at [s, t]. On the CPU.

    Raises:
        TypeError: window_size is no int and no pair.
        ValueError: another group, or a window that it does not act on.

    Law: `orbits[g s, g t] == orbits[s, t]` for all g.
    """
    caller = "relative_position_orbits"
    group = as_group(caller, group, plane=True)
    window = pair_of(caller, "window_size", window_size, 1)
    group.check_stackable(window, caller)
    return _at_offsets(_orbit_numbers(group, window), window, torch.device("cpu"))


def _at_offsets(numbers: tuple[int, ...], window: Pair, device: torch.device) -> Tensor:
    r"""For every pair of positions [s, t] the number of the offset t - s."""
    height, width = window
    s = torch.arange(height * width, device=device)
    down, right = (at - at[:, None] + n - 1 for at, n in ((s // width, height), (s % width, width)))
    return torch.tensor(numbers, device=device)[down * (2 * width - 1) + right]


@table
def _orbit_numbers(group: Group, window: Pair) -> tuple[int, ...]:
    r"""For every offset, from (1 - height, 1 - width) on, the number of its orbit."""
    least = moved_places(group, (2 * window[0] - 1, 2 * window[1] - 1)).min(0)
    return tuple(np.unique(least, return_inverse=True)[1].tolist())


def relative_position_bias(weight: Tensor, group: Group | str, window_size: int | Sequence[int]) -> Tensor:
    r"""A bias of attention scores for every pair of positions of a window, the same for offsets of one orbit.

    `bias[a, s, t] = weight[orbit(t - s), a]`

    Args:
        weight: (orbits, heads), floating-point.
        group: exact rotations, with or without mirrors: C1, C2, C4, D1, D2, D4.
        window_size: (height, width) or one int.

    Returns:
        (heads, N, N), N = height·width, of the dtype and device of weight. Differentiable.

    Raises:
        TypeError: weight is not floating-point.
        ValueError: as `relative_position_orbits`, or another number of orbits.

    Law: `bias[:, g s, g t] == bias[:, s, t]` for all g, bitwise.

    Source: Liu et al. 2021, Eq. 4 (arXiv:2103.14030), there without ties.
    """
    caller = "relative_position_bias"
    check_float(caller, "weight", weight)
    group = as_group(caller, group, plane=True)
    window = pair_of(caller, "window_size", window_size, 1)
    group.check_stackable(window, caller)
    numbers = _orbit_numbers(group, window)
    count = max(numbers) + 1
    if weight.ndim != 2 or weight.shape[0] != count:
        hint = "Offsets have as many orbits: see relative_position_orbits."
        refuse(caller, f"weight of shape ({count}, heads)", tuple(weight.shape), hint)
    return F.embedding(_at_offsets(numbers, window, weight.device), weight).permute(2, 0, 1).contiguous()


def prepend_tokens(f: Tensor, weight: Tensor) -> Tensor:
    r"""Put learned tokens, constant over the fiber, before the tokens of a feature.

    Args:
        f: regular feature (B, C, |G|, *S), floating-point; the axes S, one or more, are flattened to N tokens.
        weight: (T, C), of the dtype of f.

    Returns:
        (B, C, |G|, T + N) of the dtype and device of f, with C innermost in memory, the fiber next. What was f is
        `[..., T:].unflatten(3, S)`, a view. Differentiable.

    Raises:
        TypeError: f is not floating-point, or its dtype is not the weight's.
        ValueError: no token axis, an empty one, or another number of channels.

    Law: a moved f is moved behind the same tokens, bitwise, for every group.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929); registers, Darcet et al. 2024 (arXiv:2309.16588).
    """
    caller = "prepend_tokens"
    check_float(caller, "f", f)
    check_float(caller, "weight", weight)
    if f.ndim < 4 or 0 in f.shape[2:]:
        hint = "Flatten nothing: maps become tokens here."
        refuse(caller, "f of shape (B, C, |G|, *S) with at least one token", tuple(f.shape), hint)
    if weight.ndim != 2 or weight.shape[1] != f.shape[1]:
        hint = "A token has one number for each channel of f."
        refuse(caller, f"weight of shape (T, {f.shape[1]})", tuple(weight.shape), hint)
    if not in_autocast(f):
        check_same_dtype(caller, "f", f, weight)
    tokens = f.flatten(3).permute(0, 3, 2, 1)  # (B, N, |G|, C), the order of memory
    first = weight.to(f.dtype)[:, None].expand(f.shape[0], -1, f.shape[2], -1)
    return torch.cat([first, tokens], 1).permute(0, 3, 2, 1)
