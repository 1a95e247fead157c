"""The kept transform of a weight is never stale, and never travels with the module."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equilayers.functional import lift_linear
from equilayers.functional._weight_cache import WeightCache
from equilayers.groups import CyclicRotation
from equilayers.nn import GroupLinear, LiftingLinear

GROUP = CyclicRotation(4)


def layer_and_input() -> tuple[LiftingLinear, Tensor]:
    return LiftingLinear(GROUP, (2, 5, 5), 7, algorithm="fourier"), torch.randn(6, 2, 5, 5)


def fresh(layer: LiftingLinear, x: Tensor) -> Tensor:
    return lift_linear(x, layer.weight, layer.bias, GROUP, algorithm="fourier")


def replace_parameter(layer: LiftingLinear) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def train_step(layer: LiftingLinear) -> None:
    with torch.enable_grad():
        layer(torch.randn(3, 2, 5, 5)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


CHANGES: dict[str, Callable[[LiftingLinear], object]] = {
    "in place": lambda layer: layer.weight.mul_(2),
    "through .data": lambda layer: layer.weight.data.mul_(3),
    "one entry through .data": lambda layer: layer.weight.data[0, 0, 0, 0].add_(1),
    "permuted through .data": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(-1)),
    "reset": lambda layer: layer.reset_parameters(),
    "load_state_dict": lambda layer: layer.load_state_dict(LiftingLinear(GROUP, (2, 5, 5), 7).state_dict()),
    "another parameter": replace_parameter,
    "a training step": train_step,
    "another dtype and back": lambda layer: layer.double().float().weight.data.neg_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_a_changed_weight_is_noticed(change: Callable[[LiftingLinear], object]) -> None:
    layer, x = layer_and_input()
    before = layer(x)
    assert torch.equal(layer(x), before)
    change(layer)
    assert torch.equal(layer(x), fresh(layer, x))
    assert not torch.equal(layer(x), before)


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


def test_a_stale_value_would_be_seen() -> None:
    class Stale(WeightCache):
        def get(self, weight: Tensor, make: Callable[[], object]) -> object:
            self._kept = self._kept or ((), make())
            return self._kept[1]

    layer, x = layer_and_input()
    layer._cache = Stale()
    with torch.no_grad():
        layer(x)
        layer.weight.mul_(2)
        assert not torch.equal(layer(x), fresh(layer, x))


@torch.no_grad()
def test_copies_and_pickles_begin_empty() -> None:
    layer, x = layer_and_input()
    y = layer(x)
    assert layer._cache._kept is not None
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._cache._kept is None
        assert torch.equal(other(x), y)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    assert list(torch.load(buffer, weights_only=True)) == ["weight", "bias"]


def test_inference_mode_and_functional_transforms() -> None:
    layer, x = layer_and_input()
    expected = fresh(layer, x).detach()
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
    many = torch.stack([layer.weight.detach(), 2 * layer.weight.detach()])
    call = lambda w: torch.func.functional_call(layer, {"weight": w}, (x,))  # noqa: E731
    with torch.no_grad():
        both = torch.func.vmap(call)(many)
    torch.testing.assert_close(both[0], expected)
    tied = GroupLinear(GROUP, 3, 2, algorithm="fourier")
    f = torch.randn(5, 3, 4)
    with torch.no_grad():
        assert torch.equal(tied(f), tied(f))
