"""Saliency maps and how similar they are over an orbit: by hand, against loops, exact on weight-tied models."""

import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metric_reference as slow
from baselines.study.models import mlp, weight_tied_mlp
from equilayers.groups import CyclicTranslation, DirectProduct, Group, PermutationGroup
from equilayers.metrics import integrated_gradients_saliency, saliency_invariance_similarity
from equilayers.metrics._saliency import smooth
from metric_reference import gradient
from reference import Array
from strategies import C4, D4, S3, T3, TRIVIAL, name

TORUS = DirectProduct(CyclicTranslation(3), CyclicTranslation(2, dim=-2))
main_groups = pytest.mark.parametrize("group", [C4, D4, T3], ids=name)


def linear(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).to(dtype)


@pytest.mark.parametrize("group", [C4, T3, D4, TORUS], ids=name)
def test_of_a_linear_model_by_the_reference(group: Group) -> None:
    # The gradient is w everywhere on the way from 0 to x: integrated gradients are w·x.
    model, x, target = linear(), torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    attribution = model[1].weight.detach().reshape(3, 1, 6, 6)[target] * x
    got = integrated_gradients_saliency(model, x, target, group)
    expected = slow.saliency(attribution.numpy(), circular=group in (T3, TORUS))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (got.dtype, got.shape, got.requires_grad) == (x.dtype, x.shape, False)


def test_threshold_is_of_each_sample_and_on_request() -> None:
    model, target = linear(), torch.tensor([1, 1])
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    both = integrated_gradients_saliency(model, torch.cat((x, 1000 * x)), target, C4)
    torch.testing.assert_close(1000 * both[0], both[1], rtol=1e-5, atol=0)
    assert both[0].count_nonzero() <= 9 * 3 < 36  # what is left of 36 pixels, blurred
    everything = integrated_gradients_saliency(model, x, target[:1], C4, threshold=0.0)
    assert everything.count_nonzero() == 36


def test_vectors_that_are_permuted() -> None:
    """They are not smoothed."""
    x, weight = torch.tensor([[3.0, -2.9, 1.0]]), torch.tensor([1.0, 1.0, 1.0])
    map_ = integrated_gradients_saliency(lambda v: (v * weight).sum(1, keepdim=True), x, torch.tensor([0]), S3)
    torch.testing.assert_close(map_, torch.tensor([[3.0, 2.9, 0.0]]))
    swap, target = PermutationGroup([[1, 0, 2]]), torch.zeros(5, dtype=torch.int64)
    summed = lambda v: torch.stack((v[:, 0] + v[:, 1], v[:, 2]), 1)  # noqa: E731
    assert saliency_invariance_similarity(summed, torch.randn(5, 3), target, swap).item() == 1.0


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (4, 6), (7, 5)])
def test_smoothing_is_the_reference(circular: bool, shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    expected = np.stack([np.stack([slow.gaussian(c, circular) for c in sample]) for sample in x.numpy()])
    np.testing.assert_allclose(smooth(x, circular=circular).numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3, 6, 12])
def test_smoothing_commutes_bitwise(dtype: torch.dtype, size: int) -> None:
    x = torch.randn(2, 3, size, size, dtype=dtype)
    for group, circular in itertools.product([C4, D4], [False, True]):
        for g in range(group.order):
            assert torch.equal(smooth(group.act(g, x), circular=circular), group.act(g, smooth(x, circular=circular)))
    for i, j in itertools.product(range(size), repeat=2):
        moved = smooth(x, circular=True).roll((i, j), (-2, -1))
        assert torch.equal(smooth(x.roll((i, j), (-2, -1)), circular=True), moved)
    blurred = smooth(x, circular=False)
    assert not torch.allclose(smooth(x.roll(1, -1), circular=False), blurred.roll(1, -1), atol=1e-3)


def test_smoothing_of_flat_vectors() -> None:
    x = torch.eye(4, dtype=torch.float64)[:1]
    side = math.exp(-0.5)
    for circular in (False, True):
        expected = torch.tensor([[1, side, 0, side * circular]], dtype=torch.float64) / (1 + 2 * side)
        torch.testing.assert_close(smooth(x, circular=circular), expected)


@main_groups
@pytest.mark.parametrize("batch", [1, 33])
def test_weight_tied_models_look_at_the_same_thing(group: Group, batch: int) -> None:
    x, target = torch.randn(batch, 1, 12, 12), torch.arange(batch) % 5
    model = weight_tied_mlp(group, (1, 12, 12), 5, (16, 16))
    assert saliency_invariance_similarity(model, x, target, group).item() == 1.0
    other = weight_tied_mlp(C4 if group is T3 else T3, (1, 12, 12), 5, (16, 16))
    assert saliency_invariance_similarity(other, x, target, group).item() < 0.95
    double = saliency_invariance_similarity(model.double(), x.double(), target, group).item()
    assert double == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (2, 12, 12), (2, 1, 12, 12), (12,)], ids=str)
def test_inputs_of_any_rank(shape: tuple[int, ...]) -> None:
    group = T3 if len(shape) in (1, 3) else C4
    x, target = torch.randn(4, *shape), torch.arange(4)
    similarity = saliency_invariance_similarity(weight_tied_mlp(group, shape, 5, (16, 16)), x, target, group)
    assert similarity.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("include_identity", [False, True])
