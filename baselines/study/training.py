r"""One training run of the study, on one core, the same to the last bit each time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.data import Dataset
from baselines.common.distributed import add_gradients, share
from baselines.common.runner import Advance
from equilayers.groups import Group
from equilayers.losses import InvarianceLoss


@dataclass(frozen=True)
class Recipe:
    r"""How a model is trained: Adam, `epochs` passes in batches of `batch_size` samples.

    lr is the learning rate, constant, or the peak of a one-cycle schedule. nu weighs the invariance regulariser, 0
    leaves it out; form is one of `equilayers.losses.InvarianceLoss`. Without `augment` no sample is moved, neither to
    train on nor to select by.
    """

    epochs: int
    batch_size: int
    lr: float
    one_cycle: bool = False
    nu: float = 0.0
    form: str = "logit"
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

    In a process group (torchrun) each process takes its share of every batch, and all end with the same weights.

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
    penalty = InvarianceLoss(group, recipe.form) if recipe.nu else None
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    steps = recipe.epochs * math.ceil(len(labels) / recipe.batch_size)
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps) if recipe.one_cycle else None
    )
    best = Trained(model, 0, -1.0)
    weights = copy.deepcopy(model.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in _batches(len(labels), group, recipe, generator):
            whole = len(batch.n)
            mine = batch.part(share(whole))
            optimizer.zero_grad()
            if len(mine.n):
                x, y = images[mine.g, mine.n], labels[mine.n]
                moved = None if penalty is None else images[mine.hg, mine.n]
                (_loss(model, x, y, moved, penalty, recipe.nu) * (len(y) / whole)).backward()
            add_gradients(model)
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


class _Batch(NamedTuple):
    r"""Numbers of samples n, elements g that they are moved by, and hg, which the regulariser compares with: (B,)."""

    n: Tensor
    g: Tensor
    hg: Tensor

    def part(self, places: slice) -> _Batch:
        return _Batch(self.n[places], self.g[places], self.hg[places])


def _batches(count: int, group: Group, recipe: Recipe, generator: torch.Generator) -> Iterator[_Batch]:
    r"""One epoch: every sample once, in random order, each with random elements."""
    products = torch.as_tensor(group.cayley_table.copy())
    for n in torch.randperm(count, generator=generator).split(recipe.batch_size):
        g = torch.randint(group.order if recipe.augment else 1, n.shape, generator=generator)
        h = torch.randint(1, group.order, n.shape, generator=generator) if recipe.nu else torch.zeros_like(g)
        yield _Batch(n, g, products[h, g])


def _loss(
    model: nn.Module, x: Tensor, y: Tensor, moved: Tensor | None, penalty: InvarianceLoss | None, nu: float
) -> Tensor:
    if penalty is None or moved is None:
        return F.cross_entropy(model(x), y)
    f, fh = model(torch.cat((x, moved))).chunk(2)
    return F.cross_entropy(f, y) + nu * penalty.between(f, fh)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 2048) -> float:
    r"""Share of samples x (B, ...) whose largest logit is that of their class y (B,)."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in x.split(batch_size)])
    return float((predicted == y).double().mean())


def _moved(x: Tensor, group: Group, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(group.order, x.shape[:1], generator=generator)
    return group.orbit(x)[drawn, torch.arange(len(x))]
