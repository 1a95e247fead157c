r"""What is wrong with the module or function that loses the symmetry, and what to do about it."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.testing._diagnosis.actions import Action, candidates, distance
from equilayers.testing._diagnosis.trace import Event

FOLLOWS = 1e-5  # relative: what weights in float32 leave of a symmetry is smaller


class Advice(NamedTuple):
    r"""Why the symmetry is lost there, and what to try."""

    why: str
    hint: str


class Window(NamedTuple):
    r"""A window along one axis of a map of that size."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def span(self) -> int:
        r"""How far apart the first and the last place of the window may be."""
        return self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1


CONVERT = "Convert the whole model with equilayers.convert.to_equivariant(model, group, x)"
CONVOLUTIONS = "build it of LiftingConv2d and GroupConv2d"
STRIDES = ", with stride 1 and BlurPool2d for each stride"
UNKNOWN = Advice(
    "what comes in moves with the input, what goes out does not", "Look at what it does with places or axes"
)
MIRRORS = Advice(
    "it mirrors or turns the map, which the group does not commute with", "Drop it, or do it before the model"
)
AXES = Advice("it exchanges axes, which mirrors the image", "Keep height before width")
PLACES = Advice("it takes or writes what stands at fixed places", "Take the same from all sides, or pool over the map")
WINDOWS = Advice("its windows do not move along", "Take MaxBlurPool2d or AvgBlurPool2d")
PADS = Advice("it pads more on one side than on the other", "Pad all sides alike")
ALONG = Advice(
    "it goes along an axis, which a turn exchanges with the other", "Do it over the channels or the whole map"
)
ORDERED = Advice("it goes along an axis, from one side to the other", "Take a sum or a mean over the whole map")
INDICES = Advice("ties and places depend on the order of the entries", "Take the values themselves, not their places")
BY_PLACE = Advice(
    "each of its inputs has a weight of its own, so it reads pixels by their place",
    "Pool over the map before it (InvariantAvgPool2d), or take LiftingLinear",
)
TURNING = Advice(
    "it weighs the coordinates of places, which rotate with the image, with numbers that do not",
    "Read what a rotation leaves alone: distances between places, or from the middle of the map",
)
RESIZES = Advice(
    "it rounds places to one side, or measures them from one side",
    "Take mode='bilinear' with size= (or recompute_scale_factor=True), or enlarge by a whole number",
)
NORMS = Advice(
    "it has numbers of its own for every place, or for every plane of a fiber",
    "Normalise over channels, or fibers: BatchNorm2d, GroupNorm, BatchNorm3d",
)
COMPONENTS = Advice(
    "it treats the two components of vectors apart, or weighs them by numbers that do not turn",
    "Lift vectors first (VectorLiftingConv2d, VectorLiftingLinear) and read them out last (VectorHead), or scale both",
)
FUNCTIONS = {
    **dict.fromkeys(("flip", "fliplr", "flipud", "rot90"), MIRRORS),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "T", "t"), AXES),
    **dict.fromkeys(("__getitem__", "__setitem__", "narrow", "select", "index_select", "gather", "scatter"), PLACES),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "diff"), ORDERED),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "max_pool3d", "avg_pool3d", "lp_pool2d"), WINDOWS),
    **dict.fromkeys(("softmax", "log_softmax", "normalize", "sort", "var", "std"), ALONG),
    **dict.fromkeys(("argmax", "argmin", "argsort", "topk"), INDICES),
    **dict.fromkeys(("interpolate", "upsample", "upsample_nearest"), RESIZES),
    "layer_norm": NORMS,
    "linear": BY_PLACE,
    "pad": PADS,
    "roll": Advice("it shifts along one axis", "Drop it"),
}
AMPLIFIED = "it turns the rounding of what comes in into large steps"
PRECISION = "Compute it in float64, or in an order that the group leaves alone; TF32 and half precision round more"
CASTS = ("int", "long", "short", "byte", "bool", "to", "type")
STEPS = ("round", "floor", "ceil", "trunc", "sign", "gt", "ge", "lt", "le", "eq", "ne", "heaviside", "floor_divide")
SUMS = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "cat", "concat", "stack", "where")


READS = ("linear", "matmul", "__matmul__", "mm", "bmm", "einsum", "addmm")


