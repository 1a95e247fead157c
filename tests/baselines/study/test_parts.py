"""What the parts of the study measure, against closed forms and on networks that are invariant or planted not to be."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.common.data import load_dataset
from baselines.study.measures import invariance, orbit_logits
from baselines.study.models import build, mlp, weight_tied_mlp
from baselines.study.parts import RUN_PARTS, drift
from baselines.study.parts.drift import BETAS, DriftPart, drifted, other
from baselines.study.parts.plots import packed, unpacked
from baselines.study.parts.saliency import SaliencyPart, realigned
from baselines.study.parts.spectral_decay import DecayPart
from baselines.study.parts.tsne import TsnePart, penultimate, plane
from equilayers.groups import group_from_name
from equilayers.metrics import integrated_gradients_saliency, jacobian_spectral_norm
from planted import Does
from studies import run_of, subject_of

SHAPE = (1, 12, 12)
Array = NDArray[np.float64]
groups = pytest.mark.parametrize("name", ["C4", "T3", "D4"])


def moved(name: str, x: Array) -> list[Array]:
    """Every image of x (N, 1, H, W) under each element but the identity, by numpy alone."""
    if name == "T3":
        return [np.roll(x, g * x.shape[-1] // 3, -1) for g in (1, 2)]
    mirrored = [x, x[..., ::-1]] if name == "D4" else [x]
    return [np.rot90(each, r, (-2, -1)) for each in mirrored for r in range(4)][1:]


def linear(outputs: int) -> tuple[nn.Module, Tensor, Array]:
    """f(x) = W x in float64, sixty inputs x and the matrix."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, outputs, bias=False, dtype=torch.float64))
    return model, torch.randn(60, *SHAPE, dtype=torch.float64), model[1].weight.detach().numpy()


def flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def log_sigmoid(d: Array) -> Array:
    return -np.logaddexp(0, -d)


@groups
def test_measures_of_a_linear_model_by_hand(name: str) -> None:
    model, x, W = linear(2)
    f, turned = flat(x.numpy()) @ W.T, [flat(gx) @ W.T for gx in moved(name, x.numpy())]
    group, y = group_from_name(name), torch.zeros(60, dtype=torch.int64)
    measured = invariance(orbit_logits(model, x, group, 7), y, group)
    half = [0.5 * ((f - fg) ** 2).sum(1) for fg in turned]
    d = f[:, 0] - f[:, 1]
    p = 1 / (1 + np.exp(-d))
    divergences = []
    for dg in (fg[:, 0] - fg[:, 1] for fg in turned):
        first, second = log_sigmoid(d) - log_sigmoid(dg), log_sigmoid(-d) - log_sigmoid(-dg)
        divergences.append(p * first + (1 - p) * second)
    assert measured["LI"] == pytest.approx(np.mean(half), rel=1e-12)
    assert measured["LI_normalized"] == pytest.approx(np.mean([2 * h / (f**2).sum(1) for h in half]), rel=1e-12)
    assert measured["DI"] == pytest.approx(np.mean(divergences), rel=1e-10)
    assert measured["consistency"] == np.mean([(fg[:, 0] < fg[:, 1]) == (d < 0) for fg in turned])
    assert measured["upright_accuracy"] == np.mean(d > 0)
    assert measured["accuracy"] == pytest.approx(np.mean([fg[:, 0] > fg[:, 1] for fg in [f, *turned]]), rel=1e-12)
    assert measured["LI"] != pytest.approx(np.mean([0.0, *map(np.mean, half)]), rel=1e-3), "the identity is left out"


