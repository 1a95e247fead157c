r"""The parameters of weight-tied layers, and their initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def add_parameters(layer: Any, size: Sequence[int], bias: bool, **factory: Any) -> None:
    r"""Give the layer `weight` of this size, and `bias`, a number for each entry of its first axis, or None."""
    layer.weight = nn.Parameter(torch.empty(tuple(size), **factory))
    layer.bias = nn.Parameter(torch.empty(size[0], **factory)) if bias else None


def reset(weight: Tensor, bias: Tensor | None) -> None:
    r"""torch.nn.Linear's distribution: every plane of the output is one ordinary linear map of the whole input."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)
