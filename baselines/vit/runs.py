r"""The trainings of `python -m baselines vit`: their data, what one is, and how it goes on after a kill."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.data import load_dataset
from baselines.common.files import write_json, write_tensors
from baselines.common.runner import Advance, Result, load_checkpoint, settings_of, stored_result
from baselines.study.measures import invariance, orbit_logits
from baselines.vit.models import Shape, build, parameters
from equilayers.groups import group_from_name

FORMAT = 1  # of a result; a change of what a training means or measures makes it another
TURNS = group_from_name("D4")  # what the images are turned by
METHODS = {"plain": None, "augmented": None, "C4": "C4", "D4": "D4"}  # and the group of the network


_SHAPE = Shape(384, 6, 6)


@dataclass(frozen=True)
class Protocol:
    r"""What is trained on a data set, and what it is tested on.

    splits are train, test, validation (not used); crop takes that many pixels of padding off each side again. Every
    `every` steps the first `watched` test images are classified for the learning curve; the measures of invariance take
    all images of the orbits of `orbits` test images.
    """

    splits: tuple[int, int, int]
    crop: int
    steps: int
    shape: Shape = _SHAPE
    patch: int = 4
    batch: int = 16
    lr: float = 5e-4  # the peak of one cycle
    decay: float = 0.05
    every: int = 75
    watched: int = 300
    orbits: int = 300
    test_batch: int = 50


_LARGE = Protocol((12_000, 5_000, 1), crop=4, steps=750)
PROTOCOLS = {
    "digits": Protocol((900, 700, 17), crop=0, steps=300, shape=Shape(64, 2, 2), batch=32, lr=2e-3, watched=700),
    "mnist": _LARGE,
    "fashion-mnist": _LARGE,
}


@dataclass(frozen=True)
class Run:
    r"""One training; method is one of METHODS."""

    data: str
    data_dir: str | None
    method: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.method}-seed{self.seed}-{self.steps}"

    def settings(self) -> Result:
        r"""Everything the result depends on."""
        protocol = as_json(PROTOCOLS[self.data])
        del protocol["steps"]  # the default of the run's own
        return settings_of(self, FORMAT, protocol=protocol)


@dataclass(frozen=True)
class ViTJob:
    r"""A run that leaves its result, and until then a checkpoint, in a folder."""

    run: Run
    out: Path

    @property
    def path(self) -> Path:
        return self.out / f"{self.run.name}.json"

    @property
    def checkpoint(self) -> Path:
        return self.path.with_suffix(".pt")

    @property
    def steps(self) -> int:
        return self.run.steps

    def finished(self) -> Result | None:
        r"""The result of an earlier invocation, or None; ValueError where it is of other settings."""
        return stored_result("vit", self.path, self.run.settings())

    def carry_out(self, advance: Advance) -> Result:
        r"""Train from the last checkpoint on, and test."""
        train, test, classes = images_of(self.run.data, self.run.data_dir)
        model = network(self.run, train, classes)
        trained = _train(model, train, test, self, advance)
        result = {
            **self.run.settings(),
            "parameters": parameters(model),
            **_measured(model, test, PROTOCOLS[self.run.data]),
            "test_images": len(test.y),
            "training_seconds": trained.seconds,
            "curve": trained.curve,
        }
        write_json(self.path, result)
        self.checkpoint.unlink(missing_ok=True)
        return result


class Images(NamedTuple):
    r"""Images (N, 1, H, W), standardised, each turned once, and their classes (N,)."""

    x: Tensor
    y: Tensor


class Trained(NamedTuple):
    r"""Processor seconds of the steps, over all invocations, and the learning curve: step, seconds, accuracy."""

    seconds: float
    curve: list[tuple[int, float, float]]


def turned(x: Tensor, g: Tensor) -> Tensor:
    r"""Each of the images x (N, 1, H, W) moved by its own element g (N,) of D4."""
    y = torch.empty_like(x)
    for h in range(TURNS.order):
        y[g == h] = TURNS.act(h, x[g == h])
    return y


@lru_cache(maxsize=1)
def images_of(data: str, data_dir: str | None) -> tuple[Images, Images, int]:
    r"""Training and test images of a data set, each moved once by a random element of D4; how many classes."""
    protocol = PROTOCOLS[data]
    loaded = load_dataset(data, data_dir=data_dir, splits=protocol.splits)
    generator = torch.Generator().manual_seed(0)
    found = []
    for split in (loaded.train, loaded.test):
        x = cropped(split.x, protocol.crop)
        found.append(Images(turned(x, torch.randint(TURNS.order, (len(x),), generator=generator)), split.y))
    return found[0], found[1], loaded.num_classes


def as_json(protocol: Any) -> Result:
    r"""A protocol as it is stored with a result."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(protocol).items()}


