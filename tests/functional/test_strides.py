"""Strided convolutions that sample symmetrically at every size: values, the law, what is not so, and refusals."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conv_laws import MODES, has_quarter_turns, misses, worst
from equilayers.convert import to_plain
from equilayers.functional.strides import align
from equilayers.groups import Group
from equilayers.nn import BlurConv2d
from refusals import assert_refused
from strategies import C2, C4, D1, D2, D4, filled, name

# kernel_size, stride, padding, dilation
SETTINGS = [
    (3, 2, 1, 1),
    (1, 2, 0, 1),
    (2, 2, 0, 1),
    (3, 3, 1, 1),
    (5, 3, 0, 2),
    (4, 4, 2, 1),
    (1, 3, 1, 1),
    (7, 2, 3, 1),
]


def reference(conv: nn.Conv2d, x: Tensor, padding: int, mode: str) -> Tensor:
    """Convolved at every pixel, and of that the places in the middle, or the mean of the two that are next to it."""
    stride, (_, _, kernel, _) = conv.stride[0], conv.weight.shape
    x = F.pad(x, (padding,) * 4, mode="constant" if mode == "zeros" else mode)
    y = F.conv2d(x, conv.weight, conv.bias, 1, 0, conv.dilation)
    for dim in (-2, -1):
        room = x.shape[dim] - conv.dilation[0] * (kernel - 1) - 1
        first, rest = divmod(room % stride, 2)
        places = torch.arange(first, room + 1 - rest, stride)[: room // stride + 1]
        y = (y.index_select(dim, places) + y.index_select(dim, places + rest)) / 2
    return y


def module(group: Group | None, settings: tuple[int, int, int, int], mode: str) -> BlurConv2d:
    kernel, stride, padding, dilation = settings
    channels = 9 if group is None else 2  # more than are blurred one way, and fewer
    return BlurConv2d(
        *(group, channels, 3, kernel, stride, padding, dilation),
        padding_mode=mode,
        activation=nn.Identity(),
        order="symmetric-stride",
        dtype=torch.float64,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_values_sizes_and_plain_form(settings: tuple[int, int, int, int], mode: str) -> None:
    layer = module(None, settings, mode)
    kernel, stride, padding, dilation = settings
    plain = to_plain(layer)
    for size in itertools.product((9, 10, 11, 12), (9, 13)):
        x = filled((2, 9, *size), torch.float64)
        y = layer(x)
        assert y.shape == F.conv2d(x, layer.conv.weight, None, stride, padding, dilation).shape
        torch.testing.assert_close(y, reference(layer.conv, x, padding, mode) if kernel > 1 or padding else y)
        torch.testing.assert_close(plain(x), y, atol=1e-12, rtol=1e-12)
        if (kernel, padding) == (1, 0):  # subsampled before it
            conv = nn.Conv2d(9, 3, 1, stride, dtype=torch.float64)
            conv.weight, conv.bias = layer.conv.weight, layer.conv.bias
            torch.testing.assert_close(y, reference(conv, x, 0, mode))
    x = filled((1, 9, 9, 10), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)  # the layer is linear: random directions show all of it


@pytest.mark.parametrize("group", [C2, C4, D1, D2, D4], ids=name)
def test_the_law_at_every_size(group: Group) -> None:
    for settings, mode in itertools.product(SETTINGS, ("zeros", "reflect")):
        layer = module(group, settings, mode)
        assert layer.exactness == "rounding"
        for size in range(9, 15):
            f = filled((1, 2, group.order, size, size if has_quarter_turns(group) else 11), torch.float64)
            assert worst(layer, group, f) <= 32
    layer = module(group, (3, 2, 1, 1), "zeros")
    layer.conv.algorithm = "bitwise"
    assert layer.before is not None
    layer.before = layer.before.with_algorithm("BlurConv2d", "bitwise")
    for size in (8, 9):
        assert misses(layer, group, filled((2, 2, group.order, size, size), torch.float64)) == []
    lopsided = replace(layer.before, axes=())
    f = filled((1, 2, group.order, 8, 8), torch.float64)
    assert worst(lambda f: layer.conv(align("align", f, lopsided)), group, f) > 1e6


def test_features_with_channels_innermost_and_no_samples() -> None:
    layer = module(C4, (3, 2, 1, 1), "zeros")
    f = filled((2, 8, 8, 4, 2), torch.float64).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(layer(f), layer(f.contiguous()))
    assert layer(f[:0]).shape == (0, 3, 4, 4, 4)


def test_refusals() -> None:
    caller, order = "BlurConv2d", "symmetric-stride"
    for taps in (3, (1.0, 2.0, 1.0)):
        words = ("taps='auto' with order='symmetric-stride'", "one tap or two")
        assert_refused(lambda: BlurConv2d(C4, 2, 2, 3, taps=taps, order=order), ValueError, caller, *words)  # noqa: B023
    assert_refused(lambda: BlurConv2d(C4, 2, 2, (3, 5), order=order), ValueError, caller, "kernel_size alike")
    layer = BlurConv2d(None, 2, 2, 5, order=order)
    words = ("H + 2·padding >= 5", "H=4, padding=0")
    assert_refused(lambda: layer(torch.zeros(1, 2, 4, 4)), ValueError, caller, *words)
    assert_refused(lambda: layer(torch.zeros(4, 4)), ValueError, caller, "(..., C, H, W)")
    assert_refused(lambda: layer(torch.zeros(1, 2, 8, 8).long()), TypeError, caller, "floating-point")
