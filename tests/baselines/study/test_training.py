"""One training run: the models of the study, determinism, the choice of the epoch, and the regulariser."""

import copy
import dataclasses
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from baselines.common.data import Dataset
from baselines.study.measures import invariance, orbit_logits
from baselines.study.models import mlp, weight_tied_mlp
from baselines.study.tables import group_name, paper_label
from baselines.study.training import CENTRED, Penalty, Recipe, Trained, _schedule, accuracy, train
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.metrics import logit_invariance_error
from strategies import name
from studies import TOY_SHAPE as SHAPE
from studies import toy_data

C4 = CyclicRotation(4)
RECIPE = Recipe(epochs=3, batch_size=16, lr=3e-3)
State = Mapping[str, Tensor]


def trained(recipe: Recipe, data: Dataset) -> Trained:
    torch.manual_seed(1)
    return train(mlp(SHAPE, 3, (16, 16)), data, C4, recipe, 0)


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("group", [C4, CyclicTranslation(3), Dihedral(4)], ids=name)
def test_models_have_the_parameters_of_the_paper(group: Group) -> None:
    for model in (mlp((1, 36, 36), 9), weight_tied_mlp(group, (1, 36, 36), 9)):
        assert sum(p.numel() for p in model.parameters()) == 233_225
        assert model(torch.randn(2, 1, 36, 36)).shape == (2, 9)
        assert sum(isinstance(module, nn.ReLU) for module in model) == 5


@pytest.mark.parametrize(("name", "label"), [("C4", "R4"), ("C36", "R36"), ("D4", "D4"), ("C4xT3", "C4xT3")])
def test_labels_of_the_paper(name: str, label: str) -> None:
    assert paper_label(name) == label
    assert group_name(label) == group_name(name) == name


@pytest.mark.parametrize(
    "recipe", [RECIPE, dataclasses.replace(RECIPE, nu=1.0, schedule="one-cycle")], ids=["DA", "IR"]
)
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(recipe: Recipe) -> None:
    """It neither depends on the global generator nor touches it."""
    torch.manual_seed(1)
    models = [mlp(SHAPE, 3, (16, 16))]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    data, fresh, best = toy_data(), toy_data(), []
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        best.append(train(model, data, C4, recipe, seed).best_epoch)
        assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (model.state_dict() for model in models)
    assert equal(first, again)
    assert best[0] == best[1]
    assert not equal(first, other)
    assert all(torch.equal(getattr(data, key).x, getattr(fresh, key).x) for key in ("train", "validation", "test"))


def test_the_best_epoch_is_kept() -> None:
    data = toy_data(noise=3.0, symmetric_validation=True)
    assert all(torch.equal(C4.act(g, data.validation.x), data.validation.x) for g in range(4))
    places = [check_best_epoch(data, seed) for seed in range(4)]
    assert any(0 < place < 7 for place in places), "nothing is shown by the first and the last epoch alone"


def check_best_epoch(data: Dataset, seed: int) -> int:
    """Compare one training with its epochs, noted as they end; where the best of them stands."""
    model = mlp(SHAPE, 3, (16, 16))
    reached: list[float] = []
    weights: list[State] = []

    def note(epoch: int) -> None:
        assert epoch == len(reached) + 1
        reached.append(accuracy(model, data.validation.x, data.validation.y))
        weights.append(copy.deepcopy(model.state_dict()))

    result = train(model, data, C4, Recipe(epochs=8, batch_size=16, lr=0.03), seed, note)
    best = reached.index(max(reached))
    assert len(reached) == 8
    assert (result.best_epoch, result.validation_accuracy) == (best + 1, max(reached))
    assert result.model is model
    assert equal(model.state_dict(), weights[best])
    assert equal(result.last, weights[-1])
    assert best == 7 or not equal(model.state_dict(), weights[-1])
    return best


def test_learns_and_the_regulariser_lowers_the_invariance_error() -> None:
    data = toy_data(noise=0.5)
    results = [trained(Recipe(epochs=15, batch_size=16, lr=0.01, nu=nu), data) for nu in (0.0, 1.0, 30.0)]
    errors = [logit_invariance_error(result.model, data.test.x, C4).item() for result in results]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert results[0].validation_accuracy > 0.9
    logits = orbit_logits(results[0].model, data.test.x, C4, 40)
    assert invariance(logits, data.test.y, C4)["accuracy"] > 0.9


