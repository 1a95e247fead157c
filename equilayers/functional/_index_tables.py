r"""Index tables of a group, as arrays and as tensors that serve in every mode of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers._checks import Pair
from equilayers.groups import Group

Table = NDArray[np.int64]


def moved_places(group: Group, size: Pair) -> NDArray[np.int64]:
    r"""Array (|G|, H·W): entry [k, p] is the place of k·p, p a flat position on a map of this size."""
    return group.permutations(size)[group.inverses]


@torch.inference_mode(False)
def to_tensor(table: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    r"""The table as a tensor that serves everywhere, even if made in inference mode or under a functional transform."""
    return torch.from_numpy(np.ascontiguousarray(table)).to(device, dtype)