@groups
def test_decay_of_a_linear_model_by_hand(name: str) -> None:
    model, x, W = linear(9)
    _, values, directions = np.linalg.svd(W)
    assert np.ptp(jacobian_spectral_norm(model, x).numpy() / values[0]) < 1e-12
    measured = DecayPart().measure(subject_of(model, x, run_of(group=name)))
    f, turned = flat(x.numpy()) @ W.T, moved(name, x.numpy())
    apart = np.sqrt(((f - f.mean(0)) ** 2).sum(1).mean())
    along = np.sqrt(np.mean([((flat(gx) @ W.T - f) ** 2).sum(1) for gx in turned])) / apart
    lengths = np.mean([((flat(gx - x.numpy())) ** 2).sum(1) for gx in turned])
    across = math.sqrt(lengths * (W**2).sum() / 144) / apart  # of noise of that length, on average
    assert measured["sigma_max"] == pytest.approx(values[0], rel=1e-12)
    assert measured["sigma_quartiles"] == pytest.approx([values[0]] * 3, rel=1e-12)
    assert measured["moved"] == pytest.approx(along, rel=1e-10)
    assert measured["noisy"] == pytest.approx(across, rel=0.15)
    assert measured["ratio"] == pytest.approx(measured["moved"] / measured["noisy"], rel=1e-12)
    assert not measured["trivial"]
    assert measured["decay_samples"] == 60
    assert near(unpacked(measured["direction"]["image"]), x[0, 0].numpy())
    top = directions[0].reshape(12, 12)
    top = top * np.sign(top.flat[np.abs(top).argmax()])
    assert near(unpacked(measured["direction"]["change"]), top)
    assert not near(unpacked(measured["direction"]["change"]), -top)


@pytest.mark.parametrize("name", ["decay", "saliency", "tsne"])
def test_pictures_are_of_seed_0_only(name: str) -> None:
    x, model = torch.randn(12, *SHAPE), mlp(SHAPE, 9, (16,))
    drawn = {"decay": {"direction"}, "saliency": {"pictures"}, "tsne": {"places", "classes"}}[name]
    first, other_seed = (RUN_PARTS[name].measure(subject_of(model, x, run_of(seed=seed))) for seed in (0, 1))
    assert first.keys() - other_seed.keys() == drawn


def test_decay_calls_a_constant_model_trivial() -> None:
    model, x, _ = linear(9)
    model = nn.Sequential(*model, nn.Linear(9, 9, dtype=torch.float64))
    model[2].weight.data *= 1e-9
    assert DecayPart().measure(subject_of(model, x))["trivial"]


def near(found: Array, image: Array) -> bool:
    """Equal up to half of a 255th of the range, and rounding."""
    return bool(np.abs(found - image).max() <= np.ptp(image) / 255 * 0.5 * (1 + 1e-6) + 1e-12)


@pytest.mark.parametrize(
    "image",
    [torch.rand(5, 7), 1e4 * torch.randn(12, 12).mT, torch.full((3, 3), 2.5), torch.tensor([[-1.0, 3.0]]).double()],
    ids=["uniform", "large", "constant", "two"],
)
def test_packed_pictures_come_back(image: Tensor) -> None:
    back = unpacked(packed(image))
    assert near(back, image.numpy())
    assert not near(back + 0.6 * (np.ptp(image.numpy()) or 1) / 255, image.numpy())
    assert (back.min(), back.max()) == (float(image.min()), float(image.max()))


@pytest.mark.parametrize("kind", ["digits", "mnist"])
def test_drifting_data_begin_and_end_in_the_two_sets(kind: str) -> None:
    if kind == "mnist" and "EQUILAYERS_DATA" not in os.environ:
        pytest.skip("EQUILAYERS_DATA is not set")
    names = ("digits",) if kind == "digits" else ("mnist", "fashion-mnist")
    first, *others = (load_dataset(name, splits=(100, 40, 10)).test.x for name in names)
    (second,) = others or [other(subject_of(nn.Flatten(), first).data, run_of())]
    assert torch.equal(drifted(first, second, 0), first)
    assert torch.equal(drifted(first, second, 1), second)
    assert torch.equal(drifted(first, second, 0.5), (first + second) / 2)
    torch.testing.assert_close(drifted(first, second, 0.3) - first, 0.3 * (second - first), rtol=0, atol=1e-5)
    assert not torch.equal(drifted(first, second, 0.1), first)
    assert (BETAS[0], BETAS[-1], len(BETAS)) == (0, 1, 11)


