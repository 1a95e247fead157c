r"""What a trained model is measured by: accuracy over the orbit, and whether it moves with its input."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from baselines.data import Dataset
from baselines.training import accuracy, orbit_accuracy
from equilayers.groups import Group
from equilayers.metrics import (
    distribution_invariance_error,
    logit_invariance_error,
    prediction_consistency,
    saliency_invariance_similarity,
)
from equilayers.nn import GroupConv2d, LiftingConv2d


class Batches(NamedTuple):
    r"""Samples per call: for logits, and for saliency, which puts fifty points of a path in the place of each."""

    logits: int
    saliency: int


# The maps of a convolutional network should stay in the cache.
BATCHES = {"mlp": Batches(2048, 250), "cnn": Batches(128, 4)}


class Remembered(nn.Module):
    r"""A model that computes the logits of the same batch once: the measures below ask for one orbit five times."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._logits: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = hashlib.sha256(x.contiguous().numpy().data).digest()
        if key not in self._logits:
            self._logits[key] = self.model(x)
        return self._logits[key]


def measure(model: nn.Module, data: Dataset, group: Group, saliency_samples: int, batches: Batches) -> dict[str, float]:
    r"""The measures of the study, over the test split; SI over its first samples, and those of the validation split.

    Convolutions compute their logits with algorithm "bitwise": trained with the fastest one, whose last bits may depend
    on the turn of the input, they are the same functions up to rounding.
    """
    few, x, y = slice(0, saliency_samples), data.test.x, data.test.y
    validation = data.validation.x[few], data.validation.y[few]
    similarity = [
        saliency_invariance_similarity(model, *split, group, batch_size=batches.saliency)
        for split in (validation, (x[few], y[few]))
    ]
    exact(model)
    known, size = Remembered(model), batches.logits
    with torch.no_grad():
        return {
            "validation_SI": float(similarity[0]),
            "accuracy": orbit_accuracy(known, x, y, group, size),
            "upright_accuracy": accuracy(known, x, y, size),
            "LI": float(logit_invariance_error(known, x, group, batch_size=size)),
            "LI_normalized": float(logit_invariance_error(known, x, group, normalized=True, batch_size=size)),
            "DI": float(distribution_invariance_error(known, x, group, batch_size=size)),
            "SI": float(similarity[1]),
            "consistency": float(prediction_consistency(known, x, group, batch_size=size)),
        }


def exact(model: nn.Module) -> None:
    r"""Have every tied convolution keep the bitwise contract."""
    for layer in model.modules():
        if isinstance(layer, LiftingConv2d | GroupConv2d):
            layer.algorithm = "bitwise"
