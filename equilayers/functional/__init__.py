r"""All the mathematics, as functions of plain tensors."""

from equilayers.functional._attention import group_attention
from equilayers.functional._blur_pool import avg_blur_pool2d, blur_pool2d, max_blur_pool2d
from equilayers.functional._blur_pool import blur_pool as blur_pool
from equilayers.functional._conv import convolve as convolve
from equilayers.functional._conv import group_conv2d, lift_conv2d
from equilayers.functional._convolution.filters import expand as expand
from equilayers.functional._convolution.geometry import ConvSettings as ConvSettings
from equilayers.functional._convolution.geometry import ConvSpec as ConvSpec
from equilayers.functional._convolution.geometry import check_plane_group as check_plane_group
from equilayers.functional._convolution.geometry import check_size as check_size
from equilayers.functional._convolution.geometry import conv_spec as conv_spec
from equilayers.functional._harmonic import check_harmonic as check_harmonic
from equilayers.functional._harmonic import check_orders as check_orders
from equilayers.functional._harmonic import harmonic_filter as harmonic_filter
from equilayers.functional._harmonic import harmonic_magnitude, rotate_harmonic
from equilayers.functional._harmonic import harmonic_terms as harmonic_terms
from equilayers.functional._harmonic import scale_magnitude as scale_magnitude
from equilayers.functional._harmonic import square_magnitude as square_magnitude
from equilayers.functional._linear import LinearSpec as LinearSpec
from equilayers.functional._linear import expand_matrix as expand_matrix
from equilayers.functional._linear import group_linear, lift_linear
from equilayers.functional._linear import linear as linear
from equilayers.functional._linear import linear_spec as linear_spec
from equilayers.functional._norm import group_layer_norm, group_rms_norm
from equilayers.functional._polyphase import check_polyphase as check_polyphase
from equilayers.functional._polyphase import polyphase_pool2d, polyphase_unpool2d
from equilayers.functional._pool import ORBIT_REDUCTIONS as ORBIT_REDUCTIONS
from equilayers.functional._pool import invariant_avg_pool2d, orbit_pool
from equilayers.functional._position import (
    position_embedding,
    prepend_tokens,
    relative_position_bias,
    relative_position_orbits,
    rotary_embedding,
    rotary_tables,
    rotate_pairs,
)
from equilayers.functional._resample import custom_ops as custom_ops
from equilayers.functional._resample.axes import BlurSpec as BlurSpec
from equilayers.functional._resample.axes import binomial as binomial
from equilayers.functional._resample.axes import blur_spec as blur_spec
from equilayers.functional._reynolds import check_average as check_average
from equilayers.functional._reynolds import reynolds
from equilayers.functional._steerable_basis import basis as basis
from equilayers.functional._steerable_basis import draw_steered as draw_steered
from equilayers.functional._weight_cache import WeightCache as WeightCache
from equilayers.functional._weight_cache import is_plain as is_plain
from equilayers.functional._windows import window_mask, window_merge, window_partition
from equilayers.groups import rotate

__all__ = [
    "avg_blur_pool2d",
    "blur_pool2d",
    "group_attention",
    "group_conv2d",
    "group_layer_norm",
    "group_linear",
    "group_rms_norm",
    "harmonic_magnitude",
    "invariant_avg_pool2d",
    "lift_conv2d",
    "lift_linear",
    "max_blur_pool2d",
    "orbit_pool",
    "polyphase_pool2d",
    "polyphase_unpool2d",
    "position_embedding",
    "prepend_tokens",
    "relative_position_bias",
    "relative_position_orbits",
    "reynolds",
    "rotary_embedding",
    "rotary_tables",
    "rotate",
    "rotate_harmonic",
    "rotate_pairs",
    "window_mask",
    "window_merge",
    "window_partition",
]
