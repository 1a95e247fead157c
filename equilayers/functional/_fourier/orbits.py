r"""Index tables that split a space into orbits under a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from equilayers._tables import table
from equilayers._torch_compat import constant_when_compiled
from equilayers.functional._index_tables import Table, to_indices
from equilayers.groups import Group


@dataclass(frozen=True, eq=False)
class OrbitTable:
    r"""The index table that maps flat arrays of N entries to planes of M orbits.

    gather: (|G|·M,), entry `k*M + m` is the place of k·p_m, p_m the representative of orbit m. An entry that some k
        leave where it is stands in its orbit more than once.
    first: (N,), the first place in `gather` at which each entry stands.
    count: (N,), how often it stands there, the order of its stabiliser; None when every orbit is free.
    """

    order: int
    gather: Tensor
    first: Tensor
    count: Tensor | None

    def planes(self, x: Tensor) -> Tensor:
        r"""Planes (R, |G|, M) of x (R, N): `planes[:, k, m] = x[:, k·p_m]`. Differentiable."""
        return _planes(x, self)

    def weight_planes(self, weight: Tensor) -> Tensor:
        r"""Planes of a weight (O, N), each entry divided among the places where it stands. Differentiable."""
        return self.planes(weight if self.count is None else weight / self.count.to(weight.dtype))


class _Planes(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, table: OrbitTable) -> Tensor:
        # By index_select, whose own backward would add number by number.
        return x.index_select(1, table.gather).unflatten(1, (table.order, -1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.table = inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return _flat(v, ctx.table), None


class _Flat(Function):
    r"""The transpose of `_Planes` for planes that agree where an entry stands more than once.

    Gradients of a correlation do, because x and W do: one place times the number of places is their sum.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, table: OrbitTable) -> Tensor:
        flat = v.flatten(1).index_select(1, table.first)
        return flat if table.count is None else flat * table.count.to(flat.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.table = inputs[1]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        return _planes(u, ctx.table), None


class _DualPlanes(_Planes):
    r"""The same with tangents, of which a compiler wants to hear nothing."""

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: None) -> Tensor:
        return _planes(t, ctx.table)


class _DualFlat(_Flat):
    r"""As `_DualPlanes`."""

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: None) -> Tensor:
        return _flat(t, ctx.table)


def _planes(x: Tensor, table: OrbitTable) -> Tensor:
    return cast(Tensor, (_Planes if torch.compiler.is_compiling() else _DualPlanes).apply(x, table))


def _flat(v: Tensor, table: OrbitTable) -> Tensor:
    return cast(Tensor, (_Flat if torch.compiler.is_compiling() else _DualFlat).apply(v, table))


def orbit_places(group: Group, shape: tuple[int, ...]) -> tuple[Table, Table, Table | None]:
    r"""The arrays of `OrbitTable`: gather, first and count."""
    moved = group.permutations(shape)[group.inverses]  # moved[k, p] is the place of k·p
    representatives = np.flatnonzero(moved.min(axis=0) == np.arange(moved.shape[1]))
    gather = moved[:, representatives].reshape(-1)
    _, first, count = np.unique(gather, return_index=True, return_counts=True)
    return gather, first, (None if (count == 1).all() else count)


def orbit_table(group: Group, shape: tuple[int, ...], device: torch.device) -> OrbitTable:
    r"""The orbit table of arrays of this shape under the group."""
    if not torch.compiler.is_compiling():
        return _kept_table(group, shape, device)
    # A compiler takes no tensor from a cache and must leave none there: it gets numbers.
    gather, first, count = (torch.tensor(_numbers(group, shape, which), device=device) for which in range(3))
    return OrbitTable(group.order, gather, first, count if len(count) else None)


@table
def _kept_table(group: Group, shape: tuple[int, ...], device: torch.device) -> OrbitTable:
    gather, first, count = orbit_places(group, shape)
    counts = None if count is None else to_indices(count, device)
    return OrbitTable(group.order, to_indices(gather, device), to_indices(first, device), counts)


@constant_when_compiled
def _numbers(group: Group, shape: tuple[int, ...], which: int) -> tuple[int, ...]:
    places = orbit_places(group, shape)[which]
    return () if places is None else tuple(places.tolist())
