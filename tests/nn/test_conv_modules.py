"""The convolution layers as modules: state, dtypes, memory; test_shipping.py copies, moves and runs them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from conv_laws import ALGORITHMS, KINDS, Kind, misses
from equilayers.functional import group_conv2d, lift_conv2d
from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.nn import InvariantAvgPool2d, LiftingConv2d
from strategies import name

C4, D1, D4 = CyclicRotation(4), Dihedral(1), Dihedral(4)

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_group = pytest.mark.parametrize("group", [CyclicRotation(1), C4, D1], ids=name)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def make(kind: Kind, group: Group, algorithm: str = "auto", **more: Any) -> tuple[nn.Module, Tensor]:
    """A layer with a little of everything, and an input of odd sizes."""
    arguments = {"stride": 2, "padding": 1, "groups": 2, "padding_mode": "reflect"} | more
    layer = kind(group, 2, 6, 3, algorithm=algorithm, **arguments)
    fiber = () if kind is LiftingConv2d else (group.order,)
    return layer, torch.randn(5, 2, *fiber, 7, 7)


@each_kind
@each_group
def test_state_dict_holds_weight_and_bias_alone(group: Group, kind: Kind) -> None:
    layer, x = make(kind, group)
    shapes = {"weight": (6, 1, *x.shape[2:-2], 3, 3), "bias": (6,)}
    for mode in (layer.train(), layer.eval()):
        for context in (torch.enable_grad(), torch.no_grad()):
            with context:
                mode(x)
            assert {k: tuple(v.shape) for k, v in mode.state_dict().items()} == shapes
            assert {k: tuple(v.shape) for k, v in mode.named_parameters()} == shapes
            assert list(mode.buffers()) == list(mode.children()) == []
    unbiased, _ = make(kind, group, bias=False)
    assert list(unbiased.state_dict()) == ["weight"]
    assert unbiased.bias is None
    assert unbiased(x).shape == layer(x).shape
    assert not InvariantAvgPool2d().state_dict()


@each_kind
@each_group
@each_algorithm
def test_layer_is_its_function(group: Group, kind: Kind, algorithm: str) -> None:
    layer, x = make(kind, group, algorithm)
    function = lift_conv2d if kind is LiftingConv2d else group_conv2d
    weight, bias = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
    settings = {"stride": 2, "padding": 1, "groups": 2, "padding_mode": "reflect", "algorithm": algorithm}
    y = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
    assert torch.equal(y, function(x, weight, bias, group, **settings))
    assert not torch.equal(y, layer(x))
    assert torch.equal(layer(x), function(x, layer.weight, layer.bias, group, **settings))


@each_kind
@each_group
def test_the_algorithm_may_be_switched_between_calls(group: Group, kind: Kind) -> None:
    layer, x = make(kind, group, dtype=torch.float64)
    x = x.double()
    expected = layer(x).detach()
    for context in (torch.no_grad(), torch.enable_grad(), torch.no_grad()):
        with context:
            for algorithm in (*ALGORITHMS, *reversed(ALGORITHMS), "dense", "fourier", "dense"):
                layer.algorithm = algorithm
                assert layer.exactness == ("rounding" if algorithm in ("auto", "dense") else "bitwise")
                for _ in range(2):
                    torch.testing.assert_close(layer(x).detach(), expected, atol=1e-12, rtol=1e-12)


@each_kind
@each_group
@each_algorithm
def test_dtypes(group: Group, kind: Kind, algorithm: str) -> None:
    layer, x = make(kind, group, algorithm)
    y = layer(x)
    wide = copy.deepcopy(layer).to(torch.float64)(x.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), y, atol=1e-5, rtol=1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert half.dtype == dtype
        assert (half.float() - y).abs().max() < 16 * torch.finfo(dtype).eps * y.abs().max()
    made, _ = make(kind, group, algorithm, dtype=torch.float64)
    assert made.weight.dtype == made.bias.dtype == torch.float64
    made, _ = make(kind, group, algorithm, device="meta")
    assert made.weight.is_meta
    assert made.bias.is_meta


@each_kind
@each_group
@each_algorithm
def test_memory_formats(group: Group, kind: Kind, algorithm: str) -> None:
    layer, x = make(kind, group, algorithm)
    y = layer(x)
    memory_format = torch.channels_last if kind is LiftingConv2d else torch.channels_last_3d
    other = x.to(memory_format=memory_format)
    assert other.is_contiguous(memory_format=memory_format)
    for each in (layer, copy.deepcopy(layer).to(memory_format=memory_format)):
        for given in (x, other, x.mT.clone().mT, x[..., ::2, :].repeat_interleave(2, -2)[..., :7, :]):
            expected = layer(given.contiguous())
            torch.testing.assert_close(each(given), expected, atol=1e-5, rtol=1e-5)
            if layer.exactness == "bitwise" and group.order > 1:
                assert misses(each, group, given) == []
    assert torch.equal(layer(x), y)


@each_kind
def test_repr_and_exactness(kind: Kind) -> None:
    levels = {"auto": "rounding", "dense": "rounding", "bitwise": "bitwise", "orbit": "bitwise", "fourier": "bitwise"}
    for algorithm, level in levels.items():
        layer, _ = make(kind, D4, algorithm)
        assert layer.exactness == level
        start = f"{kind.__name__}(Dihedral(4), 2, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, "
        assert repr(layer) == f"{start}padding_mode='reflect', bias=True, algorithm='{algorithm}')"
    plain = kind(C4, 2, 6, 3, dilation=2, bias=False)
    assert repr(plain) == (
        f"{kind.__name__}(CyclicRotation(4), 2, 6, kernel_size=(3, 3), dilation=(2, 2), bias=False, algorithm='auto')"
    )
    assert repr(InvariantAvgPool2d()) == "InvariantAvgPool2d()"
    assert InvariantAvgPool2d().exactness == "bitwise"
