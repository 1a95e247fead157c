r"""The layers: parameters, checks and one call of `equilayers.functional` each."""

from equilayers.nn._algorithm import set_algorithm
from equilayers.nn._attention import GroupMultiheadAttention
from equilayers.nn._blur_conv import BlurConv2d
from equilayers.nn._blur_pool import AvgBlurPool2d, BlurPool2d, MaxBlurPool2d
from equilayers.nn._conv import GroupConv2d, LiftingConv2d
from equilayers.nn._harmonic import HarmonicConv2d
from equilayers.nn._harmonic_activation import HarmonicBatchNorm, HarmonicMagnitude, HarmonicNonlinearity
from equilayers.nn._heads import GroupAttentionPool, InvariantHead
from equilayers.nn._linear import GroupLinear, LiftingLinear
from equilayers.nn._norm import GroupLayerNorm, GroupRMSNorm
from equilayers.nn._polyphase import PolyphasePool2d, PolyphaseUnpool2d
from equilayers.nn._pool import InvariantAvgPool2d, OrbitPool
from equilayers.nn._position import (
    GroupPositionEmbedding,
    GroupRelativePositionBias,
    GroupRotaryEmbedding,
    GroupTokens,
)
from equilayers.nn._transformer import GroupFeedForward, GroupTransformerEncoder, GroupTransformerEncoderLayer
from equilayers.nn._upsample import GroupConvTranspose2d, GroupUpsample
from equilayers.nn._vectors import AngleHead, VectorHead, VectorLiftingConv2d, VectorLiftingLinear

__all__ = [
    "AngleHead",
    "AvgBlurPool2d",
    "BlurConv2d",
    "BlurPool2d",
    "GroupAttentionPool",
    "GroupConv2d",
    "GroupConvTranspose2d",
    "GroupFeedForward",
    "GroupLayerNorm",
    "GroupLinear",
    "GroupMultiheadAttention",
    "GroupPositionEmbedding",
    "GroupRMSNorm",
    "GroupRelativePositionBias",
    "GroupRotaryEmbedding",
    "GroupTokens",
    "GroupTransformerEncoder",
    "GroupTransformerEncoderLayer",
    "GroupUpsample",
    "HarmonicBatchNorm",
    "HarmonicConv2d",
    "HarmonicMagnitude",
    "HarmonicNonlinearity",
    "InvariantAvgPool2d",
    "InvariantHead",
    "LiftingConv2d",
    "LiftingLinear",
    "MaxBlurPool2d",
    "OrbitPool",
    "PolyphasePool2d",
    "PolyphaseUnpool2d",
    "VectorHead",
    "VectorLiftingConv2d",
    "VectorLiftingLinear",
    "set_algorithm",
]
