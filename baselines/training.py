r"""One training run of the study, on one core, the same to the last bit each time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.data import Dataset
from equilayers.groups import Group
from equilayers.losses import InvarianceLoss

Advance = Callable[[int], object]  # told the number of each finished epoch, from 1


@dataclass(frozen=True)
class Recipe:
    r"""How a model is trained: Adam, `epochs` passes in batches of `batch_size` samples.

    lr is the learning rate, constant, or the peak of a one-cycle schedule. nu weighs the invariance regulariser; 0
    leaves it out. Without `augment` no sample is moved, neither to train on nor to select by.
    """

    epochs: int
    batch_size: int
    lr: float
    one_cycle: bool = False
    nu: float = 0.0
    augment: bool = True


@dataclass(frozen=True)
class Trained:
    r"""A model with the weights of its best epoch, and how it got there."""

    model: nn.Module
    best_epoch: int
    validation_accuracy: float


def train(
    model: nn.Module,
    data: Dataset,
    group: Group,
    recipe: Recipe,
    seed: int,
    advance: Advance | None = None,
) -> Trained:
    r"""Train on samples moved by random elements of the group; the best validation accuracy selects the epoch.

    `loss = cross entropy of f(gx) + nu · LI(f(gx), f(hgx))`, g random in the group, h random among the others.

    Args:
        model: images (B, 1, H, W) to logits (B, K), trained in place.
        data: its training split is learned, its validation split selects; each validation image is moved once, too.
        group: the symmetry that training samples are moved by.
        recipe: how to train.
        seed: of the order of the samples and of the elements.
        advance: told the number of every finished epoch, from 1.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = group.orbit(data.train.x), data.train.y  # moved once, not in every step
    held_out = _moved(data.validation.x, group, generator) if recipe.augment else data.validation.x
    penalty = InvarianceLoss(group) if recipe.nu else None
    products = torch.as_tensor(group.cayley_table.copy())
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    steps = recipe.epochs * math.ceil(len(labels) / recipe.batch_size)
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps) if recipe.one_cycle else None
    )
    best = Trained(model, 0, -1.0)
    weights = copy.deepcopy(model.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in torch.randperm(len(labels), generator=generator).split(recipe.batch_size):
            g = torch.randint(group.order if recipe.augment else 1, batch.shape, generator=generator)
            x = images[g, batch]
            if penalty is None:
                loss = F.cross_entropy(model(x), labels[batch])
            else:
                h = torch.randint(1, group.order, batch.shape, generator=generator)
                f, fh = model(torch.cat((x, images[products[h, g], batch]))).chunk(2)
                loss = F.cross_entropy(f, labels[batch]) + recipe.nu * penalty.between(f, fh)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        reached = accuracy(model, held_out, data.validation.y)
        if reached > best.validation_accuracy:
            best = Trained(model, epoch, reached)
            weights = copy.deepcopy(model.state_dict())
        if advance is not None:
            advance(epoch)
    model.load_state_dict(weights)
    return best


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 2048) -> float:
    r"""Share of samples x (B, ...) whose largest logit is that of their class y (B,)."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in x.split(batch_size)])
    return float((predicted == y).double().mean())


def orbit_accuracy(model: nn.Module, x: Tensor, y: Tensor, group: Group, batch_size: int = 2048) -> float:
    r"""The accuracy on samples moved by a random element, in expectation: its mean over the group."""
    return sum(accuracy(model, group.act(g, x), y, batch_size) for g in range(group.order)) / group.order


def _moved(x: Tensor, group: Group, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(group.order, x.shape[:1], generator=generator)
    return group.orbit(x)[drawn, torch.arange(len(x))]
