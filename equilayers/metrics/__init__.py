r"""Measures of invariance and equivariance for any model: functions, and torchmetrics classes of the same stems.

The classes need torchmetrics and are imported when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

from equilayers.metrics._deformation import DeformationCurve, deformation_stability
from equilayers.metrics._equivariance import entry_gaps as entry_gaps
from equilayers.metrics._equivariance import equivariance_error
from equilayers.metrics._equivariance import equivariance_gaps as equivariance_gaps
from equilayers.metrics._invariance import GAPS as GAPS
from equilayers.metrics._invariance import cosine as cosine
from equilayers.metrics._invariance import (
    distribution_invariance_error,
    logit_invariance_error,
    prediction_consistency,
)
from equilayers.metrics._invariance_gap import InvarianceGap, invariance_gap
from equilayers.metrics._jacobian import jacobian_singular_values, jacobian_spectral_norm
from equilayers.metrics._orbit import compared_elements as compared_elements
from equilayers.metrics._orbit import logits_of as logits_of
from equilayers.metrics._rotation import RotationErrorCurve, rotation_error_curve
from equilayers.metrics._saliency import integrated_gradients_saliency, saliency_invariance_similarity
from equilayers.metrics._shift import shift_consistency, shift_wobble
from equilayers.metrics._singular_values import SingularTriplets
from equilayers.metrics._warp import displacement_gradient_norm, random_displacement, warp

if TYPE_CHECKING:
    from equilayers.metrics._torchmetrics import (
        DeformationStability,
        DistributionInvarianceError,
        EquivarianceError,
        JacobianSpectralNorm,
        LogitInvarianceError,
        PredictionConsistency,
        SaliencyInvarianceSimilarity,
        ShiftConsistency,
        ShiftWobble,
    )

__all__ = [
    "DeformationCurve",
    "DeformationStability",
    "DistributionInvarianceError",
    "EquivarianceError",
    "InvarianceGap",
    "JacobianSpectralNorm",
    "LogitInvarianceError",
    "PredictionConsistency",
    "RotationErrorCurve",
    "SaliencyInvarianceSimilarity",
    "ShiftConsistency",
    "ShiftWobble",
    "SingularTriplets",
    "deformation_stability",
    "displacement_gradient_norm",
    "distribution_invariance_error",
    "equivariance_error",
    "integrated_gradients_saliency",
    "invariance_gap",
    "jacobian_singular_values",
    "jacobian_spectral_norm",
    "logit_invariance_error",
    "prediction_consistency",
    "random_displacement",
    "rotation_error_curve",
    "saliency_invariance_similarity",
    "shift_consistency",
    "shift_wobble",
    "warp",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from equilayers.metrics import _torchmetrics
    except ImportError as error:
        hint = "Run pip install 'equilayers[metrics]'."
        raise ImportError(f"equilayers.metrics.{name}: expected torchmetrics to be installed. {hint}") from error
    return getattr(_torchmetrics, name)
