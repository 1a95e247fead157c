r"""Maps made ready for a strided convolution, so that it samples them symmetrically at every size.

Output i of an axis reads `s·i - p` and the pixels after it, and r = (H + 2p - d(k-1) - 1) mod s pixels at the end are
not read. The grid is symmetric when half of what is left over lies on either side: for an even r the maps are shifted
by r / 2 pixels. For an odd r the middle lies between two pixels, and the maps are blurred by the two-pixel mean, which
is there: the filter behind it is, in effect, blurred and one pixel larger. So no more is blurred than the parity of the
size asks for, and the convolution computes no more than it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import Pair, check_choice, check_float, overridable, refuse, widened
from equilayers.functional._convolution.geometry import ConvSpec, reversed_axes
from equilayers.functional._resample.axes import Axis
from equilayers.functional._resample.blur import blur_bitwise, blur_densely

ALGORITHMS = ("auto", "bitwise", "dense")  # of the blur
FEW_CHANNELS = 8  # of which a depthwise convolution makes little use


@dataclass(frozen=True)
class StrideSpec:
    r"""The settings of a convolution that say where it samples; pairs are (height, width).

    spans: d(k-1), how many pixels beyond the first a filter reaches. axes: those that are to be symmetric, 0 and 1.
    algorithm: of the blur.
    """

    spans: Pair
    stride: Pair
    padding: Pair
    padding_mode: str = "zeros"
    axes: tuple[int, ...] = (0, 1)
    algorithm: str = "dense"

    def with_algorithm(self, caller: str, algorithm: str) -> StrideSpec:
        r"""The same with another algorithm, which is checked."""
        return replace(self, algorithm=check_choice(caller, "algorithm", algorithm, ALGORITHMS))

    @property
    def pointwise(self) -> bool:
        r"""Whether a filter reads one pixel: then the maps made ready are as small as the output."""
        return self.spans == self.padding == (0, 0)

    def axis(self, dim: int, length: int) -> Axis:
        r"""What is read of an axis of this length, blurred where its parity asks for it."""
        span, stride, pad, mode = self.spans[dim], self.stride[dim], self.padding[dim], self.padding_mode
        room = length + 2 * pad - span - 1
        rest = room % stride if dim in self.axes else 0
        weights = (1.0, 1.0) if rest % 2 else (1.0,)
        count = room // stride + 1
        if self.pointwise:
            return Axis(weights, rest // 2, stride, count, length, mode)
        return Axis(weights, rest // 2 - pad, 1, (count - 1) * stride + span + 1, length, mode)


def split(conv: ConvSpec) -> tuple[StrideSpec, ConvSpec]:
    r"""The settings of `align` before a convolution, and those that are left to it."""
    before = StrideSpec(conv.spans, conv.stride, conv.padding, conv.padding_mode, reversed_axes(conv.group))
    stride = (1, 1) if before.pointwise else conv.stride
    return before, replace(conv, stride=stride, padding=(0, 0), padding_mode="zeros")


@overridable
def align(caller: str, x: Tensor, spec: StrideSpec) -> Tensor:
    r"""Maps (..., H, W) for the convolution of these settings without padding: padded, cropped and blurred.

    For a pointwise one they are subsampled as well, and it is to be done at stride 1.

    Law: `conv(align(act(g, x))) == act(g, conv(align(x)))` for every rotation and mirror, if it holds at stride 1.
    """
    check_float(caller, "x", x)
    if x.ndim < 3 or 0 in x.shape[-2:]:
        refuse(caller, "x of shape (..., C, H, W), H and W positive", tuple(x.shape), "Pass a batch of maps.")
    if torch.compiler.is_compiling():
        return _of_any_size(x, spec)
    axes = spec.axis(0, x.shape[-2]), spec.axis(1, x.shape[-1])
    for name, axis, span, pad in zip("HW", axes, spec.spans, spec.padding, strict=True):
        if axis.count < 1 or axis.length + 2 * pad < span + 1:
            hint = "Pad more, or take a smaller kernel or dilation."
            got = f"{name}={axis.length}, padding={pad}"
            refuse(caller, f"{name} + 2·padding >= {span + 1}, the reach of the kernel", got, hint)
    if all(axis == Axis((1.0,), 0, 1, axis.length, axis.length, axis.mode) for axis in axes) or x.numel() == 0:
        return x if x.numel() else x.new_empty(*x.shape[:-2], axes[0].count, axes[1].count)
    in_order = spec.algorithm == "bitwise" or x.shape[1:-2].numel() < FEW_CHANNELS
    return (blur_bitwise if in_order else blur_densely)(widened(x), axes).to(x.dtype)


def _of_any_size(x: Tensor, spec: StrideSpec) -> Tensor:
    r"""The same in torch's plainest operations, for a compiler, to which sizes may be symbols."""
    (ph, pw), maps = spec.padding, x.flatten(1, -3)
    if ph or pw:
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        maps = F.pad(maps, (pw, pw, ph, ph), mode=mode)
    for dim, span, stride in ((2, spec.spans[0], spec.stride[0]), (3, spec.spans[1], spec.stride[1])):
        room = maps.shape[dim] - span - 1
        rest = room % stride if dim - 2 in spec.axes else 0
        count = room // stride * stride + span + 1
        first = maps.narrow(dim, rest // 2, count)
        maps = (first + maps.narrow(dim, rest // 2 + 1, count)) / 2 if rest % 2 else first
        if spec.pointwise:
            maps = maps[:, :, ::stride] if dim == 2 else maps[..., ::stride]
    return maps.unflatten(1, x.shape[1:-2])
