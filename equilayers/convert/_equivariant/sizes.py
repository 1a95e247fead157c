r"""The sizes that a conversion is verified at: two of each parity where the model takes them."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from equilayers.convert._equivariant.dataflow import Dataflow

# Away from the size of the example, what strides leave of these is odd and even in turn; a U-Net takes multiples.
DISTANCES = (6, 11, 1, 2, 4, 5, 3, 9, 8, 16, 18, 32)


def runs(x: Tensor, analysed: Callable[[Tensor], Dataflow]) -> list[tuple[Tensor, Dataflow]]:
    r"""What is seen of the model on two images of other sizes than x, up to two of each parity together with that of x."""
    found: list[tuple[Tensor, Dataflow]] = []
    height, width = x.shape[-2:]
    missing = {0: 1, 1: 2}  # by the parity of the distance
    for distance in DISTANCES:
        away = -distance if 2 * distance < min(height, width) else distance
        for step in (away, -away):
            if missing[distance % 2] and min(height, width) + step >= 1:
                resized = F.interpolate(x[:2], size=(height + step, width + step), mode="bilinear")
                try:
                    found.append((resized, analysed(resized)))
                except Exception:  # a model of others may raise anything where it does not fit
                    continue
                missing[distance % 2] -= 1
    return found
