"""The linear layers as modules: state and dtypes; how they are copied, moved and run, test_shipping.py tries."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from equilayers.functional import group_linear, lift_linear
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.nn import GroupLinear, LiftingLinear, OrbitPool
from strategies import PERMUTATIONS, S3, algorithms_of, name

C4, D4, T3 = CyclicRotation(4), Dihedral(4), CyclicTranslation(3)
GROUPS: list[Group] = [C4, D4, T3, CyclicTranslation(4), S3]
CASES = [(group, algorithm) for group in GROUPS for algorithm in algorithms_of(group)]

each_group = pytest.mark.parametrize("group", GROUPS, ids=name)


def layers(group: Group, algorithm: str = "auto", **kwargs: object) -> list[tuple[nn.Module, Tensor]]:
    """One layer of each kind, with an input of odd sizes."""
    space = (3,) if group in PERMUTATIONS else ((6, 6) if isinstance(group, CyclicTranslation) else (5, 5))
    space = (8,) if group == CyclicTranslation(4) else space
    lifting = LiftingLinear(group, space, 7, algorithm=algorithm, **kwargs)  # type: ignore[arg-type]
    tied = GroupLinear(group, 3, 7, algorithm=algorithm, **kwargs)  # type: ignore[arg-type]
    return [(lifting, torch.randn(5, *space)), (tied, torch.randn(5, 3, group.order))]


@each_group
def test_state_dict_holds_weight_and_bias_alone(group: Group) -> None:
    for layer, x in layers(group):
        shapes = {"weight": (7, *x.shape[1:]), "bias": (7,)}
        for mode in (layer.train(), layer.eval()):
            mode(x)
            assert {k: tuple(v.shape) for k, v in mode.state_dict().items()} == shapes
            assert {k: tuple(v.shape) for k, v in mode.named_parameters()} == shapes
        assert layer.train()(x).equal(layer.eval()(x))
    for layer, _ in layers(group, bias=False):
        assert list(layer.state_dict()) == ["weight"]
        assert layer.bias is None
    assert not OrbitPool().state_dict()


@each_group
def test_layer_is_its_function(group: Group) -> None:
    for (layer, x), function in zip(layers(group), (lift_linear, group_linear), strict=True):
        weight, bias = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
        y = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        assert torch.equal(y, function(x, weight, bias, group))
        assert not torch.equal(y, layer(x))


@each_group
def test_to_float64(group: Group) -> None:
    for layer, x in layers(group):
        y = layer(x)
        wide = layer.to(torch.float64)(x.double())
        assert wide.dtype == torch.float64
        torch.testing.assert_close(wide.float(), y, atol=1e-5, rtol=1e-5)
    for layer, x in layers(group, dtype=torch.float64):
        assert layer.weight.dtype == layer(x.double()).dtype == torch.float64
    for layer, _ in layers(group, device="meta"):
        assert layer.weight.is_meta
        assert layer.bias.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "algorithm"), CASES, ids=lambda v: v if isinstance(v, str) else name(v))
def test_half_precision_layers(group: Group, dtype: torch.dtype, algorithm: str) -> None:
    for layer, x in layers(group, algorithm):
        y = layer(x)
        half = layer.to(dtype)(x.to(dtype))
        assert half.dtype == dtype
        assert (half.float() - y).abs().max() < 16 * torch.finfo(dtype).eps * y.abs().max()


@each_group
def test_repr_and_exactness(group: Group) -> None:
    for algorithm, level in {"bitwise": "bitwise", "orbit": "bitwise", "auto": "rounding", "dense": "rounding"}.items():
        for layer, _ in layers(group, algorithm):
            assert layer.exactness == level
            assert f"{type(layer).__name__}({group!r}, in_" in repr(layer)
            assert f"out_features=7, bias=True, algorithm='{algorithm}'" in repr(layer)
    assert repr(OrbitPool("norm")) == "OrbitPool('norm')"
