r"""Saliency as the paper has it, with the choices it leaves open."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.data import Dataset
from baselines.study.runs import Source
from equilayers.groups import CyclicTranslation, Group
from equilayers.metrics import integrated_gradients_saliency

Saliency = Callable[..., Tensor]
BASELINES = ("zero", "black")
TARGETS = ("logit", "log-softmax")


def saliency_of(source: Source, data: Dataset) -> Saliency:
    r"""`integrated_gradients_saliency` from the baseline and of the target that the source names."""
    if (source.saliency_baseline, source.saliency_target) == (BASELINES[0], TARGETS[0]):
        return integrated_gradients_saliency
    baseline, of_logit = start_of_path(source.saliency_baseline, data), source.saliency_target == TARGETS[0]

    def saliency(model: nn.Module, x: Tensor, target: Tensor, group: Group) -> Tensor:
        # A path to x from the baseline is one from zero for the network of x - baseline.
        def explained(z: Tensor) -> Tensor:
            y: Tensor = model(z + baseline)
            return y if of_logit else y.log_softmax(-1)

        return integrated_gradients_saliency(explained, x - baseline, target, group)

    return saliency


def start_of_path(baseline: str, data: Dataset) -> float:
    r"""The pixel value that integrated gradients begin at: 0, the mean grey, or black."""
    return 0.0 if baseline == "zero" else -data.mean / data.std


def attributions(model: nn.Module, x: Tensor, target: Tensor, baseline: float, *, of_logit: bool) -> Tensor:
    r"""|Integrated gradients| of images x (N, C, H, W) of classes (N,), before any threshold or blur."""
    from captum.attr import IntegratedGradients

    def explained(z: Tensor) -> Tensor:
        y: Tensor = model(z)
        return y if of_logit else y.log_softmax(-1)

    found: Tensor = IntegratedGradients(explained).attribute(x, baseline, target=target, n_steps=50)
    return found.detach().abs()


def shown(map_: Tensor, group: Group, threshold: float, *, blur: bool) -> Tensor:
    r"""A map (N, C, H, W) without what is under a share of its maximum, and blurred by a Gaussian of 3x3, sigma 1."""
    kept = torch.where(map_ < threshold * map_.flatten(1).amax(1)[:, None, None, None], 0, map_)
    if not blur:
        return kept
    side = torch.tensor([-1.0, 0.0, 1.0], dtype=kept.dtype).square().div(-2).exp()
    kernel = (side[:, None] * side / side.sum() ** 2).expand(kept.shape[1], 1, 3, 3)
    mode = "circular" if isinstance(group, CyclicTranslation) else "constant"
    return F.conv2d(F.pad(kept, (1, 1, 1, 1), mode=mode), kernel, groups=kept.shape[1])
