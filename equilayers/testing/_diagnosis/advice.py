r"""What is wrong with the module or function that loses the symmetry, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.testing._diagnosis.trace import Event


class Advice(NamedTuple):
    r"""Why the symmetry is lost there, and what to try."""

    why: str
    hint: str


CONVOLUTION = (
    "Take LiftingConv2d and GroupConv2d in its place, or equilayers.convert.to_equivariant for the whole model"
)
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
NORMS = Advice(
    "it has numbers of its own for every place, or for every plane of a fiber",
    "Normalise over channels, or fibers: BatchNorm2d, GroupNorm, BatchNorm3d",
)
FUNCTIONS = {
    **dict.fromkeys(("flip", "fliplr", "flipud", "rot90"), MIRRORS),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "T", "t"), AXES),
    **dict.fromkeys(("__getitem__", "__setitem__", "narrow", "select", "index_select", "gather", "scatter"), PLACES),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "diff"), ORDERED),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "max_pool3d", "avg_pool3d", "lp_pool2d"), WINDOWS),
    **dict.fromkeys(("softmax", "log_softmax", "normalize", "sort", "var", "std"), ALONG),
    **dict.fromkeys(("argmax", "argmin", "argsort", "topk"), INDICES),
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


def advice(event: Event, group: Group, *, numerical: bool) -> Advice:
    r"""Why the event loses the symmetry and what to try."""
    name = event.name.rsplit(".", 1)[-1]
    short = name.strip("_")
    if numerical:
        return Advice(AMPLIFIED if short in CASTS + STEPS else "rounding grows there", PRECISION)
    if any(t.isnan().any() for t in event.outputs):
        return Advice("it puts out what is not a number", "Keep what it is fed to where it is defined")
    if event.module is not None:
        return _of_module(event, event.module, group)
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if short in ("conv2d", "conv1d", "conv_transpose2d"):
        return _of_filters(group)
    if short in SUMS:
        why = "it combines tensors that move differently: one may be the same for every input"
        return Advice(why, "An embedding of absolute places has to go, or to be averaged over the group")
    return UNKNOWN


def _of_module(event: Event, module: nn.Module, group: Group) -> Advice:
    if isinstance(module, nn.ConvTranspose2d) and any(module.output_padding):
        why = "its output_padding adds pixels on one side alone"
        return Advice(why, "Take a kernel as even or odd as the stride, without output_padding, or nn.Upsample")
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return _of_filters(group)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _of_windows(event, group) or _of_filters(group)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d | nn.MaxPool3d | nn.AvgPool3d):
        return _of_windows(event, group) or WINDOWS
    if isinstance(module, nn.Linear | nn.Bilinear):
        return BY_PLACE
    if isinstance(module, nn.BatchNorm1d | nn.LayerNorm | nn.Embedding):
        return NORMS
    if isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        return Advice("it reads the image in one order", "Pool over the map before it")
    if isinstance(module, nn.Softmax | nn.LogSoftmax):
        return ALONG
    return PADS if hasattr(module, "padding") and type(module).__name__.endswith(("Pad2d", "Pad3d")) else UNKNOWN


def _of_filters(group: Group) -> Advice:
    if isinstance(group, CyclicTranslation):
        return Advice("it pads with something else than what comes around the edge", "Pad with padding_mode='circular'")
    return Advice("its filter is not symmetric under the group", CONVOLUTION)


def _of_windows(event: Event, group: Group) -> Advice | None:
    r"""Whether its windows lie lopsidedly on the map, and which settings do not."""
    module = event.module
    if module is None or not event.inputs or event.inputs[0].ndim < 4:
        return None
    for axis in (-1,) if group == Dihedral(1) else (-2, -1):
        settings = [_along(axis, getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")]
        if None not in settings and settings[1] != 1:
            kernel, stride, padding, dilation = (number or 0 for number in settings)
            found = _of_stride(module, group, event.inputs[0].shape[axis], kernel, stride, padding, dilation)
            if found is not None:
                return found
    return None


def _of_stride(
    module: nn.Module, group: Group, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> Advice | None:
    if isinstance(group, CyclicTranslation):
        return Advice(
            f"stride {stride} looks at every {stride} pixels, and a shift moves others there",
            "Take PolyphasePool2d for the stride, or a shift by a multiple of it",
        )
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if not isinstance(group, CyclicRotation | Dihedral) or span % stride == 0:
        return None
    sum_ = f"{size} + 2·{padding} - {dilation}·{kernel - 1} - 1 = {span}"
    why = f"stride {stride} samples {size} pixels lopsidedly: {sum_} is no multiple of {stride}"
    blur = "MaxBlurPool2d" if isinstance(module, nn.MaxPool2d | nn.MaxPool3d) else "stride 1 and BlurPool2d"
    return Advice(why, f"{_settings(size, kernel, stride, padding, dilation)}{blur}")


def _settings(size: int, kernel: int, stride: int, padding: int, dilation: int) -> str:
    r"""The nearest kernel and padding that sample the size symmetrically."""

    def out(k: int, p: int) -> float:
        return (size + 2 * p - dilation * (k - 1) - 1) / stride + 1

    wanted = int(out(kernel, padding))
    choices = [
        (k, p) for k in range(stride, kernel + 3) for p in range(padding + 2) if p <= k // 2 and out(k, p) % 1 == 0
    ]
    if not choices:
        return "Take "
    k, p = min(choices, key=lambda c: (out(*c) != wanted, abs(c[0] - kernel) + abs(c[1] - padding), -c[0]))
    return f"Take kernel {k} with padding {p}, or "


def _along(axis: int, setting: object) -> int | None:
    r"""The setting of height (-2) or width (-1); None for one in words, such as padding="same"."""
    number = setting[axis] if isinstance(setting, tuple | list) and len(setting) > 1 else setting
    number = number[0] if isinstance(number, tuple | list) else number
    return number if isinstance(number, int) else None
