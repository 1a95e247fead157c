r"""All the mathematics, as functions of plain tensors."""

from equilayers.functional._blur_pool import avg_blur_pool2d, blur_pool2d, max_blur_pool2d
from equilayers.functional._conv import group_conv2d, lift_conv2d
from equilayers.functional._harmonic import harmonic_magnitude, rotate_harmonic
from equilayers.functional._linear import group_linear, lift_linear
from equilayers.functional._polyphase import polyphase_pool2d, polyphase_unpool2d
from equilayers.functional._pool import invariant_avg_pool2d, orbit_pool
from equilayers.functional._resample import custom_ops as custom_ops
from equilayers.functional._reynolds import reynolds
from equilayers.groups import rotate

__all__ = [
    "avg_blur_pool2d",
    "blur_pool2d",
    "group_conv2d",
    "group_linear",
    "harmonic_magnitude",
    "invariant_avg_pool2d",
    "lift_conv2d",
    "lift_linear",
    "max_blur_pool2d",
    "orbit_pool",
    "polyphase_pool2d",
    "polyphase_unpool2d",
    "reynolds",
    "rotate",
    "rotate_harmonic",
]