def advice(event: Event, fed: Sequence[Action], group: Group, *, numerical: bool) -> Advice:
    r"""Why the event loses the symmetry and what to try; fed: how its inputs move."""
    name = event.name.rsplit(".", 1)[-1]
    short = name.strip("_")
    if numerical:
        return Advice(AMPLIFIED if short in CASTS + STEPS else "rounding grows there", PRECISION)
    if any(t.isnan().any() for t in event.outputs):
        return Advice("it puts out what is not a number", "Keep what it is fed to where it is defined")
    if any(action.anywhere for action in fed) and (name in READS or isinstance(event.module, nn.Linear)):
        return TURNING
    if any(action.mixes and not action.anywhere for action in fed):
        return COMPONENTS
    if event.module is not None:
        return _of_module(event, event.module, fed, group)
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if short in ("conv2d", "conv1d", "conv3d", "conv_transpose2d"):
        return _of_filters(group)
    if short in SUMS:
        why = "it combines tensors that move differently: one may be the same for every input"
        return Advice(why, "An embedding of absolute places has to go, or to be averaged over the group")
    return UNKNOWN


def _of_module(event: Event, module: nn.Module, fed: Sequence[Action], group: Group) -> Advice:
    if isinstance(module, nn.ConvTranspose2d) and any(module.output_padding):
        why = "its output_padding adds pixels on one side alone"
        return Advice(why, "Take a kernel as even or odd as the stride, without output_padding, or nn.Upsample")
    if isinstance(module, nn.ConvTranspose2d):
        return _of_filters(group, f"{CONVERT}, or build it of GroupConvTranspose2d")
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose3d):
        return _of_filters(group)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _of_convolution(event, module, fed, group)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d | nn.MaxPool3d | nn.AvgPool3d):
        return _of_pool(event, module, group)
    if isinstance(module, nn.Upsample):
        return RESIZES
    if isinstance(module, nn.Linear | nn.Bilinear):
        return BY_PLACE
    if isinstance(module, nn.BatchNorm1d | nn.LayerNorm | nn.Embedding):
        return NORMS
    if isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        return Advice("it reads the image in one order", "Pool over the map before it")
    if isinstance(module, nn.Softmax | nn.LogSoftmax):
        return ALONG
    return PADS if hasattr(module, "padding") and type(module).__name__.endswith(("Pad2d", "Pad3d")) else UNKNOWN


def _of_convolution(event: Event, module: nn.Module, fed: Sequence[Action], group: Group) -> Advice:
    r"""Its filter, its stride, or both; a filter that is symmetric only has to be sampled so."""
    strided = any(side != 1 for side in module.stride)  # type: ignore[union-attr]
    if isinstance(group, CyclicTranslation):
        return _along_shifts(module, strided=strided)
    lopsided = _of_stride(event, module, group)
    if lopsided and _follows_unstrided(event, module, fed, group):
        stride = _side(module, "stride")
        return Advice(
            lopsided, f"{_settings(event, module, keep=True)}stride 1 and BlurPool2d(stride={stride}) behind it"
        )
    build = CONVOLUTIONS + (STRIDES if strided else "")
    filters = _of_filters(group, f"{CONVERT}, or {build}" if isinstance(module, nn.Conv2d) else "")
    return filters._replace(why=f"{filters.why}, and {lopsided}") if lopsided else filters


def _along_shifts(module: nn.Module, *, strided: bool) -> Advice:
    stride, around = _side(module, "stride"), module.padding_mode == "circular"
    needed = "" if around and not strided else ", padding_mode='circular'"
    same = _side(module, "dilation") * (_side(module, "kernel_size") - 1)
    if strided:
        why = f"stride {stride} looks at every {stride} pixels, and a shift moves others there"
        hint = (
            f"Take stride 1, padding='same'{needed} and PolyphasePool2d({stride}) behind it, or a shift by a multiple"
        )
        return Advice(why, f"{hint} of {stride}")
    if around:
        return Advice(f"its output is smaller or larger than its input by {same} less its padding", "Pad with 'same'")
    return Advice("it pads with something else than what comes around the edge", "Pad with padding_mode='circular'")