@pytest.mark.parametrize("form", ["logit", "distribution", "normalized_logit", CENTRED])
def test_penalty_of_whole_orbits_is_the_mean_over_all_pairs(form: str) -> None:
    group, logits = Dihedral(2), 3 * torch.randn(4, 5, 7, dtype=torch.float64)
    penalty = Penalty(group, Recipe(1, 1, 1.0, form=form, elements="all"))
    seen = logits - logits.mean(-1, keepdim=True) if form == CENTRED else logits
    pairs = [gap(form, seen[g], seen[k]) for g in range(4) for k in range(4) if g != k]
    assert penalty(logits).item() == pytest.approx(sum(pairs) / 12, rel=1e-12)
    offset = torch.randn(4, 5, 1, dtype=torch.float64)  # common to all logits of an image: no class gains by it
    assert (penalty(logits + offset).item() == pytest.approx(penalty(logits).item())) == (form[:2] in ("di", "ce"))
    random = Penalty(group, Recipe(1, 1, 1.0, form=form))
    assert random(logits[:2]).item() == pytest.approx(gap(form, seen[0], seen[1]), rel=1e-12)


def gap(form: str, f: Tensor, fg: Tensor) -> float:
    """The penalty between two logits, mean over samples, written out."""
    if form == "distribution":
        p, q = f.softmax(-1), fg.softmax(-1)
        return float((p * (p / q).log()).sum(-1).mean())
    apart = (f - fg).square().sum(-1)
    return float((apart / 2 if form == "logit" else apart / f.square().sum(-1)).mean())


def test_batches_of_whole_orbits_are_of_as_many_images() -> None:
    data, model = toy_data(), mlp(SHAPE, 3, (8,))
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]) if module.training else None)
    train(model, data, C4, dataclasses.replace(RECIPE, nu=1.0, elements="all"), 0)
    assert [len(x) for x in seen] == RECIPE.epochs * [16, 16, 16], "50 samples: 12 orbits an epoch, in batches of 4"
    for x in seen:
        upright = x.unflatten(0, (4, -1))
        assert torch.equal(upright, C4.orbit(upright[0]))
        assert all((sample == data.train.x).flatten(1).all(1).any() for sample in upright[0])


def test_the_last_epoch_is_kept_on_request_and_a_rate_falls_to_nothing() -> None:
    data = toy_data(noise=3.0)
    results = {}
    for select in ("best", "last"):
        result = trained(Recipe(8, 16, 0.03, select=select), data)
        results[select] = result
        assert equal(result.model.state_dict(), result.last) == (result.best_epoch == 8)
    assert results["last"].best_epoch == 8
    assert equal(results["best"].last, results["last"].last)
    assert not equal(results["best"].model.state_dict(), results["last"].last), (
        "the best is another, or nothing is shown"
    )
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule, rates = _schedule(sgd, Recipe(1, 1, 0.5, schedule="cosine"), 4), []
    for _ in range(5):
        rates.append(schedule.get_last_lr()[0])
        sgd.step()
        schedule.step()
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * k / 4)) for k in range(5)])


def test_accuracy_by_hand_and_in_batches() -> None:
    logits = torch.eye(4)[[0, 1, 2, 3, 0]]
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.9)).train()
    y = torch.tensor([0, 1, 0, 3, 0])
    assert accuracy(model, logits, y) == accuracy(model, logits, y, batch_size=2) == 0.8


@pytest.mark.parametrize("augment", [True, False])
def test_samples_are_moved_only_with_augmentation(augment: bool) -> None:
    data, model = toy_data(), mlp(SHAPE, 3, (8,))
    seen: dict[bool, list[Tensor]] = {True: [], False: []}  # to train on, and to be selected by
    model.register_forward_pre_hook(lambda module, args: seen[module.training].append(args[0]))
    train(model, data, C4, dataclasses.replace(RECIPE, augment=augment), 0)
    for training, split in ((True, data.train.x), (False, data.validation.x)):
        shown = torch.cat(seen[training])
        assert len(shown) == RECIPE.epochs * len(split)
        upright = (shown[:, None] == split).flatten(2).all(2).any(1)
        assert bool(upright.all()) == (not augment)
        moved = (shown[:, None] == C4.orbit(split).flatten(0, 1)).flatten(2).all(2).any(1)
        assert bool(moved.all())
