"""One training run: the models of the study, determinism, the choice of the epoch, and the regulariser."""

import copy
import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from baselines.common.data import Dataset, Split
from baselines.study.measures import invariance, orbit_logits
from baselines.study.models import mlp, weight_tied_mlp
from baselines.study.tables import group_name, paper_label
from baselines.study.training import Recipe, Trained, accuracy, train
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.metrics import logit_invariance_error
from strategies import name

C4 = CyclicRotation(4)
RECIPE = Recipe(epochs=3, batch_size=16, lr=3e-3)
SHAPE = (1, 6, 6)
State = Mapping[str, Tensor]


def toy_data(noise: float = 1.0, symmetric_validation: bool = False) -> Dataset:
    """Three classes, an image each, in noise."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(3, *SHAPE, generator=generator)

    def split(n: int) -> Split:
        y = torch.arange(n) % 3
        return Split(centres[y] + noise * torch.randn(n, *SHAPE, generator=generator), y)

    train_split, validation, test = split(50), split(30), split(40)
    if symmetric_validation:
        # A quarter in all four corners: whatever element moves the image, the model sees the same one.
        corner = torch.zeros_like(validation.x)
        corner[..., :3, :3] = validation.x[..., :3, :3]
        validation = Split(C4.orbit(corner).sum(0), validation.y)
    return Dataset("toy", train_split, validation, test, 0.0, 1.0, num_classes=3)


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


@pytest.mark.parametrize("recipe", [RECIPE, dataclasses.replace(RECIPE, nu=1.0, one_cycle=True)], ids=["DA", "IR"])
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
