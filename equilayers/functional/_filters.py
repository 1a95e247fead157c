r"""Weight-tied filters: expanded to an ordinary convolution's, laid out as planes over the group, and turned around.

A filter is flat here: (O, C, N) with N = kh·kw taps t for a lifting convolution and N = |G|·kh·kw pairs (u, t) for a
group convolution. Every function is an index table, made once per group and kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function

from equilayers.functional._geometry import Pair
from equilayers.groups import Group
from equilayers.groups._base import inverses, permutations


def moved_places(group: Group, size: Pair) -> NDArray[np.int64]:
    r"""Array (|G|, H·W): entry [k, p] is the place of k·p, p a flat position on a map of this size."""
    return permutations(group, size)[inverses(group)]


@functools.lru_cache(maxsize=256)
def expansion(group: Group, kernel: Pair, lifting: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Tables (|G|, N): entry [h, (k, s)] of the first is the place of `h^-1 · (k, s)`; the second undoes each row."""
    taps = permutations(group, kernel)  # [h, s] is the place of h^-1 s
    if lifting:
        table = taps
    else:
        back = group.cayley_table[inverses(group)]  # [h, k] is h^-1 k
        table = (back[:, :, None] * taps.shape[1] + taps[:, None, :]).reshape(group.order, -1)
    return torch.tensor(table, device=device), torch.tensor(np.argsort(table, axis=1), device=device)


@torch.compiler.assume_constant_result
def _expansion_table(group: Group, kernel: Pair, lifting: bool, device: torch.device) -> Tensor:
    return expansion(group, kernel, lifting, device)[0]


def expand(weight: Tensor, group: Group) -> Tensor:
    r"""The filter of the ordinary convolution: (O·|G|, C·|G|, kh, kw), or (O·|G|, C, kh, kw) of a lifting one.

    Row (o, h), column (c, k): `h · weight[o, c, h^-1 k]`. Differentiable.
    """
    lifting, n, (kh, kw) = weight.ndim == 4, group.order, weight.shape[-2:]
    out, channels = weight.shape[:2]
    flat = weight.reshape(out, channels, -1)
    if torch.compiler.is_compiling():
        table = _expansion_table(group, (kh, kw), lifting, weight.device)
        rows = flat.index_select(2, table.flatten()).unflatten(2, table.shape)
    else:
        rows = _Expand.apply(flat, *expansion(group, (kh, kw), lifting, weight.device))
    return rows.transpose(1, 2).reshape(out * n, -1, kh, kw)


class _Expand(Function):
    r"""(O, C, N) to (O, C, |G|, N): `y[..., h, j] = x[..., table[h, j]]`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, table: Tensor, inverse: Tensor) -> Tensor:  # noqa: ARG004
        return x.index_select(2, table.flatten()).unflatten(2, table.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.tables = inputs[1:]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return _Contract.apply(v, *ctx.tables), None, None


class _Contract(Function):
    r"""The transpose of `_Expand`: `x[..., j] = sum_h y[..., h, inverse[h, j]]`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, table: Tensor, inverse: Tensor) -> Tensor:
        n, entries = table.shape
        rows = inverse + entries * torch.arange(n, device=v.device)[:, None]
        return v.flatten(2).index_select(2, rows.flatten()).unflatten(2, table.shape).sum(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.tables = inputs[1:]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        return _Expand.apply(u, *ctx.tables), None, None


@functools.lru_cache(maxsize=256)
def turned_taps(group: Group, kernel: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Places (|G|·T,) of (u, u·t) in the flat (u, t), and the table that undoes them."""
    moved = moved_places(group, kernel)
    table = (np.arange(group.order)[:, None] * moved.shape[1] + moved).reshape(-1)
    return torch.tensor(table, device=device), torch.tensor(np.argsort(table), device=device)


def to_planes(weight: Tensor, group: Group) -> Tensor:
    r"""Planes (O, |G|, T·C) of a group convolution's weight: `planes[o, u, (t, c)] = weight[o, c, u](u·t)`."""
    table, _ = turned_taps(group, (weight.shape[3], weight.shape[4]), weight.device)
    turned = weight.flatten(2).index_select(2, table).unflatten(2, (group.order, -1))
    return turned.permute(0, 2, 3, 1).flatten(2)


def from_planes(planes: Tensor, group: Group, kernel: Pair) -> Tensor:
    r"""The inverse of `to_planes`."""
    _, inverse = turned_taps(group, kernel, planes.device)
    turned = planes.unflatten(2, (kernel[0] * kernel[1], -1)).permute(0, 3, 1, 2).flatten(2)
    return turned.index_select(2, inverse).unflatten(2, (group.order, *kernel))


@functools.lru_cache(maxsize=256)
def _reversal(group: Group, kernel: Pair, device: torch.device) -> Tensor:
    undone = inverses(group)
    moved = moved_places(group, kernel)[undone]  # [u, t] is the place of u^-1 t
    table = undone[:, None] * moved.shape[1] + moved[:, ::-1]
    return torch.tensor(table.reshape(-1), device=device)


def reversed_weight(weight: Tensor, group: Group) -> Tensor:
    r"""The weight (C, O, |G|, kh, kw) whose group convolution spreads gradients back: `weight[o, c, u^-1](-u^-1 t)`."""
    table = _reversal(group, (weight.shape[3], weight.shape[4]), weight.device)
    return weight.flatten(2).index_select(2, table).unflatten(2, weight.shape[2:]).transpose(0, 1).contiguous()
