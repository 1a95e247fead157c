"""Every refusal of the convolutions by its type and words, and the settings that an error names do work."""

# ruff: noqa: B023 - every call is made at once

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conv_laws import MODES, Kind, Settings, each_kind, entitled, has_quarter_turns, input_of, make, misses
from equilayers.functional import group_conv2d, invariant_avg_pool2d, lift_conv2d
from equilayers.groups import CyclicRotation, CyclicTranslation, DirectProduct, Group, PermutationGroup
from equilayers.nn import GroupConv2d, InvariantAvgPool2d, LiftingConv2d
from equilayers.testing.strategies._layers import reversed_axes
from refusals import assert_refused
from strategies import C2, C4, D1, D4, S3, T3, each_group, name

WORKS = re.compile(
    r"The grid is lopsided: a rotated input would be sampled elsewhere\. What works: "
    r"(?:kernel_size=(?P<kernel>\d+) with padding=(?P<padding>\d+) or an input of (?P<axis>H=W|H|W)=(?P<length>\d+)"
    r"|an input of (?P<alone>H=W|H|W)=(?P<alone_length>\d+) or stride=1 followed by a pooling layer)\."
)

EXACT_TWO = ("orbit", "fourier")


def function_of(kind: Kind) -> Callable[..., Tensor]:
    return lift_conv2d if kind is LiftingConv2d else group_conv2d


def tensors(kind: Kind, group: Group, kernel: tuple[int, ...] = (3, 3)) -> tuple[Tensor, Tensor]:
    """An input of two channels and six pixels, and a weight of four features."""
    fiber = () if kind is LiftingConv2d else (group.order,)
    return torch.zeros(1, 2, *fiber, 6, 6), torch.zeros(4, 2, *fiber, *kernel)


SETTINGS: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    *(({key: 0}, ValueError, (f"{key} >= 1", "got 0.")) for key in ("kernel_size", "stride", "dilation", "groups")),
    ({"padding": -1}, ValueError, ("padding >= 0", "got -1.")),
    ({"padding": (0, -2)}, ValueError, ("padding >= 0", "got -2.")),
    *(
        ({key: value}, TypeError, (f"{key} to be an int", repr(value)))
        for key in ("kernel_size", "stride", "dilation", "padding")
        for value in (1.5, None, True)
    ),
    *(({key: "3"}, TypeError, (f"{key} to be an int", "'3'")) for key in ("kernel_size", "stride", "dilation")),
    *(
        ({key: value}, ValueError, (f"{key} to be an int or a pair (height, width)", f"got {value}."))
        for key in ("kernel_size", "stride", "dilation", "padding")
        for value in ((3,), (1, 1, 1), ())
    ),
    ({"stride": (1, 2.0)}, TypeError, ("stride to be an int",)),
    ({"groups": 2.0}, TypeError, ("groups to be an int",)),
    *(
        ({"padding_mode": mode}, ValueError, ("'zeros', 'reflect', 'replicate', 'circular'", f"got {mode!r}"))
        for mode in ("constant", "", None, 0)
    ),
    *(({"padding": padding}, ValueError, ("'same', 'valid'", f"got {padding!r}")) for padding in ("full", "SAME", "")),
    ({"padding": "full", "stride": 2, "kernel_size": 2}, ValueError, ("'same', 'valid'", "got 'full'")),
    ({"padding": "same", "stride": 2}, ValueError, ("stride=1 with padding='same'", "(2, 2)", "as a number")),
    ({"padding": "same", "kernel_size": 2}, ValueError, ("to be even with padding='same'", "take an odd one")),
    *(
        ({key: (1, 2)}, ValueError, (f"{key} alike along both axes for Dihedral(4)", "got (1, 2).", "turn swaps"))
        for key in ("kernel_size", "stride", "dilation", "padding")
    ),
]


@each_kind
@pytest.mark.parametrize(("settings", "error", "words"), SETTINGS, ids=str)
def test_bad_settings(kind: Kind, settings: dict[str, Any], error: type[Exception], words: tuple[str, ...]) -> None:
    assert_refused(lambda: kind(D4, 2, 4, **({"kernel_size": 3} | settings)), error, kind.__name__, *words)
    function, (x, weight) = function_of(kind), tensors(kind, D4)
    if "kernel_size" not in settings:  # which a function reads from the weight
        assert_refused(lambda: function(x, weight, None, D4, **settings), error, function.__name__, *words)


