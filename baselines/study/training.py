r"""One training run of the study, on one core, the same to the last bit each time."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

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
    model: nn.Module, data: Dataset, group: Group, recipe: Recipe, seed: int, advance: Advance | None = None
) -> Trained:
    r"""Train on samples moved by random elements of the group; the best validation accuracy selects the epoch.

    `loss = cross entropy of f(gx) + nu · LI(f(gx), f(hgx))`, g random in the group, h random among the others.

    In a process group (torchrun) each process takes its share of every batch, and all end with the same weights.

    Args:
        model: images (B, 1, H, W) to logits (B, K), trained in place.
        data: its training split is learned, its validation split selects; each validation image is moved once, too.
        group, recipe: the symmetry that training samples are moved by, and how to train.
        seed: of the order of the samples and of the elements.
        advance: told the number of every finished epoch, from 1.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = group.orbit(data.train.x), data.train.y  # moved once, not in every step
    held_out = data.validation.x
    if recipe.augment:
        drawn = torch.randint(group.order, held_out.shape[:1], generator=generator)
        held_out = group.orbit(held_out)[drawn, torch.arange(len(held_out))]
    penalty = InvarianceLoss(group, recipe.form) if recipe.nu else None
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    steps = recipe.epochs * math.ceil(len(labels) / recipe.batch_size)
    schedule = None
    if recipe.one_cycle:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    best = Trained(model, 0, -1.0)
    weights = copy.deepcopy(model.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in _batches(len(labels), group, recipe, generator):
            whole = len(batch[0])
            n, g, hg = (part[share(whole)] for part in batch)
            optimizer.zero_grad()
            if len(n):
                x = images[g, n] if penalty is None else torch.cat((images[g, n], images[hg, n]))
                logits = model(x).chunk(1 if penalty is None else 2)
                loss = F.cross_entropy(logits[0], labels[n])
                if penalty is not None:
                    loss = loss + recipe.nu * penalty.between(*logits)
                (loss * (len(n) / whole)).backward()
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


def _batches(
    count: int, group: Group, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    r"""One epoch: every sample once, in random order, each with random elements.

    Indices of samples n, elements g that they are moved by, and hg, which the regulariser compares with: (B,) each.
    """
    products = torch.as_tensor(group.cayley_table.copy())
    for n in torch.randperm(count, generator=generator).split(recipe.batch_size):
        g = torch.randint(group.order if recipe.augment else 1, n.shape, generator=generator)
        h = torch.randint(1, group.order, n.shape, generator=generator) if recipe.nu else torch.zeros_like(g)
        yield n, g, products[h, g]


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 2048) -> float:
    r"""Share of samples x (B, ...) whose largest logit is that of their class y (B,)."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in x.split(batch_size)])
    return float((predicted == y).double().mean())
