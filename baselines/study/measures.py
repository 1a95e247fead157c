r"""Measures of a trained model: accuracy over the orbit, and invariance errors."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from equilayers.groups import Group
from equilayers.losses import InvarianceLoss
from equilayers.nn import GroupConv2d, LiftingConv2d


class Batches(NamedTuple):
    r"""Samples per call: for logits, and for saliency, which puts fifty points of a path in the place of each."""

    logits: int
    saliency: int


# The maps of a convolutional network should stay in the cache.
BATCHES = {"mlp": Batches(2048, 250), "cnn": Batches(128, 4), "vit": Batches(128, 4)}


def orbit_logits(model: nn.Module, x: Tensor, group: Group, batch_size: int) -> Tensor:
    r"""Logits (|G|, N, K) of every gx of the samples x (N, ...): one call per element and batch, all of one shape.

    In float64, which the means over the orbit are taken in.
    """
    with torch.no_grad():
        parts = [torch.stack([model(group.act(g, part)) for g in range(group.order)]) for part in x.split(batch_size)]
    return torch.cat(parts, 1).double()


def invariance(logits: Tensor, y: Tensor, group: Group) -> dict[str, float]:
    r"""The measures that need logits (|G|, N, K) of the orbits only, for samples of classes y (N,)."""
    f, moved = logits[0], logits[1:]
    right = (logits.argmax(-1) == y).double()

    def mean(form: str) -> float:
        loss = InvarianceLoss(group, form)
        return float(torch.stack([loss.between(f, fg) for fg in moved]).mean())

    return {
        "accuracy": float(right.mean()),
        "upright_accuracy": float(right[0].mean()),
        "LI": mean("logit"),
        "LI_normalized": mean("normalized_logit"),
        "DI": mean("distribution"),
        "consistency": float((moved.argmax(-1) == f.argmax(-1)).double().mean()),
    }


def exact(model: nn.Module) -> None:
    r"""Set every tied convolution to its bitwise algorithm.

    Trained with the fastest algorithm, whose last bits may depend on the rotation of the input, it is the same function
    up to rounding.
    """
    for layer in model.modules():
        if isinstance(layer, LiftingConv2d | GroupConv2d):
            layer.algorithm = "bitwise"