def test_scrambled_digits_are_the_same_pixels_in_another_order() -> None:
    x, numbers = torch.randn(3, *SHAPE), torch.arange(144.0).view(1, *SHAPE).expand(3, -1, -1, -1)
    scrambled, orders = (other(subject_of(nn.Flatten(), images).data, run_of()) for images in (x, numbers))
    assert not torch.equal(scrambled, x)
    assert torch.equal(orders[0].flatten().sort().values, numbers[0].flatten())
    assert torch.equal(orders[0], orders[2]), "one order for all images"
    assert torch.equal(scrambled.flatten(1), x.flatten(1)[:, orders[0].flatten().long()])


@pytest.mark.parametrize(("data", "away"), [("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")])
def test_large_sets_drift_to_each_other(data: str, away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def dataset(*key: object) -> SimpleNamespace:
        asked.append(key)
        return SimpleNamespace(test=SimpleNamespace(x="images"))

    monkeypatch.setattr(drift, "cached_dataset", dataset)
    assert other(subject_of(nn.Flatten(), torch.zeros(1, *SHAPE)).data, run_of(data=data, seed=3)) == "images"
    assert asked == [(away, None, 3, "before")]


@pytest.mark.parametrize(
    ("rows", "beta", "says"),
    [
        ((2, 4), 0.5, r"expected first and second of one shape, got \(3, 4\) and \(2, 4\)\. Cut"),
        ((3, 2), 0.5, r"expected first and second of one shape, got \(3, 4\) and \(3, 2\)"),
        *(((3, 4), beta, rf"expected beta from 0 to 1, got {beta}\.") for beta in (-0.1, 1.1, math.nan)),
    ],
)
def test_drift_refuses(rows: tuple[int, int], beta: float, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^drifted: {says}"):
        drifted(torch.zeros(3, 4), torch.zeros(rows), beta)


@groups
def test_drift_leaves_a_tied_network_exact_and_shows_one_that_is_not(name: str) -> None:
    x, tied = torch.randn(30, *SHAPE), weight_tied_mlp(group_from_name(name), SHAPE, 9, (16, 16))
    run = run_of("WT", name)
    measured = DriftPart().measure(subject_of(tied, x, run))
    assert measured["drift"]["DI"] == [0.0] * len(BETAS)
    assert measured["drift"]["consistency"] == [1.0] * len(BETAS)
    assert (measured["drift_samples"], measured["drift_to"]) == (30, "scrambled digits")
    leaking = Does(lambda x: tied(x) + 1e-3 * x[:, 0, 0, :9])  # a faint look at the corner
    assert all(0 < value < 1e-3 for value in DriftPart().measure(subject_of(leaking, x, run))["drift"]["DI"])
    plain = DriftPart().measure(subject_of(mlp(SHAPE, 9, (16, 16)), x, run))["drift"]
    assert min(plain["DI"]) > 0


def test_drift_is_measured_with_the_labels_of_the_first_set() -> None:
    x, model = torch.randn(30, *SHAPE), nn.Sequential(nn.Flatten(), nn.Linear(144, 9))
    trained = subject_of(model, x)
    y, measured = trained.data.test.y, DriftPart().measure(trained)["drift"]
    for place in (0, 5, 10):
        logits = orbit_logits(model, drifted(x, other(trained.data, trained.run), BETAS[place]), trained.group, 30)
        assert measured["accuracy"][place] == float((logits.argmax(-1) == y).double().mean())
        assert measured["DI"][place] == invariance(logits, y, trained.group)["DI"]


@groups
def test_maps_put_back_are_the_same_for_a_tied_network(name: str) -> None:
    group, x, y = group_from_name(name), torch.randn(4, *SHAPE, dtype=torch.float64), torch.arange(4)
    alike = []
    for tied in (True, False):
        model = build("mlp", tied, "equal-parameters", group, SHAPE, 9).double()
        trained = subject_of(model, x, run_of(group=name))
        maps = realigned(trained, x, y)
        assert maps.shape == (group.order, *x.shape)
        torch.testing.assert_close(maps[0], integrated_gradients_saliency(model, x, y, group))
        assert maps[0].any()
        alike.append(torch.allclose(maps, maps[0].expand_as(maps), rtol=1e-9, atol=1e-12))
        similarity = SaliencyPart().measure(trained)["similarity"]
        assert len(similarity) == group.order - 1
        assert (min(similarity) > 1 - 1e-9) == tied
    assert alike == [True, False]


def test_saliency_draws_images_of_different_classes() -> None:
    x = torch.randn(12, *SHAPE)
    measured = SaliencyPart().measure(subject_of(mlp(SHAPE, 9, (16,)), x))
    assert (measured["saliency_maps"], len(measured["pictures"])) == (12, 3)
    for picture, image in zip(measured["pictures"], x, strict=False):  # of classes 0, 1, 2
        assert near(unpacked(picture["image"]), image[0].double().numpy())
        assert len(picture["maps"]) == 4


def test_t_sne_is_the_same_each_time() -> None:
    """From the principal components: of few features these are exact, and a seed has nothing to choose."""
    features = torch.randn(24, 5)
    first = plane(features)
    assert (first.shape, first.dtype) == ((24, 2), torch.float64)
    assert torch.equal(plane(features.clone()), first)
    assert not torch.equal(plane(features + 1e-3 * torch.randn(24, 5)), first)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("tied", [True, False], ids=["WT", "DA"])
def test_penultimate_is_what_goes_into_the_last_linear_layer(kind: str, tied: bool) -> None:
    model = build(kind, tied, "equal-parameters", group_from_name("C4"), SHAPE, 9).eval()
    x = torch.randn(3, *SHAPE)
    features = penultimate(model, x)
    assert torch.equal(model[-1](features), model(x))
    assert not features.requires_grad
    assert not model[-1]._forward_pre_hooks
    with pytest.raises((RuntimeError, ValueError)):
        penultimate(model, x[:, 0, :3])
    assert not model[-1]._forward_pre_hooks
    with pytest.raises(ValueError, match=r"expected a model with a linear layer, got Flatten\. Add a head\.$"):
        penultimate(nn.Flatten(), x)


@groups
def test_orbits_of_a_tied_network_are_points(name: str) -> None:
    x, group = torch.randn(20, *SHAPE), group_from_name(name)
    run = run_of("WT", name, seed=1)
    tied = weight_tied_mlp(group, SHAPE, 9, (16, 16))
    assert TsnePart().measure(subject_of(tied, x, run)) == {"orbit_spread": 0.0, "tsne_images": 20}
    bare = TsnePart().measure(subject_of(nn.Sequential(nn.Flatten(), nn.Linear(144, 9)), x, run))
    images = x.double().numpy()
    within = np.mean([np.linalg.norm(flat(gx - images), axis=1) for gx in moved(name, images)])
    apart = np.mean([np.linalg.norm(images[i] - images[j]) for i in range(20) for j in range(i)])
    assert bare["orbit_spread"] == pytest.approx(within / apart, rel=1e-6)


def test_seed_0_is_drawn_in_the_plane() -> None:
    x = torch.randn(8, *SHAPE)
    measured = TsnePart().measure(subject_of(mlp(SHAPE, 9, (16, 16)), x))
    assert np.array(measured["places"]).shape == (4, 8, 2)
    assert measured["classes"] == [0, 1, 2, 3, 4, 5, 6, 7]