def test_settings_that_are_accepted() -> None:
    """What looks like the refused ones: pairs of any kind, numbers of other libraries, padding in words."""
    layer = LiftingConv2d(C2, 2, 4, [3, 5], torch.Size((2, 1)), (1, 2), torch.tensor(2), 2)  # type: ignore[arg-type]
    assert layer.spec.kernel_size == (3, 5)
    assert layer.spec.stride == (2, 1)
    assert layer.spec.dilation == (2, 2)
    for padding, kernel, dilation, expected in (
        ("same", 3, 1, (1, 1)),
        ("same", 2, 2, (1, 1)),
        ("same", 1, 3, (0, 0)),
        ("same", (3, 5), (2, 1), (2, 2)),
        ("valid", 3, 1, (0, 0)),
        ("valid", 2, 3, (0, 0)),
    ):
        layer = LiftingConv2d(C2, 2, 4, kernel, padding=padding, dilation=dilation)
        assert layer.spec.padding == expected
        plain = nn.Conv2d(2, 4, kernel, padding=padding, dilation=dilation)
        assert layer(torch.zeros(1, 2, 9, 8)).shape[-2:] == plain(torch.zeros(1, 2, 9, 8)).shape[-2:]


@each_kind
def test_bad_layer_arguments(kind: Kind) -> None:
    caller = kind.__name__
    for group in (4, 4.5, None, CyclicRotation):
        assert_refused(lambda: kind(group, 2, 4, 3), TypeError, caller, "group of equilayers.groups")
    for group in PLANELESS:
        assert_refused(lambda: kind(group, 2, 4, 3), ValueError, caller, "CyclicRotation or Dihedral", *ABOUT_SHIFTS)
    for place, argument in enumerate(("in_channels", "out_channels")):
        channels = lambda value, p=place: [value if p == i else 6 for i in range(2)]  # noqa: E731
        assert_refused(lambda: kind(C4, *channels(0), 3), ValueError, caller, f"{argument} >= 1", "got 0.")
        for value in (2.5, "3", None, True):
            assert_refused(lambda: kind(C4, *channels(value), 3), TypeError, caller, f"{argument} to be an int")
        words = (f"{argument} divisible by groups=3", "got 4.", "Change one of them.")
        assert_refused(lambda: kind(C4, *channels(4), 3, groups=3), ValueError, caller, *words)
    for algorithm in ("fft", "", None):
        words = ("'auto', 'bitwise', 'orbit', 'dense', 'fourier'", repr(algorithm))
        assert_refused(lambda: kind(C4, 2, 4, 3, algorithm=algorithm), ValueError, caller, *words)


PLANELESS: list[Group] = [T3, PermutationGroup([[1, 0]]), S3, DirectProduct(C2, CyclicTranslation(2))]
ABOUT_SHIFTS = ("Shifts need no tying", "padding_mode='circular'")


@each_kind
def test_bad_groups_weights_and_algorithms_of_the_functions(kind: Kind) -> None:
    function, (x, weight) = function_of(kind), tensors(kind, C4)
    caller = function.__name__
    for group in (4, None):
        assert_refused(lambda: function(x, weight, None, group), TypeError, caller, "group of equilayers.groups")
    for group in PLANELESS:
        words = ("CyclicRotation or Dihedral", repr(group), *ABOUT_SHIFTS)
        assert_refused(lambda: function(x, weight, None, group), ValueError, caller, *words)
    for algorithm in ("fft", "", None):
        words = ("'auto', 'bitwise', 'orbit', 'dense', 'fourier'", repr(algorithm))
        assert_refused(lambda: function(x, weight, None, C4, algorithm=algorithm), ValueError, caller, *words)
    words = ("output channels divisible by groups=3", "got 4.")
    assert_refused(lambda: function(x.repeat_interleave(3, 1), weight, None, C4, groups=3), ValueError, caller, *words)
    layout = "(O, C, kh, kw)" if kind is LiftingConv2d else "(O, C, |G|, kh, kw)"
    for shape in ((3, 3), (2, 3, 3), (1, 1, 1, 1, 3, 3)):
        words = (f"weight of shape {layout}", f"got {shape}.")
        assert_refused(lambda: function(x, torch.zeros(shape), None, C4), ValueError, caller, *words)
    other = tensors(LiftingConv2d if kind is GroupConv2d else GroupConv2d, C4)[1]
    assert_refused(lambda: function(x, other, None, C4), ValueError, caller, layout, f"got {tuple(other.shape)}")
    assert_refused(lambda: function(x, weight[..., :0], None, C4), ValueError, caller, "kernel_size >= 1", "got 0.")
    if kind is GroupConv2d:
        words = ("weight with axis 2 of length 4", "got (4, 2, 2, 3, 3).", "fiber of the group")
        assert_refused(lambda: function(x, weight[:, :, :2], None, C4), ValueError, caller, *words)