def cropped(x: Tensor, c: int) -> Tensor:
    r"""The images without c pixels on each side."""
    return x[..., c : x.shape[-2] - c, c : x.shape[-1] - c]


class Descent:
    r"""AdamW on a one-cycle schedule, gradients cut at norm 1."""

    def __init__(self, model: nn.Module, lr: float, decay: float, steps: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps)

    def step(self, x: Tensor, y: Tensor) -> None:
        r"""One step on images x of the classes y."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()


def network(run: Run, images: Images, classes: int) -> nn.Module:
    r"""The network of a run with the weights of its seed."""
    protocol = PROTOCOLS[run.data]
    height, width = images.x.shape[-2:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return build(protocol.shape, METHODS[run.method], (height, width), protocol.patch, classes, 1)


def batches(count: int, size: int, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    r"""From step `first` on, without end: indices of images and elements of D4, (size,) each; a new order each pass.

    What a step meets depends on its number alone, so that a training which was killed goes on as if it had not been.
    """
    each = count // size
    for done in itertools.count(first // each):
        generator = torch.Generator().manual_seed(1_000_003 * seed + done)
        order = torch.randperm(count, generator=generator)[: each * size].view(each, size)
        elements = torch.randint(TURNS.order, order.shape, generator=generator)
        start = max(first - done * each, 0)
        yield from zip(order[start:], elements[start:], strict=True)


def _train(model: nn.Module, train: Images, test: Images, job: ViTJob, advance: Advance) -> Trained:
    r"""All steps that are left, with a checkpoint every so many."""
    run, protocol = job.run, PROTOCOLS[job.run.data]
    descent = Descent(model, protocol.lr, protocol.decay, run.steps)
    parts: dict[str, Any] = {"model": model, "optimizer": descent.optimizer, "schedule": descent.schedule}
    done, seconds, curve = 0, 0.0, []
    if job.checkpoint.exists():
        kept = load_checkpoint("vit", job.checkpoint, run.settings())
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        done, seconds, curve = kept["step"], kept["seconds"], kept["curve"]
    steps = zip(range(done + 1, run.steps + 1), batches(len(train.y), protocol.batch, run.seed, done), strict=False)
    model.train()
    for step, (n, g) in steps:
        started = time.process_time()
        x = turned(train.x[n], g) if run.method == "augmented" else train.x[n]
        descent.step(x, train.y[n])
        seconds += time.process_time() - started
        if step % protocol.every == 0 or step == run.steps:
            reached = accuracy(model, Images(*(part[: protocol.watched] for part in test)), protocol.test_batch)
            curve.append((step, seconds, reached))
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"step": step, "seconds": seconds, "curve": curve, "settings": run.settings()}
            write_tensors(job.checkpoint, state)
        advance(step)
    return Trained(seconds, curve)


def accuracy(model: nn.Module, data: Images, batch_size: int) -> float:
    r"""Share of the images that get their class; the model is left in training mode."""
    model.eval()
    with torch.no_grad():
        classes = torch.cat([model(x).argmax(1) for x in data.x.split(batch_size)])
    model.train()
    return float((classes == data.y).double().mean())


def _measured(model: nn.Module, test: Images, protocol: Protocol) -> dict[str, float]:
    r"""Accuracy on all test images; LI, DI and prediction consistency over D4 on the first of them."""
    found = {"accuracy": accuracy(model, test, protocol.test_batch)}
    model.eval()
    x, y = (part[: protocol.orbits] for part in test)
    over_orbits = invariance(orbit_logits(model, x, TURNS, protocol.test_batch), y, TURNS)
    return found | {key: over_orbits[key] for key in ("LI", "LI_normalized", "DI", "consistency")}
