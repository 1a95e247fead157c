"""Tiny studies in the process of the test, and made-up results, for the tests of the study."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.__main__ import main
from baselines.common import data
from baselines.common.data import Dataset, Split
from baselines.common.runner import SerialExecutor
from baselines.shift import runs as shift_runs
from baselines.shift.scenes import Layout
from baselines.study import command as study
from baselines.study.config import PROTOCOLS, Plan, plan_of
from baselines.study.models import MODELS, UPRIGHT
from baselines.study.runner import RunJob, StandaloneJob
from baselines.study.runs import TRAINING, Result, Run, Source, Subject, cached_dataset
from baselines.study.training import Recipe
from equilayers.groups import group_from_name

TINY = ["study", "--epochs", "1", "--seeds", "1", "--groups", "C4", "--methods", "WT", "DA"]
Jobs = list[RunJob | StandaloneJob]


def in_this_process(patch: pytest.MonkeyPatch) -> Jobs:
    """Have every study carried out here, on one thread, instead of in a pool; the jobs it does, as it does them."""
    jobs: Jobs = []

    def results(given: Sequence[Any], progress: Callable[[int, Any], object]) -> Iterator[tuple[Any, Any]]:
        jobs.extend(given)
        yield from SerialExecutor().results(given, progress)

    patch.setattr(study, "pool", lambda workers: contextlib.nullcontext(SimpleNamespace(results=results)))
    few_saliency_samples(patch)
    return jobs


def few_saliency_samples(patch: pytest.MonkeyPatch) -> None:
    """SI on few images: on 200 it takes longer than to train."""
    for model in MODELS:
        patch.setitem(PROTOCOLS, (model, "digits"), replace(PROTOCOLS[model, "digits"], saliency_samples=5))


def few_digits(patch: pytest.MonkeyPatch) -> None:
    """Small splits of the digits, in this process."""
    patch.setitem(data._PROTOCOLS, "digits", replace(data._PROTOCOLS["digits"], splits=(120, 60, 40)))
    cached_dataset.cache_clear()


def small_shifts(patch: pytest.MonkeyPatch) -> None:
    """Small networks on few small scenes, for the experiments with shifts."""
    own = shift_runs.PROTOCOLS["digits"]
    small = replace(own, layout=Layout(8, 16, 4), planes=(4, 8, 8), splits=(64, 40, 1))
    patch.setitem(shift_runs.PROTOCOLS, "digits", replace(small, detector_grid=12, segmentor_grid=4))
    shift_runs.data_of.cache_clear()


def trained(jobs: Jobs) -> list[Run]:
    """The runs that were trained and not only measured."""
    return [job.run for job in jobs if isinstance(job, RunJob) and TRAINING in job.parts]


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command says: one line on standard error, with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ": expected " in line
    assert ", got " in line
    assert line.endswith(".")
    return line


def results_of(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return results


def files_of(out: Path) -> dict[str, str]:
    """The sums of what a study leaves that may not depend on how it went."""
    files = [out / "results.json", *out.rglob("*.pt")]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def plan(*arguments: str) -> Plan:
    """What a command line of the study asks for."""
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    return plan_of(parser.parse_args(arguments), None)


def run_of(
    method: str = "DA", group: str = "C4", model: str = "mlp", data: str = "digits", seed: int = 0, **recipe: Any
) -> Run:
    """A run as the study would have it."""
    how = Recipe(epochs=1, batch_size=8, lr=1e-3, augment=method != UPRIGHT, **recipe)
    return Run(Source(data, None, 5), model, "equal-parameters", group, method, seed, how)


def subject_of(model: nn.Module, x: Tensor, run: Run | None = None, classes: int = 9) -> Subject:
    """A network as if it had been trained, and test images x (N, ...) of classes 0, 1, 2, ... again and again."""
    split = Split(x, torch.arange(len(x)) % classes)
    run = run or run_of()
    data = Dataset("digits", split, split, split, 0.0, 1.0, classes)
    return Subject(run, model.eval(), data, group_from_name(run.group), model)


def entry(run: Run, **measures: Any) -> Result:
    """A run of results.json with made-up measures."""
    return {"name": run.name, **run.settings(), "parameters": 1234, "best_epoch": 1, **measures}


TOY_SHAPE = (1, 6, 6)


def toy_data(noise: float = 1.0, symmetric_validation: bool = False) -> Dataset:
    """Three classes, an image each, in noise."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(3, *TOY_SHAPE, generator=generator)

    def split(n: int) -> Split:
        y = torch.arange(n) % 3
        return Split(centres[y] + noise * torch.randn(n, *TOY_SHAPE, generator=generator), y)

    train_split, validation, test = split(50), split(30), split(40)
    if symmetric_validation:
        # A quarter in all four corners: whatever element moves the image, the model sees the same one.
        corner = torch.zeros_like(validation.x)
        corner[..., :3, :3] = validation.x[..., :3, :3]
        validation = Split(group_from_name("C4").orbit(corner).sum(0), validation.y)
    return Dataset("toy", train_split, validation, test, 0.0, 1.0, num_classes=3)
