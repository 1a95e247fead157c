r"""The trainings of `python -m baselines finetune`: a plain network, and what becomes of its weights."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from baselines.common.data import load_dataset
from baselines.common.files import write_json, write_tensors
from baselines.common.runner import Advance, Result, load_checkpoint, settings_of, stored_result
from baselines.study.measures import invariance, orbit_logits
from baselines.vit.models import Shape, build, parameters
from baselines.vit.runs import Descent, Images, as_json, batches, cropped, turned
from equilayers.convert import set_softness, soften, to_equivariant
from equilayers.groups import Group, group_from_name

FORMAT = 1  # of a result; a change of what a training means or measures makes it another
PRETRAINED = "plain"
METHODS = {
    "plain": "the plain network, as it is pretrained",
    "augmented": "the plain network, trained on with moved images",
    "converted": "its weights made equivariant at once, and trained on",
    "annealed": "its weights drawn to equivariant ones while it is trained on",
    "softened": "its weights drawn towards equivariant ones by a fixed share, and trained on",
    "projected": "its weights drawn towards equivariant ones by a fixed share, not trained on",
    "scratch": "the equivariant network from random weights",
}


@dataclass(frozen=True)
class Protocol:
    r"""What is trained, on upright images.

    splits are train, test, validation (not used); crop takes that many pixels of padding off each side again. pretrain
    and steps: of the plain network, and of everything made of it. tested: images whose orbits are looked at.
    """

    splits: tuple[int, int, int]
    crop: int
    shape: Shape
    pretrain: int
    steps: int
    patch: int = 4
    batch: int = 32
    lr: float = 1e-3  # the peak of one cycle
    decay: float = 0.05
    tested: int = 2000
    test_batch: int = 100


PROTOCOLS = {
    "digits": Protocol((900, 700, 17), 0, Shape(32, 2, 2), pretrain=200, steps=28, lr=2e-3, tested=700),
    "fashion-mnist": Protocol((12_000, 2_000, 1), 4, Shape(128, 4, 4), pretrain=2250, steps=375),
    "mnist": Protocol((12_000, 2_000, 1), 4, Shape(128, 4, 4), pretrain=2250, steps=375),
}


@dataclass(frozen=True)
class Run:
    r"""One training; method is one of METHODS, softness 1 as the weights are, 0 equivariant."""

    data: str
    data_dir: str | None
    group: str
    method: str
    seed: int
    softness: float = 0.0

    @property
    def name(self) -> str:
        ending = f"-{self.softness:g}" if self.method in ("softened", "projected") else ""
        return f"{self.data}-{self.group}-{self.method}-seed{self.seed}{ending}"

    def settings(self) -> Result:
        r"""Everything the result depends on."""
        return settings_of(self, FORMAT, protocol=as_json(PROTOCOLS[self.data]))


@dataclass(frozen=True)
class FinetuneJob:
    r"""A run that leaves its result in a folder; that of the plain network leaves its weights as well."""

    run: Run
    out: Path

    @property
    def path(self) -> Path:
        return self.out / f"{self.run.name}.json"

    @property
    def weights(self) -> Path:
        r"""Of the plain network that it begins with."""
        return self.out / f"{self.run.data}-{PRETRAINED}-seed{self.run.seed}.pt"

    @property
    def steps(self) -> int:
        protocol = PROTOCOLS[self.run.data]
        return {PRETRAINED: protocol.pretrain, "projected": 1}.get(self.run.method, protocol.steps)

    def finished(self) -> Result | None:
        r"""The result of an earlier invocation, or None; ValueError where it is of other settings."""
        found = stored_result("finetune", self.path, self.run.settings())
        return found if self.run.method != PRETRAINED or self.weights.exists() else None

    def carry_out(self, advance: Advance) -> Result:
        r"""Make the network, train it, and test it."""
        run, protocol = self.run, PROTOCOLS[self.run.data]
        group = group_from_name(run.group)
        train, test, classes = images_of(run.data, run.data_dir)
        model = self._network(train, classes, group)
        if run.method == PRETRAINED:
            _train(model, train, self, advance)
            write_tensors(self.weights, {"model": model.state_dict(), "settings": _pretraining(run)})
        elif run.method != "projected":
            _train(model, train, self, advance)
        if run.method == "annealed":
            model = _converted(model, group, train, from_weights=True)
        advance(self.steps)
        model.eval()
        x, y = (part[: protocol.tested] for part in test)
        measured = invariance(orbit_logits(model, x, group, protocol.test_batch), y, group)
        result = {**run.settings(), "parameters": parameters(model), **measured}
        write_json(self.path, result)
        return result

    def _network(self, train: Images, classes: int, group: Group) -> nn.Module:
        r"""The network as it is before the training."""
        run, protocol = self.run, PROTOCOLS[self.run.data]
        height, width = train.x.shape[-2:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            model = build(protocol.shape, None, (height, width), protocol.patch, classes, 1)
            if run.method == PRETRAINED:
                return model
            if run.method == "scratch":
                return _converted(model, group, train, from_weights=False)
        model.load_state_dict(load_checkpoint("finetune", self.weights, _pretraining(run))["model"])
        if run.method == "augmented":
            return model
        if run.method == "converted":
            return _converted(model, group, train, from_weights=True)
        soft, _ = soften(model, group, train.x[:2])
        return set_softness(soft, run.softness)


def _pretraining(run: Run) -> Result:
    r"""The settings of the plain network that a run begins with: neither the group nor what follows is among them."""
    settings = replace(run, group="", method=PRETRAINED, softness=0.0).settings()
    return settings | {"protocol": settings["protocol"] | {"steps": 0}}


def _converted(model: nn.Module, group: Group, train: Images, *, from_weights: bool) -> nn.Module:
    made, report = to_equivariant(model, group, train.x[:2], from_weights=from_weights)
    if not report.complete:
        raise ValueError(f"finetune: expected a network that converts whole, got {report.of('refused')[0]}.")
    return made


@lru_cache(maxsize=1)
def images_of(data: str, data_dir: str | None) -> tuple[Images, Images, int]:
    r"""Training and test images of a data set, upright, and how many classes."""
    protocol = PROTOCOLS[data]
    loaded = load_dataset(data, data_dir=data_dir, splits=protocol.splits)
    train, test = (Images(cropped(each.x, protocol.crop).contiguous(), each.y) for each in (loaded.train, loaded.test))
    return train, test, loaded.num_classes


def _train(model: nn.Module, train: Images, job: FinetuneJob, advance: Advance) -> None:
    r"""All steps; the softness of what is annealed falls to 0 in three quarters of them."""
    run, protocol = job.run, PROTOCOLS[job.run.data]
    descent = Descent(model, protocol.lr, protocol.decay, job.steps)
    model.train()
    found = batches(len(train.y), protocol.batch, run.seed, 0)
    for step, (n, g) in zip(range(1, job.steps + 1), found, strict=False):
        if run.method == "annealed":
            set_softness(model, (1 + math.cos(math.pi * min(1.0, step / (0.75 * job.steps)))) / 2)
        x = turned(train.x[n], g) if run.method in ("augmented", "annealed", "softened") else train.x[n]
        descent.step(x, train.y[n])
        advance(step)
