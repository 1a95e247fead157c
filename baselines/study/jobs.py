r"""The jobs of the study: a training with what is measured of it, or a part that trains networks of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baselines.common.distributed import from_first, place
from baselines.common.runner import Advance, Result
from baselines.study.config import Plan
from baselines.study.parts import RUN_PARTS, STANDALONE_PARTS
from baselines.study.runs import TRAINING, Run, measure_part, subject, train_run


@dataclass(frozen=True)
class RunJob:
    r"""What is missing of a run: its training, if that is among `parts`, and what is measured of it."""

    run: Run
    parts: tuple[str, ...]
    out: Path

    @property
    def steps(self) -> int:
        r"""Epochs, and one for each measure."""
        return (self.run.recipe.epochs if TRAINING in self.parts else 0) + sum(p != TRAINING for p in self.parts)

    def carry_out(self, advance: Advance) -> dict[str, Result]:
        r"""Train and measure; every part is on the disk as soon as it is done."""
        results = {}
        if TRAINING in self.parts:
            results[TRAINING] = train_run(self.run, self.out, advance)
        others = [part for part in self.parts if part != TRAINING]
        if others and place()[0] == 0:
            for number, part in enumerate(others):
                results[part] = measure_part(part, RUN_PARTS[part].measure, subject(self.run, self.out), self.out)
                advance(self.steps - len(others) + number + 1)
        return from_first(results)


@dataclass(frozen=True)
class StandaloneJob:
    r"""A part that trains what it needs by itself."""

    part: str
    plan: Plan
    out: Path
    resume: bool

    @property
    def steps(self) -> int:
        return STANDALONE_PARTS[self.part].steps(self.plan)

    def carry_out(self, advance: Advance) -> list[Result]:
        r"""Its results; under torchrun the first process has them for all."""
        results = []
        if place()[0] == 0:
            part = STANDALONE_PARTS[self.part]
            results = part.results(self.plan, self.out / self.part, advance, resume=self.resume)
        return from_first(results)
