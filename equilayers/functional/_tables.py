r"""Index tables that split a space into orbits, made once per group and shape."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equilayers.groups import Group
from equilayers.groups._base import inverses, permutations


@dataclass(frozen=True, eq=False)
class OrbitTable:
    r"""How flat arrays of N entries become planes of M orbits.

    gather: (|G|·M,), entry `k*M + m` is the place of k·p_m, p_m the representative of orbit m. An entry that some k
        leave where it is stands in its orbit more than once.
    first: (N,), the first place in `gather` at which each entry stands.
    count: (N,), how often it stands there, the order of its stabiliser; None when every orbit is free.
    """

    gather: Tensor
    first: Tensor
    count: Tensor | None

    def planes(self, x: Tensor, order: int) -> Tensor:
        r"""Planes (R, |G|, M) of x (R, N): `planes[:, k, m] = x[:, k·p_m]`."""
        return x.index_select(1, self.gather).view(x.shape[0], order, self.gather.shape[0] // order)

    def flat(self, planes: Tensor) -> Tensor:
        r"""The transpose of `planes`, for planes that agree where an entry stands more than once."""
        flat = planes.flatten(1).index_select(1, self.first)
        return flat if self.count is None else flat * self.count.to(flat.dtype)

    def weight_planes(self, weight: Tensor, order: int) -> Tensor:
        r"""Planes of a weight (O, N), each entry divided among the places where it stands."""
        return self.planes(weight if self.count is None else weight / self.count.to(weight.dtype), order)


@functools.lru_cache(maxsize=256)
def _orbit_table(group: Group, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    moved = permutations(group, shape)[inverses(group)]  # moved[k, p] is the place of k·p
    representatives = np.flatnonzero(moved.min(axis=0) == np.arange(moved.shape[1]))
    gather = moved[:, representatives].reshape(-1)
    _, first, count = np.unique(gather, return_index=True, return_counts=True)
    return gather.copy(), first, (None if (count == 1).all() else count)


def orbit_table(group: Group, shape: tuple[int, ...], device: torch.device | None = None) -> OrbitTable:
    r"""The orbit table of arrays of this shape under the group."""
    gather, first, count = _orbit_table(group, shape)
    to_tensor = functools.partial(torch.tensor, device=device)
    return OrbitTable(to_tensor(gather), to_tensor(first), None if count is None else to_tensor(count))
