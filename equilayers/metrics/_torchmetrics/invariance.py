r"""The measures as torchmetrics classes, which accumulate over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from equilayers.groups import Group
from equilayers.metrics._forms import agreement, distribution_gap, logit_gap, normalized_logit_gap
from equilayers.metrics._jacobian import jacobian_spectral_norm
from equilayers.metrics._orbit import Compare, Model, Total, orbit_total
from equilayers.metrics._saliency import Saliency, integrated_gradients_saliency, saliency_total


class _OrbitMean(Metric):
    r"""A mean over samples and elements: a float64 sum and a count, added over batches and processes.

    The states are named after the measure and its settings: a MetricCollection takes metrics whose states agree, as
    the zeros of an exact model do, for one and the same.
    """

    full_state_update = False

    def __init__(
        self, group: Group | str, *, batch_size: int | None = None, include_identity: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.group = group
        self.batch_size = batch_size
        self.include_identity = include_identity
        self._prefix = f"{self.stem}({group!r}, {include_identity})"
        self.add_state(f"{self._prefix}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(f"{self._prefix}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def stem(self) -> str:
        r"""The measure's own name."""
        return type(self).__name__

    def add(self, total: Total) -> None:
        r"""Add a sum over pairs to what was seen so far."""
        for state, value in ((f"{self._prefix}_sum", total.sum), (f"{self._prefix}_count", total.count)):
            setattr(self, state, getattr(self, state) + value)

    def compute(self) -> Tensor:
        r"""The mean over all pairs seen, a scalar of the default dtype."""
        mean = getattr(self, f"{self._prefix}_sum") / getattr(self, f"{self._prefix}_count")
        return mean.to(torch.get_default_dtype())


class JacobianSpectralNorm(Metric):
    r"""The mean of `equilayers.metrics.jacobian_spectral_norm` over the samples of all `update(model, x)`.

    Args:
        method, batch_size, tolerance, seed: as of the function.
    """

    full_state_update = False
    higher_is_better = None
    spectral_norm_sum: Tensor
    spectral_norm_count: Tensor

    def __init__(
        self,
        *,
        method: str = "auto",
        batch_size: int | None = None,
        tolerance: float = 1e-6,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.method, self.batch_size, self.tolerance, self.seed = method, batch_size, tolerance, seed
        self.add_state("spectral_norm_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("spectral_norm_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ...) as seen by the model."""
        norms = jacobian_spectral_norm(
            model, x, self.method, batch_size=self.batch_size, tolerance=self.tolerance, seed=self.seed
        )
        self.spectral_norm_sum += norms.double().sum()
        self.spectral_norm_count += len(norms)

    def compute(self) -> Tensor:
        r"""The mean over all samples seen, a scalar of the default dtype."""
        return (self.spectral_norm_sum / self.spectral_norm_count).to(torch.get_default_dtype())


class _LogitMean(_OrbitMean):
    def compare(self) -> Compare:
        raise TypeError("_LogitMean: expected a subclass with a comparison, got the base. Use a public class.")

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ...) as seen by the model."""
        caller, compare = type(self).__name__, self.compare()
        size, identity = self.batch_size, self.include_identity
        self.add(orbit_total(caller, model, x, self.group, compare, batch_size=size, include_identity=identity))


class LogitInvarianceError(_LogitMean):
    r"""`equilayers.metrics.logit_invariance_error` accumulated over `update(model, x)`."""

    higher_is_better = False

    def __init__(self, group: Group | str, *, normalized: bool = False, **kwargs: Any) -> None:
        self._normalized = normalized  # torch.nn.Module allows a plain bool before its own __init__
        super().__init__(group, **kwargs)

    @property
    def stem(self) -> str:
        return f"Normalized{type(self).__name__}" if self._normalized else type(self).__name__

    def compare(self) -> Compare:
        return normalized_logit_gap if self._normalized else logit_gap


class DistributionInvarianceError(_LogitMean):
    r"""`equilayers.metrics.distribution_invariance_error` accumulated over `update(model, x)`."""

    higher_is_better = False

    def compare(self) -> Compare:
        return distribution_gap


class PredictionConsistency(_LogitMean):
    r"""`equilayers.metrics.prediction_consistency` accumulated over `update(model, x)`."""

    higher_is_better = True

    def compare(self) -> Compare:
        return agreement


class SaliencyInvarianceSimilarity(_OrbitMean):
    r"""`equilayers.metrics.saliency_invariance_similarity` accumulated over `update(model, x, target)`."""

    higher_is_better = True

    def __init__(
        self, group: Group | str, *, saliency: Saliency = integrated_gradients_saliency, **kwargs: Any
    ) -> None:
        self._saliency_name = str(getattr(saliency, "__qualname__", type(saliency).__name__))
        super().__init__(group, **kwargs)
        self.saliency = saliency

    @property
    def stem(self) -> str:
        return f"{type(self).__name__} of {self._saliency_name}"

    def update(self, model: Model, x: Tensor, target: Tensor) -> None:
        r"""Add the samples x (B, ...) with classes target (B,) as seen by the model."""
        self.add(saliency_total(model, x, target, self.group, self.saliency, self.batch_size, self.include_identity))
