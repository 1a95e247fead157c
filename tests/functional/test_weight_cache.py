"""What a layer keeps of its weight is never stale, wherever it was made, and never travels with the module."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from conv_laws import input_of, make, square
from equilayers.functional import group_conv2d, group_linear, lift_conv2d, lift_linear
from equilayers.functional._weight_cache import WeightCache
from equilayers.nn import GroupConv2d, GroupLinear, HarmonicConv2d, LiftingConv2d, LiftingLinear
from strategies import C4, filled

GROUP, SETTINGS = C4, square(5, 3, padding=1, groups=2)
CONVOLUTIONS = {LiftingConv2d: lift_conv2d, GroupConv2d: group_conv2d}
LINEAR = {LiftingLinear: (lift_linear, (2, 5, 5)), GroupLinear: (group_linear, 6)}
KEEPING = [(kind, algorithm) for kind in CONVOLUTIONS for algorithm in ("dense", "fourier")]
Kind = type[nn.Module]

keeping = pytest.mark.parametrize(("kind", "algorithm"), [*KEEPING, *((kind, "fourier") for kind in LINEAR)])


def layer_of(kind: Kind, algorithm: str) -> nn.Module:
    if kind in LINEAR:
        return kind(GROUP, LINEAR[kind][1], 7, algorithm=algorithm)
    return make(kind, GROUP, 2, 4, SETTINGS, algorithm)  # type: ignore[arg-type]


def an_input(layer: nn.Module, size: int = 5, batch: int = 3, seed: int = 0) -> Tensor:
    if type(layer) in LINEAR:
        return filled((batch, *layer.weight.shape[1:]), torch.float32, seed)
    return input_of(layer, (size, size), batch, seed)


def made(kind: Kind, algorithm: str) -> tuple[nn.Module, Tensor]:
    layer = layer_of(kind, algorithm)
    return layer, an_input(layer)


def fresh(layer: nn.Module, x: Tensor) -> Tensor:
    """The output when nothing is kept."""
    if type(layer) in LINEAR:
        return LINEAR[type(layer)][0](x, layer.weight, layer.bias, GROUP, algorithm=layer.algorithm)
    function = CONVOLUTIONS[type(layer)]
    return function(x, layer.weight, layer.bias, GROUP, algorithm=layer.algorithm, **SETTINGS.keywords)


def replace_parameter(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def load(layer: nn.Module, **how: bool) -> None:
    layer.load_state_dict(layer_of(type(layer), layer.algorithm).state_dict(), **how)


def step(layer: nn.Module, optimizer: type[torch.optim.Optimizer]) -> None:
    with torch.enable_grad():
        layer(an_input(layer, seed=1)).square().sum().backward()
    optimizer(layer.parameters(), lr=0.1).step()  # type: ignore[call-arg]


Change = Callable[[nn.Module], object]
CHANGES: dict[str, Change] = {
    "in place": lambda layer: layer.weight.mul_(2),
    "one entry": lambda layer: layer.weight[0, 0].view(-1)[0].add_(1),
    "through .data": lambda layer: layer.weight.data.mul_(3),
    "one entry through .data": lambda layer: layer.weight.data.view(-1)[0].add_(1),
    "permuted through .data": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(-1)),
    "another .data": lambda layer: setattr(layer.weight, "data", torch.randn_like(layer.weight)),
    "through numpy": lambda layer: layer.weight.numpy().fill(0.5),
    "reset": lambda layer: layer.reset_parameters(),  # type: ignore[operator]
    "load_state_dict": load,
    "load_state_dict(assign=True)": lambda layer: load(layer, assign=True),
    "the bias, through .data": lambda layer: layer.bias.data.add_(1),
    "another parameter": replace_parameter,
    "a step of SGD": lambda layer: step(layer, torch.optim.SGD),
    "a step of Adam": lambda layer: step(layer, torch.optim.Adam),
    "another dtype and back": lambda layer: layer.double().float().weight.data.neg_(),
    "another memory format": lambda layer: (
        layer.to(memory_format=torch.channels_last).weight.data.neg_()
        if layer.weight.ndim == 4
        else layer.weight.data.neg_()
    ),
    "moved to meta and back": lambda layer: layer.to_empty(device="meta").to_empty(device="cpu").reset_parameters(),
}


@keeping
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_noticed(kind: Kind, algorithm: str, change: str) -> None:
    for context in (torch.no_grad, torch.inference_mode):
        layer, x = made(kind, algorithm)
        with context():
            before = layer(x)
            assert torch.equal(layer(x), before)
        with torch.no_grad():
            CHANGES[change](layer)
        with context():
            assert torch.equal(layer(x), fresh(layer, x))
            assert not torch.equal(layer(x), before)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@keeping
@torch.no_grad()
def test_parametrized_weights(kind: Kind, algorithm: str) -> None:
    layer, x = made(kind, algorithm)
    layer.bias.zero_()
    y = layer(x)
    parametrize.register_parametrization(layer, "weight", Halved())
    assert torch.equal(layer(x), y / 2)
    layer.parametrizations.weight.original.mul_(4)
    for _ in range(2):
        assert torch.equal(layer(x), 2 * y)
    with parametrize.cached():
        for _ in range(2):
            assert torch.equal(layer(x), 2 * y)
    with torch.enable_grad():
        layer(x).sum().backward()
        assert layer.parametrizations.weight.original.grad.abs().sum() > 0
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer(x), 2 * y)
    torch.nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.mul_(3)
    torch.testing.assert_close(layer(x), 6 * y, atol=1e-5, rtol=1e-5)


@keeping
@torch.no_grad()
def test_copies_and_pickles_begin_empty(kind: Kind, algorithm: str) -> None:
    layer, x = made(kind, algorithm)
    y = layer(x)
    assert layer._cache._kept is not None
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._cache._kept is None
        assert torch.equal(other(x), y)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    assert list(torch.load(buffer, weights_only=True)) == ["weight", "bias"]


@keeping
def test_what_inference_mode_leaves_behind(kind: Kind, algorithm: str) -> None:
    """What is made there serves a frozen layer in training, whose inputs want gradients."""
    layer, x = made(kind, algorithm)
    layer.requires_grad_(False)
    x.requires_grad_()
    expected = torch.autograd.grad(fresh(layer, x).square().sum(), x)[0]
    with torch.inference_mode():
        layer(x)
    gradient = torch.autograd.grad(layer(x).square().sum(), x)[0]
    assert torch.equal(gradient, expected)


@keeping
def test_a_stale_value_would_be_seen(kind: Kind, algorithm: str) -> None:
    class Stale(WeightCache):
        first: Any = None

        def get(self, weight: Tensor, make: Callable[[], Any], kind: str = "") -> Any:
            self.first = self.first or (make(),)
            return self.first[0]

    layer, x = made(kind, algorithm)
    layer._cache = Stale()
    with torch.no_grad():
        layer(x)
        layer.weight.mul_(2)
        assert not torch.equal(layer(x), fresh(layer, x))


def test_kept_without_gradients_and_made_anew_with_them() -> None:
    kept, made = WeightCache(), []
    weight = nn.Parameter(torch.randn(3))

    def make() -> int:
        made.append(1)
        return len(made)

    with torch.no_grad():
        assert [kept.get(weight, make) for _ in range(3)] == [1, 1, 1]
    assert [kept.get(weight, make) for _ in range(2)] == [2, 3]
    with torch.no_grad():
        assert [kept.get(weight, make) for _ in range(2)] == [4, 4]
        assert kept.get(weight[:2], make) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_last_bit_of_any_entry_is_noticed(dtype: torch.dtype) -> None:
    """Written through `.data`, which the version counter does not see."""
    weight, cache = torch.randn(3, 5, 4, dtype=dtype), WeightCache()
    for place in range(weight.numel()):
        kept = cache.get(weight, weight.clone)
        assert cache.get(weight, weight.clone) is kept
        entry = weight.data.view(-1)[place : place + 1]
        entry.copy_(entry.nextafter(torch.full_like(entry, torch.inf)))
        assert torch.equal(cache.get(weight, weight.clone), weight)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_repeated_call_is_checked_as_the_first(kind: Kind) -> None:
    """A layer that does at once what it did last looks at the input, the settings and the modes."""
    layer, x = made(kind, "dense")
    with torch.no_grad():
        y = layer(x)
        assert layer._cache.last is not None
        assert torch.equal(layer(x), y)
        with pytest.raises(TypeError, match="dtype"):
            layer(x.double())
        with pytest.raises(ValueError, match=r"expected . of shape"):
            layer(x[0])
        with pytest.raises(TypeError, match="nested"):
            layer(torch.nested.nested_tensor(list(x), layout=torch.jagged))
        torch.testing.assert_close(torch.vmap(layer)(x[:, None])[:, 0], y)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert type(layer(x)).__name__ == "FakeTensor"
        with dual_level():
            assert unpack_dual(layer(make_dual(x, x))).tangent is not None
        with dual_level():
            assert (
                unpack_dual(functional_call(layer, {"weight": make_dual(layer.weight, layer.weight)}, x)).tangent
                is not None
            )
        assert torch.equal(layer(x), y)
        layer.algorithm = "orbit"
        torch.testing.assert_close(layer(x), y)
        assert layer._cache.last.spec is not layer.spec
    with torch.inference_mode():
        layer.algorithm = "dense"
        layer(x)
    layer.requires_grad_(False)
    assert layer(x.requires_grad_()).requires_grad


def test_what_another_algorithm_has_left_is_not_repeated() -> None:
    """Under a mode nothing is kept, and what is there is of the call before."""
    layer, x = GroupConv2d("C4", 2, 3, 3, bias=False, algorithm="fourier"), filled((1, 2, 4, 5, 5), torch.float32)
    with torch.no_grad():
        y = layer(x)
        layer.algorithm = "dense"
        with FlopCounterMode(display=False):
            layer(x)
        torch.testing.assert_close(layer(x), y)


DUAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lifting": (lambda: LiftingConv2d("C4", 2, 3, 3, algorithm="dense"), (1, 2, 7, 7)),
    "group": (lambda: GroupConv2d("C4", 2, 3, 3, algorithm="dense"), (1, 2, 4, 7, 7)),
    "harmonic": (lambda: HarmonicConv2d(2, 3, 3, in_order=None, out_order=1), (1, 2, 7, 7)),
}


@pytest.mark.parametrize("kind", DUAL)
def test_tangents_of_a_weight_are_not_kept(kind: str) -> None:
    """Forward-mode derivatives to a frozen weight: those of each call, also after an ordinary one."""
    make_layer, shape = DUAL[kind]
    layer, x = make_layer().double().requires_grad_(False), filled(shape, torch.float64)
    name, weight = next(iter(layer.named_parameters()))

    def output(w: Tensor) -> Tensor:
        y: Tensor = functional_call(layer, {name: w}, (x,))
        return y

    with torch.no_grad():
        weight = weight.clone()
        output(weight)
        for seed in range(2):
            tangent = filled(tuple(weight.shape), torch.float64, seed)
            with dual_level():
                found = unpack_dual(output(make_dual(weight, tangent))).tangent
            assert found is not None
            expected = (output(weight + 1e-6 * tangent) - output(weight - 1e-6 * tangent)) / 2e-6
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
