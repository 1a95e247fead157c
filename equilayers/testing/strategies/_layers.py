r"""Layers of equilayers with inputs they accept, as hypothesis draws them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from equilayers._checks import check_int, refuse
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group, as_group
from equilayers.groups.vectors import AXES
from equilayers.testing.strategies._tensors import FEW, spaces, tensors

Pair = tuple[int, int]
Shape = tuple[int, ...]
Settings = dict[str, Any]
Kind = Callable[..., nn.Module]
Maker = Callable[[st.DrawFn, Kind, Group], tuple[nn.Module, Shape]]
MODES = ("zeros", "reflect", "replicate", "circular")
ALGORITHMS = ("auto", "bitwise", "orbit", "dense", "fourier")
VECTOR_ALGORITHMS = ("auto", "bitwise", "orbit", "dense")
CONVOLUTION_ALGORITHMS = ("auto", "bitwise", "orbit", "dense", "fourier")


def reversed_axes(group: Group) -> Shape:
    r"""The axes, 0 down and 1 right, that some element of a group of turns and mirrors reverses."""
    if group.order == 1:
        return ()
    return (1,) if group == Dihedral(1) else (0, 1)


def _turns(group: Group) -> bool:
    return isinstance(group, CyclicRotation | Dihedral) and group.n == 4


def _plane(caller: str, group: Group) -> Group:
    if not isinstance(group, CyclicRotation | Dihedral):
        refuse(caller, "group to be CyclicRotation or Dihedral", repr(group), "Draw one with groups(CyclicRotation).")
    return group


def _pair(draw: st.DrawFn, group: Group, number: st.SearchStrategy[int]) -> Pair:
    r"""Height and width, alike where the group exchanges them."""
    height = draw(number)
    return height, height if _turns(group) else draw(number)


def conv_settings(group: Group, *, max_stride: int = 3) -> st.SearchStrategy[tuple[Pair, Settings]]:
    r"""A size (H, W), and settings of a convolution that samples it symmetrically.

    `H + 2·padding - dilation·(kernel_size - 1) - 1` is a multiple of the stride along the axes that the group reverses,
    and the padding is one that its mode allows.

    Args:
        group: CyclicRotation or Dihedral.
        max_stride: the largest stride.

    Returns:
        Of (H, W), and kernel_size, stride, padding, dilation (pairs) and padding_mode, as torch.nn.Conv2d takes them.

    Raises:
        ValueError: a group of another kind.
    """
    check_int("conv_settings", "max_stride", max_stride, 1)
    return _conv_settings(_plane("conv_settings", as_group("conv_settings", group)), max_stride)


@st.composite
def _conv_settings(draw: st.DrawFn, group: Group, max_stride: int) -> tuple[Pair, Settings]:
    reverses = reversed_axes(group)
    mode = draw(st.sampled_from(MODES))

    def axis(symmetric: bool) -> tuple[int, ...]:
        kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, max_stride)), draw(st.integers(1, 2))
        padding, steps = draw(st.integers(0, 3)), draw(st.integers(0, 4))
        length = stride * steps + dilation * (kernel - 1) + 1 - 2 * padding
        length += 0 if symmetric else draw(st.integers(0, stride - 1))
        least = max(1, {"reflect": padding + 1, "circular": padding}.get(mode, 1))
        return length + stride * max(0, math.ceil((least - length) / stride)), kernel, stride, padding, dilation

    down = axis(0 in reverses)
    size, *pairs = zip(down, down if _turns(group) else axis(1 in reverses), strict=True)
    names = ("kernel_size", "stride", "padding", "dilation")
    return size, {**dict(zip(names, pairs, strict=True)), "padding_mode": mode}


def _convolution(draw: st.DrawFn, kind: Kind, group: Group, fiber: Shape) -> tuple[nn.Module, Shape]:
    size, settings = draw(conv_settings(group))
    channel_groups = draw(FEW)
    inputs, outputs = (channel_groups * draw(st.integers(1, 2)) for _ in range(2))
    settings |= {"bias": draw(st.booleans()), "algorithm": draw(st.sampled_from(CONVOLUTION_ALGORITHMS))}
    return kind(group, inputs, outputs, groups=channel_groups, **settings), (inputs, *fiber, *size)


def _lifting_conv(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    return _convolution(draw, kind, group, ())


def _group_conv(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    return _convolution(draw, kind, group, (group.order,))


def _transposed(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    r"""Taps enough that an output is left; pixels appended where the group does not reverse the axis."""
    channel_groups, counts = draw(FEW), [draw(st.integers(1, 2)) for _ in range(2)]
    names = {"kernel_size": (2, 4), "stride": (1, 3), "dilation": (1, 2), "padding": (0, 1)}
    settings: Settings = {name: _pair(draw, group, st.integers(*ends)) for name, ends in names.items()}
    extra = [draw(st.integers(0, settings["stride"][axis] - 1)) for axis in (0, 1)]
    settings["output_padding"] = tuple(0 if axis in reversed_axes(group) else extra[axis] for axis in (0, 1))
    settings |= {"bias": draw(st.booleans()), "algorithm": draw(st.sampled_from(["auto", "bitwise", "orbit", "dense"]))}
    inputs, outputs = (channel_groups * count for count in counts)
    size = _pair(draw, group, st.integers(2, 5))
    return kind(group, inputs, outputs, groups=channel_groups, **settings), (inputs, group.order, *size)


def _upsample(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    mode = draw(st.sampled_from(["nearest", "bilinear", "bicubic"]))
    factor = FEW if mode == "nearest" else st.sampled_from([0.75, 1.5, 2.0, 3.0])
    settings: Settings = {"scale_factor": _pair(draw, group, factor), "mode": mode}  # type: ignore[arg-type]
    settings["algorithm"] = draw(st.sampled_from(["auto", "bitwise"]))
    if mode != "nearest":
        settings["align_corners"] = draw(st.booleans())
    return kind(**settings), _map(draw, group, _pair(draw, group, st.integers(3, 8)))


def _algorithm(draw: st.DrawFn, group: Group) -> str:
    r"""Of a linear layer; the Fourier transform of products and of permutations is not known."""
    fourier = group.order == 1 or isinstance(group, CyclicRotation | Dihedral | CyclicTranslation)
    return draw(st.sampled_from(["auto", "bitwise", "orbit", "dense", *(["fourier"] if fourier else [])]))


def _lifting_linear(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    shape = (*draw(st.sampled_from([(), (1,), (2,)])), *draw(spaces(group, 8)))
    return kind(group, shape, draw(FEW), bias=draw(st.booleans()), algorithm=_algorithm(draw, group)), shape


def _group_linear(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    fields, positions = draw(FEW), draw(st.one_of(st.just(()), spaces(group, 6)))
    layer = kind(group, fields, draw(FEW), bias=draw(st.booleans()), algorithm=draw(st.sampled_from(ALGORITHMS)))
    return layer, (fields, group.order, *positions)


def _vector_lifting_conv(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    size, settings = draw(conv_settings(group))
    fields, settings["axes"] = draw(FEW), draw(st.sampled_from(AXES))
    settings |= {"bias": draw(st.booleans()), "algorithm": draw(st.sampled_from(VECTOR_ALGORITHMS))}
    return kind(group, fields, draw(FEW), **settings), (fields, 2, *size)


def _at_vectors(draw: st.DrawFn, kind: Kind, group: Group, fiber: int) -> tuple[nn.Module, Shape]:
    settings = {"axes": draw(st.sampled_from(AXES)), "algorithm": draw(st.sampled_from(VECTOR_ALGORITHMS))}
    fields, positions = draw(FEW), draw(st.one_of(st.just(()), spaces(group, 6, ndim=2)))
    return kind(group, fields, draw(FEW), **settings), (fields, fiber, *positions)


def _vector_lifting_linear(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    return _at_vectors(draw, kind, group, 2)


def _vector_head(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    return _at_vectors(draw, kind, group, group.order)


def _norm(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    features = draw(st.integers(2, 4))
    return kind(features), (features, group.order, *draw(spaces(group, 6)))


def _position_embedding(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    features, size = draw(FEW), draw(spaces(group, 8))
    return kind(group, features, size), (features, group.order, *size)


def _orbit_pool(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    space = draw(st.one_of(st.just(()), spaces(group, 8, ndim=2)))
    return kind(draw(st.sampled_from(["max", "mean", "logsumexp", "norm"]))), (draw(FEW), group.order, *space)


def _map(draw: st.DrawFn, group: Group, size: Pair) -> Shape:
    r"""Channels, and perhaps a fiber, before the size."""
    return (draw(FEW), *draw(st.sampled_from([(), (group.order,)])), *size)


def _average(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    return kind(), _map(draw, group, _pair(draw, group, st.integers(1, 12)))


def _blur(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    return _blurred_windows(draw, kind, group, windows=False)


def _blurred_windows(draw: st.DrawFn, kind: Kind, group: Group, *, windows: bool = True) -> tuple[nn.Module, Shape]:
    settings: Settings = {"stride": _pair(draw, group, FEW), "padding_mode": draw(st.sampled_from(MODES))}
    settings["algorithm"] = draw(st.sampled_from(["bitwise", "dense"]))
    if windows:
        settings["kernel_size"] = draw(FEW)
    least = settings.get("kernel_size", 1)
    return kind(**settings), _map(draw, group, _pair(draw, group, st.integers(least, 12)))


def _blur_conv(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    size, settings = draw(conv_settings(group, max_stride=1))
    stride = _pair(draw, group, FEW)
    settings |= {"stride": stride, "conv_padding_mode": settings["padding_mode"]}
    settings["order"] = draw(st.sampled_from(["conv-activation-blur", "blur-conv-activation", "symmetric-stride"]))
    if settings["order"] == "blur-conv-activation":  # the convolution reads the small map
        size = size[0] * stride[0], size[1] * stride[1]
    fields = draw(FEW)
    return kind(group, fields, draw(FEW), bias=draw(st.booleans()), **settings), (fields, group.order, *size)


def _polyphase(draw: st.DrawFn, kind: Kind, group: Group) -> tuple[nn.Module, Shape]:
    stride, times = _pair(draw, group, FEW), _pair(draw, group, st.integers(1, 4))
    layer = kind(stride, draw(st.sampled_from([1.0, 2.0, 3.0, math.inf])))
    return layer, _map(draw, group, (stride[0] * times[0], stride[1] * times[1]))


MAKERS: dict[str, Maker] = {
    "LiftingConv2d": _lifting_conv,
    "GroupConv2d": _group_conv,
    "GroupConvTranspose2d": _transposed,
    "GroupUpsample": _upsample,
    "VectorLiftingConv2d": _vector_lifting_conv,
    "VectorLiftingLinear": _vector_lifting_linear,
    "VectorHead": _vector_head,
    "LiftingLinear": _lifting_linear,
    "GroupLinear": _group_linear,
    "GroupLayerNorm": _norm,
    "GroupRMSNorm": _norm,
    "GroupPositionEmbedding": _position_embedding,
    "OrbitPool": _orbit_pool,
    "InvariantAvgPool2d": _average,
    "BlurPool2d": _blur,
    "MaxBlurPool2d": _blurred_windows,
    "AvgBlurPool2d": _blurred_windows,
    "BlurConv2d": _blur_conv,
    "PolyphasePool2d": _polyphase,
}
# What picks the largest has none to prefer of components that tie and that the group exchanges; what divides by a
# deviation is only as exact as the deviation is large.
UNTIED = ("PolyphasePool2d", "GroupLayerNorm", "GroupRMSNorm")
OF_ANY_GROUP = ("LiftingLinear", "GroupLinear", "GroupLayerNorm", "GroupRMSNorm", "GroupPositionEmbedding", "OrbitPool")


def layers(
    kind: type[nn.Module], group: Group, *, dtype: torch.dtype = torch.float32
) -> st.SearchStrategy[tuple[nn.Module, Tensor]]:
    r"""A layer of this class with settings that it allows, and an input (B, ...) that it accepts.

    The input is an image, moved by `group.act`, for LiftingLinear and LiftingConv2d; a regular feature, moved by
    `group.act_regular`, for GroupLinear, GroupConv2d, GroupConvTranspose2d, norms, position embeddings, OrbitPool,
    BlurConv2d and VectorHead; vectors, moved by `group.act_vectors` with the `axes` of the `spec`, for those that lift
    vectors; for the other pools and GroupUpsample an image where it has 4 axes, a regular feature where it has 5.
    Weights and inputs shrink to zeros and small whole numbers, but for the inputs of norms and PolyphasePool2d, which
    may not tie. Layers with attention are not drawn: a softmax turns the rounding of large scores into errors of any
    size.

    Args:
        kind: a layer of `equilayers.nn`, or a class derived from one that is made in the same way.
        group: the symmetry; CyclicRotation or Dihedral for convolutions and pools of maps.
        dtype: of weights and input.

    Returns:
        Of the layer and its input.

    Raises:
        TypeError: a class of another kind, or group is no group.
        ValueError: a group that the layer is not exact for.
    """
    caller = "layers"
    group = as_group(caller, group)
    bases = [base.__name__ for base in getattr(kind, "__mro__", ()) if base.__module__.startswith("equilayers.nn.")]
    name = next((base for base in bases if base in MAKERS), None)
    if name is None:
        hint = "For a layer of your own draw images(group) or features(group)."
        refuse(caller, f"kind among {', '.join(MAKERS)}", repr(kind), hint, TypeError)
    if name not in OF_ANY_GROUP:
        _plane(f"{caller} of {name}", group)
    return _layers(name, kind, group, dtype)


@st.composite
def _layers(
    draw: st.DrawFn, name: str, kind: type[nn.Module], group: Group, dtype: torch.dtype
) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):  # the usual weights are not kept, and should cost nobody their seed
        layer, shape = MAKERS[name](draw, kind, group)
    layer.to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(draw(tensors(tuple(parameter.shape), dtype)))
    return layer, draw(tensors((draw(FEW), *shape), dtype, tied=name not in UNTIED))