@each_kind
def test_bad_inputs(kind: Kind) -> None:
    layer, function, (x, weight) = kind(C4, 2, 4, 3), function_of(kind), tensors(kind, C4)
    symbol, layout = ("x", "(B, 2, H, W)") if kind is LiftingConv2d else ("f", "(B, 2, 4, H, W)")
    hint = "Add a batch axis" if kind is LiftingConv2d else "Lift images with LiftingConv2d"
    calls = {kind.__name__: layer, function.__name__: lambda x: function(x, weight, None, C4)}
    lifting, tied = [(1, 2, 4, 6, 6)], [(1, 2, 6, 6), (1, 2, 3, 6, 6), (1, 3, 4, 6, 6), (1, 2, 8, 6, 6)]
    shapes = [(2, 6, 6), (1, 3, 6, 6), (1, 2, 4, 1, 6, 6), (6, 6), (), *(lifting if kind is LiftingConv2d else tied)]
    for caller, call in calls.items():
        assert_refused(lambda: call([1.0]), TypeError, caller, f"{symbol} to be a torch.Tensor", "got list")
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
            words = (f"{symbol} to be floating-point", f"got {dtype}")
            assert_refused(lambda: call(x.to(dtype)), TypeError, caller, *words)
        for dtype in (torch.float64, torch.float16):
            words = (f"{symbol} of the weight's dtype torch.float32", f"got {dtype}.")
            assert_refused(lambda: call(x.to(dtype)), TypeError, caller, *words)
        for shape in shapes:
            words = (f"{symbol} of shape {layout}", f"got {shape}.", hint)
            assert_refused(lambda: call(torch.zeros(shape)), ValueError, caller, *words)


@each_kind
def test_maps_smaller_than_the_kernel(kind: Kind) -> None:
    for size, kernel, padding, dilation in ((2, 3, 0, 1), (4, 7, 1, 1), (4, 3, 0, 2), (0, 1, 0, 1)):
        layer = kind(C4, 2, 4, kernel, padding=padding, dilation=dilation)
        reach, x = dilation * (kernel - 1) + 1, tensors(kind, C4)[0][..., :size, :size]
        words = (f"H + 2·padding >= {reach}", "the reach of the kernel", f"H={size}, padding={padding}", "Pad more, or")
        assert_refused(lambda: layer(x), ValueError, kind.__name__, *words)
    layer = kind(D1, 2, 4, (1, 3))
    words = ("W + 2·padding >= 3", "W=2, padding=0")
    assert_refused(lambda: layer(tensors(kind, D1)[0][..., :2]), ValueError, kind.__name__, *words)


@each_kind
def test_padding_larger_than_the_map(kind: Kind) -> None:
    for mode, most in (("reflect", 2), ("circular", 3)):
        for group in (C4, D1):
            x = tensors(kind, group)[0][..., :3, :3]
            assert kind(group, 2, 4, 3, padding=most, padding_mode=mode)(x).shape[-1] == 1 + 2 * most
            layer = kind(group, 2, 4, 3, padding=most + 1, padding_mode=mode)
            words = (f"padding <= {most} for padding_mode={mode!r} at H=3", f"got {most + 1}.", "which have no limit")
            assert_refused(lambda: layer(x), ValueError, kind.__name__, *words)
    for mode in ("zeros", "replicate"):
        x = tensors(kind, C4)[0][..., :3, :3]
        assert kind(C4, 2, 4, 3, padding=9, padding_mode=mode)(x).shape[-2:] == (19, 19)


def settings_named(message: str, s: Settings, group: Group) -> list[Settings]:
    """The two settings that the error names, brought into those it complained about."""
    match = WORKS.search(message)
    assert match, message
    length, axis = int(match["length"] or match["alone_length"]), match["axis"] or match["alone"]
    size = {"H=W": (length, length), "H": (length, s.size[1]), "W": (s.size[0], length)}[axis]
    if match["kernel"] is None:
        return [s._replace(size=size), s._replace(stride=(1, 1))]
    alone = {"H=W": (0, 1), "H": (0,), "W": (1,)}[axis]
    put = lambda new, old: tuple(int(new) if i in alone else old[i] for i in range(2))  # noqa: E731
    kernel, padding = put(match["kernel"], s.kernel_size), put(match["padding"], s.padding)
    return [s._replace(kernel_size=kernel, padding=padding), s._replace(size=size)]


