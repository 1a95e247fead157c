r"""The trainings of `python -m baselines rotmnist`: their data, what one is, and how it goes on after a kill."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.data import load_arrays
from baselines.common.files import write_json, write_tensors
from baselines.common.runner import Advance, Result, load_checkpoint, settings_of, stored_result
from baselines.rotmnist.models import build, parameters
from equilayers.functional import rotate

FORMAT = 1  # of a result; a change of what a training means or measures makes it another
EPOCHS, BATCH, LR, DECAY = 40, 64, 1e-2, 1e-4
TEST_BATCH = 500
SIZES = (10_000, 2_000, 50_000)  # train, validation, test


@dataclass(frozen=True)
class Run:
    r"""One training: on 12,000 digits and tested on 50,000, or with `validate` on 10,000 and tested on 2,000."""

    model: str
    seed: int
    epochs: int
    validate: bool
    data_dir: str | None

    @property
    def name(self) -> str:
        return f"{self.model}-seed{self.seed}{'-validation' if self.validate else ''}"

    def settings(self) -> Result:
        r"""Everything the result depends on."""
        return settings_of(self, FORMAT, batch=BATCH, lr=LR, decay=DECAY)


@dataclass(frozen=True)
class RotMnistJob:
    r"""A run that leaves its result, and until then a checkpoint, in a folder."""

    run: Run
    out: Path

    @property
    def steps(self) -> int:
        return self.run.epochs

    def finished(self) -> Result | None:
        r"""The result of an earlier invocation, or None; ValueError where it is of other settings."""
        return stored_result("rotmnist", self.out / f"{self.run.name}.json", self.run.settings())

    def discard(self) -> None:
        r"""Delete the result and the checkpoint."""
        for ending in ("json", "pt"):
            (self.out / f"{self.run.name}.{ending}").unlink(missing_ok=True)

    def carry_out(self, advance: Advance) -> Result:
        r"""Train from the last checkpoint on, and test."""
        checkpoint = self.out / f"{self.run.name}.pt"
        train, test = digits_of(self.run.data_dir, self.run.validate)
        model = build(self.run.model, self.run.seed)
        seconds = _train(model, train, self.run, checkpoint, advance)
        started = time.process_time()
        errors = wrong_answers(model, test)
        result = {
            **self.run.settings(),
            "parameters": parameters(model),
            "stored_numbers": sum(p.numel() for p in model.parameters()),
            "test_error": 100 * errors / len(test.y),
            "test_digits": len(test.y),
            "training_seconds": seconds,
            "test_seconds": time.process_time() - started,
        }
        write_json(self.out / f"{self.run.name}.json", result)
        return result


class Digits(NamedTuple):
    r"""Images (N, 1, 28, 28), standardised, and their classes (N,), 0..9."""

    x: Tensor
    y: Tensor


def rotated_mnist(data_dir: str | None, seed: int = 0, sizes: tuple[int, int, int] = SIZES) -> list[Digits]:
    r"""Shuffle MNIST's 70,000 digits, rotate each by a uniform angle (bicubic), and split them.

    The protocol of Larochelle et al. 2007, made anew: other digits, other angles, the same numbers of them.

    Args:
        data_dir: folder of the idx files; None: EQUILAYERS_DATA.
        seed: of the order and the angles.
        sizes: of the splits, train, validation and test.
    """
    images, labels = load_arrays("mnist", data_dir)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)[: sum(sizes)]
    angles = 360 * torch.rand(len(order), generator=generator, dtype=torch.float64)
    x = torch.from_numpy(images)[order, None].float() / 255
    rotated = torch.stack([rotate(image, float(angle), "bicubic") for image, angle in zip(x, angles, strict=True)])
    rotated = rotated.clamp(0, 1)
    train = rotated[: sizes[0]]
    standard = (rotated - train.mean()) / train.std()
    y = torch.from_numpy(labels)[order].long()
    return [Digits(*pair) for pair in zip(standard.split(sizes), y.split(sizes), strict=True)]


@lru_cache(maxsize=1)
def digits_of(data_dir: str | None, validate: bool) -> tuple[Digits, Digits]:
    r"""10,000 digits and the 2,000 held out, or those 12,000 and the 50,000 to be tested on, for every seed."""
    train, validation, test = rotated_mnist(data_dir)
    if validate:
        return train, validation
    return Digits(*(torch.cat(pair) for pair in zip(train, validation, strict=True))), test


def _train(model: nn.Module, data: Digits, run: Run, checkpoint: Path, advance: Advance) -> float:
    r"""Adam on a one-cycle schedule, no augmentation; returns its processor seconds, over all invocations."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    steps = run.epochs * -(-len(data.y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    generator = torch.Generator().manual_seed(run.seed)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done, seconds = 0, 0.0
    if checkpoint.exists():
        kept = load_checkpoint("rotmnist", checkpoint, run.settings())
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        generator.set_state(kept["generator"])
        done, seconds = kept["epoch"], kept["seconds"]
    for epoch in range(done + 1, run.epochs + 1):
        started = time.process_time()
        model.train()
        for batch in torch.randperm(len(data.y), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(data.x[batch]), data.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds += time.process_time() - started
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"generator": generator.get_state(), "epoch": epoch, "seconds": seconds, "settings": run.settings()}
        write_tensors(checkpoint, state)
        advance(epoch)
    return seconds


def wrong_answers(model: nn.Module, data: Digits) -> int:
    r"""How many digits get another class than theirs."""
    model.eval()
    with torch.no_grad():
        classes = torch.cat([model(x).argmax(1) for x in data.x.split(TEST_BATCH)])
    return int((classes != data.y).sum())
