r"""Measures of invariance for any model: functions, and torchmetrics classes of the same stems.

The classes need torchmetrics and are imported when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

from equilayers.metrics._errors import (
    distribution_invariance_error,
    logit_invariance_error,
    prediction_consistency,
)
from equilayers.metrics._saliency import integrated_gradients_saliency, saliency_invariance_similarity

if TYPE_CHECKING:
    from equilayers.metrics._classes import (
        DistributionInvarianceError,
        LogitInvarianceError,
        PredictionConsistency,
        SaliencyInvarianceSimilarity,
    )

__all__ = [
    "DistributionInvarianceError",
    "LogitInvarianceError",
    "PredictionConsistency",
    "SaliencyInvarianceSimilarity",
    "distribution_invariance_error",
    "integrated_gradients_saliency",
    "logit_invariance_error",
    "prediction_consistency",
    "saliency_invariance_similarity",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from equilayers.metrics import _classes
    except ImportError as error:
        todo = "Run pip install 'equilayers[metrics]'."
        raise ImportError(f"equilayers.metrics.{name}: expected torchmetrics to be installed. {todo}") from error
    return getattr(_classes, name)
