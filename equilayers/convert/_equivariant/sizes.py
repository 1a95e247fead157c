r"""The sizes that a conversion is verified at: two of each parity where the model takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from equilayers.convert._equivariant.flows import Dataflow
from equilayers.convert._equivariant.ties import Ties

# Away from the size of the example, what strides leave of these is odd and even in turn; a U-Net takes multiples.
DISTANCES = (6, 11, 1, 2, 4, 5, 3, 9, 8, 16, 18, 32)


@dataclass(frozen=True)
class Run:
    r"""What is seen of a model on images of one size; lopsided: why it is not symmetric there, if that is no matter."""

    image: Tensor
    flow: Dataflow
    lopsided: str = ""

    @property
    def size(self) -> tuple[int, int]:
        r"""Height and width."""
        return self.image.shape[-2], self.image.shape[-1]


def runs(x: Tensor, flow: Dataflow, ties: Ties, analysed: Callable[[Tensor, Ties], Dataflow]) -> list[Run]:
    r"""The run on x, and on two images of other sizes, up to two of each parity in all.

    That a model on tokens, whose windows and places are of one size, is not symmetric at others is no matter.
    """
    found = [Run(x, flow)]
    height, width = x.shape[-2:]
    missing = {0: 1, 1: 2}  # by the parity of the distance
    for distance in DISTANCES:
        away = -distance if 2 * distance < min(height, width) else distance
        for step in (away, -away):
            if missing[distance % 2] and min(height, width) + step >= 1:
                resized = F.interpolate(x[:2], size=(height + step, width + step), mode="bilinear")
                trial = ties.copy() if flow.tokens else ties
                try:
                    run = analysed(resized, trial)
                except Exception:  # a model of others may raise anything where it does not fit
                    continue
                new = [broken.why for path, broken in run.broken.items() if path not in flow.broken]
                new += [cause.reason for parameter, cause in trial.wrong.items() if parameter not in ties.wrong]
                if flow.tokens and not ties.alike(trial):
                    new.append("its parameters would have to be tied over other orbits than those of its own size")
                found.append(Run(resized, run, new[0] if new and flow.tokens else ""))
                if not found[-1].lopsided:
                    ties.adopt(trial)
                missing[distance % 2] -= 1
    return found
