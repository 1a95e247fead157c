r"""Weight-tied filters: expanded to an ordinary convolution's, laid out as planes over the group, and reversed.

A filter has N = kh·kw taps t for each pair of channels in a lifting convolution, and N = |G|·kh·kw pairs (u, t) in a
group convolution. Every function is an index table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers._tables import table
from equilayers.functional._index_tables import moved_places, to_indices
from equilayers.functional._steerable_basis import steer
from equilayers.groups import Group, interpolates


@table
def expansion(group: Group, shape: tuple[int, ...], device: torch.device) -> Tensor:
    r"""Places (|G|·C·N,) for weights (O, *shape), shape being C and the axes of N.

    Entry (h, c, j) is the place of (c, h^-1 · j) in a weight.
    """
    n, channels = group.order, shape[0]
    places = group.permutations((shape[-2], shape[-1]))  # [h, s] is the place of h^-1 s
    if len(shape) == 4:
        back = group.cayley_table[group.inverses]  # [h, k] is h^-1 k
        places = (back[:, :, None] * places.shape[1] + places[:, None, :]).reshape(n, -1)
    filters = np.arange(channels)[:, None] * places.shape[1]
    return to_indices((filters + places[:, None, :]).reshape(-1), device)


def expand(weight: Tensor, group: Group) -> Tensor:
    r"""The filter of the ordinary convolution: (O·|G|, C·|G|, kh, kw), or (O·|G|, C, kh, kw) of a lifting one.

    Row (o, h), column (c, k): `h · weight[o, c, h^-1 k]`. Differentiable.
    """
    if interpolates(group):
        return steer(weight, group)
    if torch.compiler.is_compiling():  # which takes no table from a cache
        act = group.act if weight.ndim == 4 else group.act_regular
        filters = torch.stack([act(h, weight) for h in range(group.order)], 1)
    else:
        filters = weight.flatten(1).index_select(1, expansion(group, tuple(weight.shape[1:]), weight.device))
    return filters.view(weight.shape[0] * group.order, -1, *weight.shape[-2:])


@table
def _places(group: Group, shape: tuple[int, ...], device: torch.device) -> Tensor:
    r"""Where each entry of a weight stands in its expansion, (|G|·C·N,): once for every element."""
    places = expansion(group, shape, torch.device("cpu")).numpy()
    return to_indices(np.argsort(places, kind="stable").reshape(-1, group.order).T.reshape(-1), device)


def fold(filters: Tensor, group: Group, shape: tuple[int, ...]) -> Tensor:
    r"""The adjoint of `expand`, from filters of its shape to (O, *shape); not for groups that interpolate.

    Gathered and summed: autograd's own gradient of `index_select` adds number by number.
    """
    n = group.order
    places = filters.reshape(filters.shape[0] // n, -1).index_select(1, _places(group, shape, filters.device))
    return places.unflatten(1, (n, -1)).sum(1).unflatten(1, shape)


@table
def rotated_taps(group: Group, kernel: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Places (|G|·T,) of (u, u·t) in the flat (u, t), and the table that undoes them."""
    moved = moved_places(group, kernel)
    places = (np.arange(group.order)[:, None] * moved.shape[1] + moved).reshape(-1)
    return to_indices(places, device), to_indices(np.argsort(places), device)


def to_planes(weight: Tensor, group: Group) -> Tensor:
    r"""Planes (O, |G|, T·C) of a group convolution's weight: `planes[o, u, (t, c)] = weight[o, c, u](u·t)`."""
    places, _ = rotated_taps(group, (weight.shape[3], weight.shape[4]), weight.device)
    rotated = weight.flatten(2).index_select(2, places).unflatten(2, (group.order, -1))
    return rotated.permute(0, 2, 3, 1).flatten(2)


def from_planes(planes: Tensor, group: Group, kernel: Pair) -> Tensor:
    r"""The inverse of `to_planes`."""
    _, inverse = rotated_taps(group, kernel, planes.device)
    rotated = planes.unflatten(2, (kernel[0] * kernel[1], -1)).permute(0, 3, 1, 2).flatten(2)
    return rotated.index_select(2, inverse).unflatten(2, (group.order, *kernel))


@table
def _reversal(group: Group, kernel: Pair, device: torch.device) -> Tensor:
    undone = group.inverses
    moved = moved_places(group, kernel)[undone]  # [u, t] is the place of u^-1 t
    return to_indices((undone[:, None] * moved.shape[1] + moved[:, ::-1]).reshape(-1), device)


def reversed_weight(weight: Tensor, group: Group) -> Tensor:
    r"""The weight (C, O, |G|, kh, kw) whose group convolution is the input adjoint: `weight[o, c, u^-1](-u^-1 t)`."""
    places = _reversal(group, (weight.shape[3], weight.shape[4]), weight.device)
    return weight.flatten(2).index_select(2, places).unflatten(2, weight.shape[2:]).transpose(0, 1).contiguous()
