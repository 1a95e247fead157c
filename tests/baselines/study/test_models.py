"""The convolutional networks of the study: what the tied and the plain one have in common, and that one is exact."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.common.data import Dataset, Split
from baselines.study.measures import BATCHES, exact, orbit_logits
from baselines.study.models import PLANES, build, cnn, equal_planes, mlp, parameters, weight_tied_cnn
from baselines.study.parts.table1 import TablePart
from baselines.study.tables import ROUNDING
from baselines.study.training import Recipe, accuracy, train
from equilayers.groups import Group, group_from_name
from equilayers.metrics import (
    distribution_invariance_error,
    logit_invariance_error,
    prediction_consistency,
    saliency_invariance_similarity,
)
from equilayers.nn import GroupConv2d, LiftingConv2d
from studies import run_of, subject_of

NAMES = ("C2", "C4", "D1", "D2", "D4")
SHAPES = ((1, 36, 36), (1, 12, 12))
both = pytest.mark.parametrize("name", ["C4", "D4"])
groups = pytest.mark.parametrize("name", ["C4", "T3", "D4"])


def noise(shape: tuple[int, ...], count: int = 70) -> Dataset:
    """Three classes of noise: enough to move every weight and every running mean."""
    generator = torch.Generator().manual_seed(3)

    def split(n: int) -> Split:
        return Split(torch.randn(n, *shape, generator=generator), torch.arange(n) % 3)

    return Dataset("noise", split(count), split(9), split(30), 0.0, 1.0, num_classes=3)


def stepped(model: nn.Module, group: Group, shape: tuple[int, ...]) -> nn.Module:
    train(model, noise(shape), group, Recipe(epochs=2, batch_size=16, lr=0.01), 0)
    return model


def largest_change(model: nn.Module, x: Tensor, group: Group) -> float:
    """How far any logit of any sample moves under any element, in eval mode."""
    model.eval()
    with torch.no_grad():
        y = model(x)
        return max(float((model(group.act(g, x)) - y).abs().max()) for g in range(group.order))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equal_parameters_are_equal_within_five_percent_and_never_fewer(name: str, shape: tuple[int, ...]) -> None:
    group, before = group_from_name(name), torch.get_rng_state()
    equal_planes(group, shape, 9)
    assert torch.equal(torch.get_rng_state(), before)  # the search draws no weights
    tied, plain = (build("cnn", tied, "equal-parameters", group, shape, 9) for tied in (True, False))
    assert 1 <= parameters(plain) / parameters(tied) < 1.05
    assert not any(isinstance(layer, LiftingConv2d | GroupConv2d) for layer in plain.modules())


@pytest.mark.parametrize("name", NAMES)
def test_equal_width_is_the_same_number_of_planes(name: str) -> None:
    group, shape = group_from_name(name), SHAPES[0]
    tied, plain = (build("cnn", tied, "equal-width", group, shape, 9) for tied in (True, False))
    x = torch.randn(2, *shape)
    assert maps(plain, x) == [(width, *size) for width, *size in maps(tied, x)]
    assert [width for width, *_ in maps(tied, x)] == [32, 64, 64] == list(PLANES)
    assert parameters(plain) > 1.9 * parameters(tied)


def maps(model: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Planes, height and width behind each convolution."""
    shapes = []
    for layer in model.children():
        x = layer(x)
        if isinstance(layer, nn.Conv2d | LiftingConv2d | GroupConv2d):
            shapes.append(tuple(x.flatten(1, -3).shape[1:]))
    return shapes


@pytest.mark.parametrize("shape", [SHAPES[1], (3, 8, 8)], ids=str)
@both
def test_the_tied_network_is_invariant_to_the_last_bit(name: str, shape: tuple[int, ...]) -> None:
    """And the plain one is not; before and after a training."""
    group = group_from_name(name)
    tied, plain = (build("cnn", tied, "equal-parameters", group, shape, 3) for tied in (True, False))
    exact(tied)
    inputs = [torch.randn(batch, *shape) for batch in (1, 7, 64)]
    before = {key: value.clone() for key, value in tied.state_dict().items()}
    for trained in (False, True):
        if trained:
            stepped(tied, group, shape)
            stepped(plain, group, shape)
        assert [largest_change(tied, x, group) for x in inputs] == [0, 0, 0]
        assert largest_change(plain, inputs[-1], group) > 1e-3
    assert all(not torch.equal(before[key], value) for key, value in tied.state_dict().items())


