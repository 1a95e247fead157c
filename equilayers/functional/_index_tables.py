r"""Index tables of a group, as arrays and as tensors; made within a `table`, which keeps them and shuts modes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import Pair
from equilayers.groups import Group

Table = NDArray[np.int64] | NDArray[np.int32]


def moved_places(group: Group, size: Pair, elements: Sequence[int] | None = None) -> Table:
    r"""Array (K, H·W): entry [k, p] is the place of k·p on a map of this size, for all elements k or for these.

    p is a flat position on the map that k carries to this one: where k is a quarter turn, it has the size turned.
    """
    index = torch.arange(size[0] * size[1], dtype=torch.int32).view(size)
    chosen = range(group.order) if elements is None else elements
    return np.stack([group.act(group.inverse(k), index).flatten().numpy() for k in chosen])


def to_tensor(table: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    r"""The table as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(table)).to(device, dtype)


def to_indices(table: NDArray[Any], device: torch.device) -> Tensor:
    r"""The table as int32, half the memory of int64."""
    return to_tensor(table, device, torch.int32)
