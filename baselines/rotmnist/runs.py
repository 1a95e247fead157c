r"""The trainings of `python -m baselines rotmnist`: what one is, how it goes on after a kill, and what is kept."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.common.files import write, write_json
from baselines.common.runner import Advance, Result, stored_result
from baselines.rotmnist.data import Digits, rotated_mnist
from baselines.rotmnist.models import build, parameters

FORMAT = 1  # of a result; a change of what a training means or measures makes it another
EPOCHS, BATCH, LR, DECAY = 40, 64, 1e-2, 1e-4
TEST_BATCH = 500


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
        r"""Everything the result depends on; where the files lie is not part of it."""
        settings = asdict(self)
        del settings["data_dir"]
        recipe = {"batch": BATCH, "lr": LR, "decay": DECAY}
        return {"format": FORMAT, "torch": torch.__version__.split("+")[0], **settings, **recipe}


@dataclass(frozen=True)
class RotMnistJob:
    r"""A run that leaves its result, and until then a checkpoint, in a folder."""

    run: Run
    out: Path

    @property
    def steps(self) -> int:
        return self.run.epochs

    def finished(self) -> Result | None:
        r"""The result of an earlier invocation, or None.

        Raises:
            ValueError: there is one, but of other settings.
        """
        return stored_result("rotmnist", self.out / f"{self.run.name}.json", self.run.settings())

    def discard(self) -> None:
        r"""Delete the result and the checkpoint."""
        for ending in ("json", "pt"):
            (self.out / f"{self.run.name}.{ending}").unlink(missing_ok=True)

    def carry_out(self, advance: Advance) -> Result:
        r"""Train from the last checkpoint on, and test."""
        checkpoint = self.out / f"{self.run.name}.pt"
        train, test = data_of(self.run)
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


def data_of(run: Run) -> tuple[Digits, Digits]:
    r"""What it learns from, and what it is tested on; the same digits and angles for every network and seed."""
    return digits_of(run.data_dir, run.validate)


@lru_cache(maxsize=1)
def digits_of(data_dir: str | None, validate: bool) -> tuple[Digits, Digits]:
    r"""10,000 digits and the 2,000 held out, or those 12,000 and the 50,000 to be tested on."""
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
    done, seconds = _restore(checkpoint, run, parts, generator)
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
        kept = {**state, "generator": generator.get_state(), "epoch": epoch, "seconds": seconds}
        kept["settings"] = run.settings()
        write(checkpoint, functools.partial(torch.save, kept))
        advance(epoch)
    return seconds


def _restore(checkpoint: Path, run: Run, parts: dict[str, Any], generator: torch.Generator) -> tuple[int, float]:
    r"""Put back what a checkpoint of the same settings holds; the epochs done, and their processor seconds."""
    if not checkpoint.exists():
        return 0, 0.0
    kept = load_checkpoint(checkpoint, run)
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    generator.set_state(kept["generator"])
    return kept["epoch"], kept["seconds"]


def load_checkpoint(path: Path, run: Run) -> dict[str, Any]:
    r"""What was kept of a run; ValueError where it is of other settings."""
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    if kept["settings"] != run.settings():
        hint = "Name another --out, or leave --resume out to begin anew."
        raise ValueError(f"rotmnist: expected {path} to be of the settings asked for, got others. {hint}")
    return kept


def wrong_answers(model: nn.Module, data: Digits) -> int:
    r"""How many digits get another class than theirs."""
    model.eval()
    with torch.no_grad():
        wrong: list[Tensor] = [
            (model(x).argmax(1) != y).sum() for x, y in zip(*(part.split(TEST_BATCH) for part in data), strict=True)
        ]
    return int(sum(wrong))