def lopsided(group: Group) -> list[Settings]:
    """Every lopsided grid of small maps and kernels."""
    found = []
    axes = product(range(4, 10), range(2, 5), range(1, 5), range(3), (1, 2), MODES)
    for number, (size, stride, kernel, padding, dilation, mode) in enumerate(axes):
        other = size if has_quarter_turns(group) else size + number % 3
        s = Settings((size, other), *((v, v) for v in (kernel, stride, padding, dilation)), 1, mode)
        if entitled(group, s) == {"The grid is lopsided"}:
            found.append(s)
    return found


def refusal(layer: nn.Module, x: Tensor) -> str:
    with pytest.raises(ValueError, match="lopsided") as caught:
        layer(x)
    return str(caught.value)


@each_kind
@each_group
def test_the_settings_that_a_lopsided_grid_names_work(group: Group, kind: Kind) -> None:
    """Each is taken and exact; where height and width are both at fault, they are named one after the other."""
    cases = lopsided(group)
    assert len(cases) > 300
    for number, s in enumerate(cases[kind is GroupConv2d :: 14 * group.order + 2]):  # fewer where it takes longer
        layer = make(kind, group, 1, 1, s, EXACT_TWO[number % 2])
        x = input_of(layer, s.size, 1)
        message, room = refusal(layer, x), s.sampling_spans()
        axis = next(axis for axis in reversed_axes(group) if room[axis] % s.stride[axis])
        letter = "HW"[axis]
        formula = f"{letter} + 2·padding - dilation·(kernel_size - 1) - 1"
        start = f"{kind.__name__}: expected {formula} to be a multiple of the stride {s.stride[axis]}, "
        assert message.startswith(f"{start}got {room[axis]} at {letter}={s.size[axis]}. ")
        for option in settings_named(message, s, group):
            assert_works(kind, group, option, EXACT_TWO[number % 2], axis)


def assert_works(kind: Kind, group: Group, s: Settings, algorithm: str, axis: int) -> None:
    """The layer with these settings takes its input and is exact; or it has the other axis to complain about."""
    layer = make(kind, group, 1, 1, s, algorithm)
    x = input_of(layer, s.size, 1)
    if s.sampling_spans()[1] % s.stride[1] and axis == 0 and not has_quarter_turns(group):
        for option in settings_named(refusal(layer, x), s, group):
            assert_works(kind, group, option, algorithm, axis=1)
        return
    assert misses(layer, group, x) == []


@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_numbers_alike_along_both_axes_can_be_passed_as_they_are_named(group: Group) -> None:
    """Word for word: `kernel_size=3 with padding=0` and `an input of H=W=7`."""
    message = refusal(LiftingConv2d(group, 1, 2, 3, 2, 1), torch.randn(1, 1, 8, 8))
    assert "What works: kernel_size=4 with padding=1 or an input of H=W=9." in message
    for layer, size in ((LiftingConv2d(group, 1, 2, 4, 2, 1), 8), (LiftingConv2d(group, 1, 2, 3, 2, 1), 9)):
        layer.algorithm = "bitwise"
        assert misses(layer, group, torch.randn(2, 1, size, size)) == []


def test_where_no_kernel_works_the_error_says_stride_1() -> None:
    message = refusal(LiftingConv2d(C4, 1, 2, 3, 2, 1, dilation=2), torch.randn(1, 1, 8, 8))
    assert message.endswith("What works: an input of H=W=9 or stride=1 followed by a pooling layer.")


def test_the_map_mean() -> None:
    pool = InvariantAvgPool2d()
    for call in (pool, invariant_avg_pool2d):
        assert_refused(lambda: call([1.0]), TypeError, "invariant_avg_pool2d", "x to be a torch.Tensor", "got list")
        for dtype in (torch.int64, torch.bool, torch.complex64):
            words, x = ("floating-point", f"got {dtype}"), torch.zeros(1, 2, 3, 3).to(dtype)
            assert_refused(lambda: call(x), TypeError, "invariant_avg_pool2d", *words)
        for shape in ((3,), (), (1, 2, 0, 3), (2, 0)):
            words = ("(..., H, W), H and W positive", f"got {shape}.")
            assert_refused(lambda: call(torch.zeros(shape)), ValueError, "invariant_avg_pool2d", *words)