@both
def test_exact_changes_the_last_bits_only(name: str) -> None:
    group, shape = group_from_name(name), SHAPES[1]
    model = stepped(weight_tied_cnn(group, shape, 3), group, shape).eval()
    convolutions = [layer for layer in model.modules() if isinstance(layer, LiftingConv2d | GroupConv2d)]
    x = torch.randn(20, *shape)
    fast = model(x)
    exact(model)
    assert [layer.exactness for layer in convolutions] == ["bitwise"] * len(PLANES)
    torch.testing.assert_close(model(x), fast, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "planes", "says"),
    [
        *(("C2", shape, PLANES, "multiples of 4, got") for shape in ((1, 10, 12), (1, 12, 6), (1, 9, 9), (12, 12))),
        ("D4", SHAPES[0], (32, 20), r"planes divisible by \|G\| = 8, got \(32, 20\)\. .+\.$"),
        ("T4", SHAPES[0], PLANES, "expected group to be CyclicRotation or Dihedral, got .+ Shifts need no tying"),
    ],
)
def test_what_cannot_be_tied_is_refused(name: str, shape: tuple[int, ...], planes: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        weight_tied_cnn(group_from_name(name), shape, 3, planes)
    if "multiples" in says:  # the plain network would be sampled lopsidedly, too
        with pytest.raises(ValueError, match=rf"cnn: expected in_shape .+ {says} .+\. .+\.$"):
            cnn(shape, 3)


@groups
def test_orbit_logits_are_one_call_for_each_element_and_batch(name: str) -> None:
    """On batches of one shape: equal samples then stand in equal rows, and an exact model is reported as exact."""
    model, sizes = mlp((1, 12, 12), 3, (8,)), []
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    group, x = group_from_name(name), torch.randn(10, 1, 12, 12)
    logits = orbit_logits(model, x, group, batch_size=4)
    handle.remove()
    assert sizes == [n for n in (4, 4, 2) for _ in range(group.order)]
    assert (logits.shape, logits.dtype) == ((group.order, 10, 3), torch.float64)
    assert not logits.requires_grad
    for g in range(group.order):
        for part, found in zip(x.split(4), logits[g].split(4), strict=True):
            assert torch.equal(found, model(group.act(g, part)).detach().double())


@pytest.mark.parametrize("tied", [True, False], ids=["WT", "DA"])
@pytest.mark.parametrize("kind", BATCHES)
def test_the_table_has_the_measures_of_the_library(kind: str, tied: bool) -> None:
    group, shape = group_from_name("C4"), (1, 8, 8)
    x = noise(shape).test.x
    model = build(kind, tied, "equal-parameters", group, shape, 3).eval()
    run = run_of("WT" if tied else "DA", model=kind)
    run = replace(run, source=replace(run.source, saliency_samples=2))  # on more it takes seconds
    trained = subject_of(model, x, run, classes=3)
    measured, few, y = TablePart().measure(trained), trained.run.source.saliency_samples, trained.data.test.y
    expected = {
        "LI": logit_invariance_error(model, x, group),
        "LI_normalized": logit_invariance_error(model, x, group, normalized=True),
        "DI": distribution_invariance_error(model, x, group),
        "consistency": prediction_consistency(model, x, group),
        "accuracy": sum(accuracy(model, group.act(g, x), y) for g in range(4)) / 4,
        "upright_accuracy": accuracy(model, x, y),
    }
    for name, value in expected.items():
        assert measured[name] == pytest.approx(float(value), rel=1e-4), name
    similarity = saliency_invariance_similarity(model, x[:few], y[:few], group)
    assert measured["SI"] == pytest.approx(float(similarity), abs=1e-3)
    assert (max(measured["LI"], measured["DI"]) <= ROUNDING[kind]) == tied
    assert (measured["consistency"] == 1) >= tied
    assert "validation_SI" not in measured


def test_what_nu_is_tuned_by_is_measured_with_a_regulariser_only() -> None:
    model, x = mlp((1, 12, 12), 9, (8,)), torch.randn(9, 1, 12, 12)
    measured = TablePart().measure(subject_of(model, x, run_of("IR", nu=2.0)))
    assert measured["validation_SI"] == measured["SI"]  # the splits are the same here
