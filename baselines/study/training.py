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

CENTRED = "centred-normalised"  # a form of the regulariser: the normalised one, of logits less their mean over classes
SCHEDULES = ("constant", "cosine", "one-cycle")
ELEMENTS = ("random", "all")
SELECTED = ("best", "last")


@dataclass(frozen=True)
class Recipe:
    r"""How a model is trained: Adam, `epochs` passes in batches of `batch_size` samples.

    lr is the learning rate, constant, where a cosine falls to 0 from, or the peak of a one-cycle schedule. nu weighs
    the invariance regulariser, 0 leaves it out; form is one of `InvarianceLoss` or `CENTRED`. Its elements are
    "random", one for each sample and step, or "all": batches of whole orbits, of as many images. Without `augment` no
    sample is moved, neither to train on nor to select by. init is one of `starts.INITS`; select is the epoch that is
    kept, "best" by validation accuracy or "last".
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str = "constant"
    nu: float = 0.0
    form: str = "logit"
    augment: bool = True
    elements: str = "random"
    init: str = "torch"
    select: str = "best"


@dataclass(frozen=True)
class Trained:
    r"""A model with the weights of the epoch that was selected, how it got there, and the weights of the last epoch."""

    model: nn.Module
    best_epoch: int
    validation_accuracy: float
    last: dict[str, Tensor]


def train(
    model: nn.Module, data: Dataset, group: Group, recipe: Recipe, seed: int, advance: Advance | None = None
) -> Trained:
    r"""Train on samples moved by random elements of the group, or on their whole orbits.

    `loss = cross entropy of f(gx) + nu · LI(f(gx), f(hgx))`, g random in the group, h random among the others; with
    whole orbits the mean over all g and all h.

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
    penalty = Penalty(group, recipe) if recipe.nu else None
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    schedule = _schedule(optimizer, recipe, recipe.epochs * _steps(len(labels), group, recipe))
    best, reached_by_best = 0, -1.0
    weights = copy.deepcopy(model.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for samples, elements in _batches(len(labels), group, recipe, generator):
            whole = len(samples)
            n, moves = samples[share(whole)], elements[:, share(whole)]
            optimizer.zero_grad()
            if len(n):
                logits = model(images[moves, n].flatten(0, 1)).unflatten(0, moves.shape)
                learned = logits if recipe.elements == "all" else logits[:1]
                loss = F.cross_entropy(learned.flatten(0, 1), labels[n].repeat(len(learned)))
                if penalty is not None:
                    loss = loss + recipe.nu * penalty(logits)
                (loss * (len(n) / whole)).backward()
            add_gradients(model)
            optimizer.step()
            schedule.step()
        reached = accuracy(model, held_out, data.validation.y)
        if reached > reached_by_best or recipe.select == "last":
            best, reached_by_best = epoch, reached
            weights = copy.deepcopy(model.state_dict())
        if advance is not None:
            advance(epoch)
    last = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return Trained(model, best, reached_by_best, last)


class Penalty:
    r"""The regulariser of a recipe, between logits of the same samples."""

    def __init__(self, group: Group, recipe: Recipe) -> None:
        self.centred, self.whole = recipe.form == CENTRED, recipe.elements == "all"
        self.loss = InvarianceLoss(group, "normalized_logit" if self.centred else recipe.form)
        self.others = torch.as_tensor(group.cayley_table.copy())[1:]  # hg for every h but the identity

    def __call__(self, logits: Tensor) -> Tensor:
        r"""Of logits (2, B, K) of two elements, or (|G|, B, K) of whole orbits: the mean over all their pairs."""
        if self.centred:
            logits = logits - logits.mean(-1, keepdim=True)
        if not self.whole:
            return self.loss.between(*logits)
        gaps = [self.loss.between(logits.flatten(0, 1), logits[hg].flatten(0, 1)) for hg in self.others]
        return torch.stack(gaps).mean()


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    schedules = torch.optim.lr_scheduler
    if recipe.schedule == "one-cycle":
        return schedules.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    if recipe.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimizer, steps)
    return schedules.ConstantLR(optimizer, factor=1.0)


def _orbits(group: Group, recipe: Recipe) -> int:
    r"""Images of each sample in a batch beside those of the regulariser."""
    return group.order if recipe.elements == "all" else 1


def _steps(count: int, group: Group, recipe: Recipe) -> int:
    r"""Batches an epoch."""
    each = _orbits(group, recipe)
    return math.ceil(max(1, count // each) / max(1, recipe.batch_size // each))


def _batches(count: int, group: Group, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    r"""One epoch: every sample once, in random order; of whole orbits as many samples as give that many images.

    Indices of samples n (B,) and the elements they are moved by (M, B): g, with a regulariser g and hg, or all.
    """
    products, each = torch.as_tensor(group.cayley_table.copy()), _orbits(group, recipe)
    order = torch.randperm(count, generator=generator)[: max(1, count // each)]
    for n in order.split(max(1, recipe.batch_size // each)):
        if each > 1:
            yield n, torch.arange(each)[:, None].expand(each, len(n))
            continue
        g = torch.randint(group.order if recipe.augment else 1, n.shape, generator=generator)
        if not recipe.nu:
            yield n, g[None]
            continue
        h = torch.randint(1, group.order, n.shape, generator=generator)
        yield n, torch.stack((g, products[h, g]))


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 2048) -> float:
    r"""Share of samples x (B, ...) whose largest logit is that of their class y (B,)."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in x.split(batch_size)])
    return float((predicted == y).double().mean())
