"""The weight-tied layers as modules: state, dtypes, memory; test_shipping.py copies, moves and runs them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from conv_laws import ALGORITHMS, KINDS
from equilayers.functional import group_conv2d, group_linear, lift_conv2d, lift_linear
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.nn import GroupConv2d, GroupLinear, InvariantAvgPool2d, LiftingConv2d, LiftingLinear, OrbitPool
from strategies import S3, algorithms_of, name

C1, C4, D1, D4, T3, T4 = *map(CyclicRotation, (1, 4)), *map(Dihedral, (1, 4)), *map(CyclicTranslation, (3, 4))
SPACES: dict[Group, tuple[int, ...]] = {C4: (5, 5), D4: (5, 5), T3: (6, 6), T4: (8,), S3: (3,)}
SETTINGS: dict[str, Any] = {"stride": 2, "padding": 1, "groups": 2, "padding_mode": "reflect"}
FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    LiftingConv2d: lift_conv2d,
    GroupConv2d: group_conv2d,
    LiftingLinear: lift_linear,
    GroupLinear: group_linear,
}
CASES = [(kind, group) for kind in FUNCTIONS for group in ((C1, C4, D1) if kind in KINDS else SPACES)]

each = pytest.mark.parametrize(("kind", "group"), CASES, ids=lambda v: v.__name__ if isinstance(v, type) else name(v))


def make(kind: type[nn.Module], group: Group, algorithm: str = "auto", **more: Any) -> tuple[nn.Module, Tensor]:
    """A layer with a little of everything, and an input of odd sizes."""
    if kind in KINDS:
        fiber = () if kind is LiftingConv2d else (group.order,)
        return kind(group, 2, 6, 3, algorithm=algorithm, **SETTINGS, **more), torch.randn(5, 2, *fiber, 7, 7)
    if kind is LiftingLinear:
        return kind(group, SPACES[group], 7, algorithm=algorithm, **more), torch.randn(5, *SPACES[group])
    return kind(group, 3, 7, algorithm=algorithm, **more), torch.randn(5, 3, group.order)


def algorithms(kind: type[nn.Module], group: Group) -> list[str]:
    return [*ALGORITHMS] if kind in KINDS else [*algorithms_of(group)]


@each
def test_state_dict_holds_weight_and_bias_alone(kind: type[nn.Module], group: Group) -> None:
    layer, x = make(kind, group)
    size = (6, 1, *x.shape[2:-2], 3, 3) if kind in KINDS else (7, *x.shape[1:])
    shapes = {"weight": size, "bias": size[:1]}
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
    assert not InvariantAvgPool2d().state_dict() | OrbitPool().state_dict()


@each
def test_layer_is_its_function(kind: type[nn.Module], group: Group) -> None:
    for algorithm in algorithms(kind, group):
        layer, x = make(kind, group, algorithm)
        settings = {"algorithm": algorithm} | (SETTINGS if kind in KINDS else {})
        weight, bias = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
        y = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        assert torch.equal(y, FUNCTIONS[kind](x, weight, bias, group, **settings))
        assert not torch.equal(y, layer(x))
        assert torch.equal(layer(x), FUNCTIONS[kind](x, layer.weight, layer.bias, group, **settings))


@each
def test_the_algorithm_may_be_switched_between_calls(kind: type[nn.Module], group: Group) -> None:
    layer, x = make(kind, group, dtype=torch.float64)
    x, names = x.double(), algorithms(kind, group)
    expected = layer(x).detach()
    for context in (torch.no_grad(), torch.enable_grad(), torch.no_grad()):
        with context:
            for algorithm in (*names, *reversed(names), "dense", names[-1], "dense"):
                layer.algorithm = algorithm
                assert layer.exactness == ("rounding" if algorithm in ("auto", "dense") else "bitwise")
                for _ in range(2):
                    torch.testing.assert_close(layer(x).detach(), expected, atol=1e-12, rtol=1e-12)


@each
def test_dtypes(kind: type[nn.Module], group: Group) -> None:
    for algorithm in algorithms(kind, group):
        layer, x = make(kind, group, algorithm)
        y = layer(x)
        double = copy.deepcopy(layer).to(torch.float64)(x.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), y, atol=1e-5, rtol=1e-5)
        for dtype in (torch.bfloat16, torch.float16):
            half = copy.deepcopy(layer).to(dtype)(x.to(dtype))
            assert half.dtype == dtype
            assert (half.float() - y).abs().max() < 16 * torch.finfo(dtype).eps * y.abs().max()
    made, _ = make(kind, group, dtype=torch.float64)
    assert made.weight.dtype == made.bias.dtype == made(x.double()).dtype == torch.float64
    made, _ = make(kind, group, device="meta")
    assert made.weight.is_meta
    assert made.bias.is_meta


def test_repr_and_exactness() -> None:
    levels = {"auto": "rounding", "dense": "rounding", "bitwise": "bitwise", "orbit": "bitwise", "fourier": "bitwise"}
    for algorithm, level in levels.items():
        for kind in KINDS:
            layer, _ = make(kind, D4, algorithm)
            assert layer.exactness == level
            start = f"{kind.__name__}(Dihedral(4), 2, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, "
            assert repr(layer) == f"{start}padding_mode='reflect', bias=True, algorithm='{algorithm}')"
        for kind, size in ((LiftingLinear, "in_shape=(5, 5)"), (GroupLinear, "in_features=3")):
            layer, _ = make(kind, D4, algorithm)
            assert layer.exactness == level
            end = f"{size}, out_features=7, bias=True, algorithm='{algorithm}')"
            assert repr(layer) == f"{kind.__name__}(Dihedral(4), {end}"
    end = "2, 6, kernel_size=(3, 3), dilation=(2, 2), bias=False, algorithm='auto')"
    assert repr(GroupConv2d(C4, 2, 6, 3, dilation=2, bias=False)) == f"GroupConv2d(CyclicRotation(4), {end}"
    assert repr(InvariantAvgPool2d()) == "InvariantAvgPool2d()"
    assert InvariantAvgPool2d().exactness == "bitwise"
    assert repr(OrbitPool("norm")) == "OrbitPool('norm')"