@pytest.mark.parametrize("group", [C4, T3, D4], ids=name)
def test_similarity_is_the_reference(group: Group, include_identity: bool) -> None:
    model = mlp((1, 6, 6), 3, (8,)).double()
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)

    def maps(sample: Array) -> Array:
        tensor = torch.from_numpy(sample.copy())[None]
        out: Array = gradient(model, tensor, torch.tensor([1]))[0].numpy()
        return out

    expected = slow.similarity(maps, x.numpy(), group, include_identity)
    for batch_size in (None, 2):
        options: dict[str, Any] = {"saliency": gradient, "batch_size": batch_size, "include_identity": include_identity}
        got = saliency_invariance_similarity(model, x, torch.ones(3, dtype=torch.int64), group, **options)
        assert got.item() == pytest.approx(expected, rel=1e-12)


def with_steps(model: nn.Module, x: Tensor, target: Tensor, steps: int = 3) -> Tensor:
    return sum(gradient(model, x * k / steps, target) for k in range(1, steps + 1))  # type: ignore[return-value]


def test_a_users_saliency_with_three_arguments_with_four_and_with_a_setting_of_its_own() -> None:
    seen: list[Any] = []

    def four(model: nn.Module, x: Tensor, target: Tensor, group: Group) -> Tensor:
        seen.append(group)
        assert not model.training
        return gradient(model, x, target)

    model, x, target = linear(), torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.arange(4) % 3
    values = [saliency_invariance_similarity(model, x, target, C4, saliency=s) for s in (gradient, four)]
    assert values[0] == values[1]
    assert seen == [C4] * 4
    assert model.training
    assert saliency_invariance_similarity(model, x, target, C4, saliency=with_steps).isfinite()
    with torch.no_grad():
        assert saliency_invariance_similarity(model, x, target, C4, saliency=gradient) == values[0]


def similarity_of(m: list[float], moved: list[float]) -> float:
    """SI of a saliency that is m for one input and `moved` (turned back) for the other of its orbit."""
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    maps = torch.tensor([m, moved[::-1]], dtype=torch.float64)
    swap = CyclicTranslation(2)
    options: dict[str, Any] = {"saliency": lambda model, x, target: maps[x[:, 0].long()]}
    return saliency_invariance_similarity(lambda v: v, x, torch.tensor([0]), swap, **options).item()


def test_cosine_by_hand_and_at_its_corners() -> None:
    assert similarity_of([3.0, 4.0], [4.0, 3.0]) == pytest.approx(24 / 25, rel=1e-15)
    assert similarity_of([1.0, 0.0], [0.0, 1.0]) == 0.0
    assert similarity_of([1.0, -2.0], [-1.0, 2.0]) == pytest.approx(-1.0, rel=1e-15)
    assert similarity_of([0.0, 0.0], [0.0, 0.0]) == 1.0
    assert similarity_of([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert similarity_of([1e-300, 0.0], [1e-300, 0.0]) == 1.0  # whose square is 0
    assert similarity_of([1e300, 0.0], [1e-300, 0.0]) == 1.0  # whose square is infinite
    assert math.isnan(similarity_of([math.nan, 0.0], [0.0, 0.0]))
    assert math.isnan(similarity_of([1.0, 0.0], [math.nan, 1.0]))


def test_constant_models_nan_and_no_samples() -> None:
    x, target = torch.randn(3, 1, 6, 6), torch.zeros(3, dtype=torch.int64)
    constant = lambda v: 0 * v.flatten(1)[:, :3] + 1  # noqa: E731
    assert saliency_invariance_similarity(constant, x, target, C4).item() == 1.0
    for dtype in (torch.float32, torch.float64):
        model = linear(dtype)
        with torch.no_grad():
            value = saliency_invariance_similarity(model, x.to(dtype), target, C4)
        assert (value.dtype, value.shape, value.requires_grad) == (dtype, (), False)
        assert all(p.grad is None for p in model.parameters())
    assert saliency_invariance_similarity(linear(torch.float32), x[:0], target[:0], C4).isnan()
    x[1, 0, 2, 3] = math.nan
    assert saliency_invariance_similarity(linear(torch.float32), x, target, C4).isnan()


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (ValueError, {"target": torch.zeros(2, dtype=torch.int64)}),
        (ValueError, {"target": torch.zeros(3, 1, dtype=torch.int64)}),
        (ValueError, {"target": torch.tensor(0)}),
        (TypeError, {"target": [0, 0, 0]}),
        (TypeError, {"x": torch.ones(3, 1, 6, 6, dtype=torch.int64)}),
        (ValueError, {"group": TRIVIAL}),
        (TypeError, {"group": 4}),
        (ValueError, {"batch_size": 0}),
    ],
)
def test_errors(error: type[Exception], change: dict[str, Any]) -> None:
    arguments = {"x": torch.ones(3, 1, 6, 6), "target": torch.zeros(3, dtype=torch.int64), "group": C4, **change}
    with pytest.raises(error, match=r"^saliency_invariance_similarity: expected .+, got .+\. .+\.$"):
        saliency_invariance_similarity(linear(torch.float32), **arguments)
    if error is TypeError and "target" not in change:
        with pytest.raises(error, match=r"^integrated_gradients_saliency: expected .+, got .+\. .+\.$"):
            integrated_gradients_saliency(linear(torch.float32), **arguments)


def test_without_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("captum", "captum.attr"):
        monkeypatch.setitem(sys.modules, module, None)
    model, x, target = linear(), torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(ImportError, match=r"expected captum .+pip install 'equilayers\[saliency\]'"):
        saliency_invariance_similarity(model, x, target, C4)
    assert saliency_invariance_similarity(model, x, target, C4, saliency=gradient).isfinite()