def _follows_unstrided(event: Event, module: nn.Module, fed: Sequence[Action], group: Group) -> bool:
    r"""Whether it follows the group at stride 1."""
    x = event.inputs[0]
    with torch.no_grad(), contextlib.suppress(RuntimeError):  # of what cannot be copied
        layer = copy.deepcopy(module).to(x.dtype)
        layer.stride = (1,) * len(module.stride)  # type: ignore[arg-type]
        y = layer(x)
        for way in fed or candidates(group, x.shape, []):
            after = [layer(way.move(g, x)) for g in range(1, group.order)]
            ways = candidates(group, y.shape, [(way, x.shape)])
            if any(distance(out, y, after) <= FOLLOWS for out in ways):
                return True
    return False


def _of_filters(group: Group, hint: str = "") -> Advice:
    if not isinstance(group, CyclicRotation | Dihedral):
        return Advice("its filter does not follow the group", "Take one that does, with padding that does as well")
    return Advice("its filter is not symmetric under the group", hint or f"B{CONVOLUTIONS[1:]}")


def _of_pool(event: Event, module: nn.Module, group: Group) -> Advice:
    stride = _side(module, "stride")
    if isinstance(group, CyclicTranslation) and stride != 1:
        why = f"stride {stride} looks at every {stride} pixels, and a shift moves others there"
        return Advice(why, f"Take PolyphasePool2d({stride}) in its place, or a shift by a multiple of {stride}")
    lopsided = _of_stride(event, module, group)
    if lopsided is None:
        return WINDOWS
    blur = "MaxBlurPool2d" if isinstance(module, nn.MaxPool2d | nn.MaxPool3d) else "stride 1 and BlurPool2d"
    return Advice(lopsided, f"{_settings(event, module)}{blur}")


def _of_stride(event: Event, module: nn.Module, group: Group) -> str | None:
    r"""How its windows lie on the map, if lopsidedly."""
    if not isinstance(group, CyclicRotation | Dihedral) or not event.inputs or event.inputs[0].ndim < 4:
        return None
    for axis in (-1,) if group == Dihedral(1) else (-2, -1):
        found = _window(event, module, axis)
        if found is not None:
            size, kernel, stride, padding, dilation = found
            span = found.span
            if span % stride:
                sum_ = f"{size} + 2·{padding} - {dilation}·{kernel - 1} - 1 = {span}"
                return f"stride {stride} samples {size} pixels lopsidedly: {sum_} is no multiple of {stride}"
    return None


def _window(event: Event, module: nn.Module, axis: int) -> Window | None:
    r"""Size of the map, kernel, stride, padding and dilation along an axis; None if one of them is in words."""
    names = ("kernel_size", "stride", "padding", "dilation")
    settings = [_along(axis, getattr(module, name, 0 if name == "padding" else 1)) for name in names]
    if None in settings:
        return None
    kernel, stride, padding, dilation = (number or 0 for number in settings)
    return Window(event.inputs[0].shape[axis], kernel, stride, padding, dilation)


def _settings(event: Event, module: nn.Module, *, keep: bool = False) -> str:
    r"""The nearest kernel and padding that sample the size symmetrically; with the kernel as it is if that is kept."""
    windows = [found for axis in (-2, -1) if (found := _window(event, module, axis)) is not None]
    size, kernel, stride, padding, dilation = next(
        w for w in windows if (w[0] + 2 * w[3] - w[4] * (w[1] - 1) - 1) % w[2]
    )

    def out(k: int, p: int) -> float:
        return (size + 2 * p - dilation * (k - 1) - 1) / stride + 1

    wanted = int(out(kernel, padding))
    kernels = [kernel] if keep else range(stride, kernel + 3)
    pairs = itertools.product(kernels, range(padding + 2))
    choices = [(k, p) for k, p in pairs if p <= k // 2 and out(k, p) % 1 == 0]
    if not choices:
        return "Take "
    k, p = min(choices, key=lambda c: (out(*c) != wanted, abs(c[0] - kernel) + abs(c[1] - padding), -c[0]))
    return f"Take kernel {k} with padding {p}, or "


def _side(module: nn.Module, name: str) -> int:
    r"""A setting of the last axis."""
    return _along(-1, getattr(module, name)) or 1


def _along(axis: int, setting: object) -> int | None:
    r"""The setting of height (-2) or width (-1); None for one in words, such as padding="same"."""
    number = setting[axis] if isinstance(setting, tuple | list) and len(setting) > 1 else setting
    number = number[0] if isinstance(number, tuple | list) else number
    return number if isinstance(number, int) else None
