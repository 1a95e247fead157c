"""The layers as modules: state, copies, devices, compilation, autocast."""

import copy
import io
import pickle
import shutil
from collections.abc import Callable

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
def test_copies_and_saved_states_compute_the_same(group: Group) -> None:
    for (layer, x), (other, _) in zip(layers(group), layers(group), strict=True):
        y = layer(x)
        assert not torch.equal(other(x), y)
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), y)
            assert repr(twin) == repr(layer)
        with torch.no_grad():
            copy.deepcopy(layer).weight.zero_()
        assert torch.equal(layer(x), y)


@each_group
def test_layer_is_its_function(group: Group) -> None:
    for (layer, x), function in zip(layers(group), (lift_linear, group_linear), strict=True):
        weight, bias = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
        y = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        assert torch.equal(y, function(x, weight, bias, group))
        assert not torch.equal(y, layer(x))


@each_group
def test_meta_device_then_empty_then_reset(group: Group) -> None:
    for layer, x in layers(group, device="meta"):
        assert layer.weight.is_meta
        layer.to_empty(device="cpu")
        torch.manual_seed(3)
        layer.reset_parameters()
        twin = next(twin for twin, _ in layers(group) if type(twin) is type(layer))
        torch.manual_seed(3)
        twin.reset_parameters()
        assert torch.equal(layer(x), twin(x))


@pytest.mark.parametrize(("group", "algorithm"), CASES, ids=lambda v: v if isinstance(v, str) else name(v))
def test_shapes_on_the_meta_device(group: Group, algorithm: str) -> None:
    for layer, x in layers(group, algorithm, device="meta"):
        y = layer(x.to("meta"))
        assert (y.device.type, y.shape) == ("meta", (5, 7, group.order))


@each_group
def test_to_float64(group: Group) -> None:
    for layer, x in layers(group):
        y = layer(x)
        wide = layer.to(torch.float64)(x.double())
        assert wide.dtype == torch.float64
        torch.testing.assert_close(wide.float(), y, atol=1e-5, rtol=1e-5)
    for layer, x in layers(group, dtype=torch.float64):
        assert layer.weight.dtype == layer(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "algorithm"), CASES, ids=lambda v: v if isinstance(v, str) else name(v))
def test_half_precision_layers(group: Group, dtype: torch.dtype, algorithm: str) -> None:
    for layer, x in layers(group, algorithm):
        y = layer(x)
        half = layer.to(dtype)(x.to(dtype))
        assert half.dtype == dtype
        assert (half.float() - y).abs().max() < 16 * torch.finfo(dtype).eps * y.abs().max()


@pytest.mark.parametrize(("group", "algorithm"), CASES, ids=lambda v: v if isinstance(v, str) else name(v))
def test_autocast(group: Group, algorithm: str) -> None:
    for layer, x in layers(group, algorithm):
        y = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = layer(x)
        assert low.dtype == torch.bfloat16
        error = (low.float() - y).abs().max() / y.abs().max()
        assert 0 < error < 16 * torch.finfo(torch.bfloat16).eps
        gradient, expected = (torch.autograd.grad(out.float().sum(), layer.weight)[0] for out in (low, y))
        assert gradient.dtype == torch.float32
        assert (gradient - expected).abs().max() < 0.1 * expected.abs().max()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wide = layer.double()(x.double())
        assert wide.dtype == torch.float64


@each_group
def test_repr_and_exactness(group: Group) -> None:
    for algorithm, level in {"auto": "bitwise", "orbit": "bitwise", "dense": "rounding"}.items():
        for layer, _ in layers(group, algorithm):
            assert layer.exactness == level
            assert f"{type(layer).__name__}({group!r}, in_" in repr(layer)
            assert f"out_features=7, bias=True, algorithm='{algorithm}'" in repr(layer)
    assert repr(OrbitPool("norm")) == "OrbitPool('norm')"


def assert_compiled_agrees(model: nn.Module, compiled: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Outputs and all gradients of the compiled model are the eager ones to rounding."""
    parameters = list(model.parameters())
    x = x.requires_grad_()
    results = []
    for run in (model, compiled):
        y = run(x)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append([y, *torch.autograd.grad((y * weights).sum(), [x, *parameters])])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


COMPILED = [
    *((group, "fourier") for group in (C4, D4, T3)),
    (D4, "auto"),
    (C4, "orbit"),
    (T3, "dense"),
]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(("group", "algorithm"), COMPILED, ids=lambda v: v if isinstance(v, str) else name(v))
def test_compiled_lifting_linear(group: Group, algorithm: str, fresh_compiler: None) -> None:
    model, x = layers(group, algorithm)[0]
    assert_compiled_agrees(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("group", "reduction"), [(C4, "mean"), (D4, "max"), (T3, "norm"), (T3, "logsumexp")])
def test_compiled_stack(group: Group, reduction: str, fresh_compiler: None) -> None:
    tied, x = layers(group, "fourier")[1]
    model = nn.Sequential(tied, OrbitPool(reduction))
    assert_compiled_agrees(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++)")
def test_compiled_by_inductor(fresh_compiler: None) -> None:
    lifting, x = layers(C4, "fourier")[0]
    model = nn.Sequential(lifting, GroupLinear(C4, 7, 4), OrbitPool("mean"))
    assert_compiled_agrees(model, torch.compile(model, fullgraph=True), x)


def test_the_comparison_of_compiled_models_can_fail() -> None:
    model, x = layers(C4)[0]
    stretched = lambda x: functional_call(model, {"weight": 1.01 * model.weight}, (x,))  # noqa: E731
    with pytest.raises(AssertionError):
        assert_compiled_agrees(model, stretched, x)
    with pytest.raises(AssertionError):
        assert_compiled_agrees(model, lambda x: model(x.detach()) + 0 * x.sum(), x)
