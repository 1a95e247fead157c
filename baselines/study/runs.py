r"""The trainings of the study: what one is, how it is carried out, and what is kept of it."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from baselines.common.data import Dataset, load_dataset
from baselines.common.distributed import place
from baselines.common.files import write_json, write_tensors
from baselines.common.runner import Advance, Result, stored_result
from baselines.study.models import build, parameters
from baselines.study.tables import paper_label
from baselines.study.training import Recipe, train
from equilayers.groups import Group, group_from_name

FORMAT = 3  # of the files; a change of what a run means or measures makes it another
TRAINING = "training"  # the part that every other begins with


@dataclass(frozen=True)
class Source:
    r"""Where a run's samples come from."""

    data: str
    data_dir: str | None
    saliency_samples: int


@dataclass(frozen=True)
class Run:
    r"""One training; model and width are among `models.MODELS` and `models.WIDTHS`, group is a name such as "C4"."""

    source: Source
    model: str
    width: str
    group: str
    method: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        model = "" if self.model == "mlp" else f"{self.model}-{self.width}-"
        form = "" if self.recipe.form == "logit" else f"-{self.recipe.form}"
        weight = f"{form}-nu{self.recipe.nu:g}" if self.recipe.nu else ""
        return f"{model}{paper_label(self.group)}-{self.method}{weight}-seed{self.seed}"

    def settings(self) -> Result:
        r"""Everything the result depends on, as JSON; where the files lie is not part of it."""
        settings: Result = {**asdict(self), "group": paper_label(self.group)}
        del settings["source"]["data_dir"]
        return {"format": FORMAT, "torch": torch.__version__.split("+")[0], **settings}


@dataclass(frozen=True, eq=False)
class Subject:
    r"""A trained network, and what it is measured on."""

    run: Run
    model: nn.Module
    data: Dataset
    group: Group


def train_run(run: Run, out: Path, advance: Advance | None = None) -> Result:
    r"""Train, and write `<out>/<name>.pt` with the weights and then `<name>.training.json`."""
    data, group = dataset(run), group_from_name(run.group)
    torch.manual_seed(run.seed)
    model = _model(run, data)
    started = time.perf_counter()
    trained = train(model, data, group, run.recipe, run.seed, advance)
    result = {
        **run.settings(),
        "parameters": parameters(model),
        "best_epoch": trained.best_epoch,
        "validation_accuracy": trained.validation_accuracy,
        "training_seconds": time.perf_counter() - started,
    }
    if place()[0] == 0:
        write_tensors(out / f"{run.name}.pt", model.state_dict())
        result["weights_sha256"] = _digest(out / f"{run.name}.pt")
        write_json(out / f"{run.name}.{TRAINING}.json", result)
    return result


def subject(run: Run, out: Path) -> Subject:
    r"""The network that `train_run` left in the folder, ready to be measured."""
    data = dataset(run)
    model = _model(run, data)
    model.load_state_dict(torch.load(out / f"{run.name}.pt", weights_only=True, map_location="cpu"))
    return Subject(run, model.eval(), data, group_from_name(run.group))


def measure_part(part: str, measure: Callable[[Subject], Result], trained: Subject, out: Path) -> Result:
    r"""Measure a network for a part, and write `<out>/<name>.<part>.json`."""
    result = {**trained.run.settings(), "measures": measure(trained)}
    write_json(out / f"{trained.run.name}.{part}.json", result)
    return result


def finished(run: Run, part: str, out: Path) -> Result | None:
    r"""What an earlier invocation left of a part of the run, or None; ValueError where it is of other settings."""
    path, weights = out / f"{run.name}.{part}.json", out / f"{run.name}.pt"
    result = stored_result("study", path, run.settings()) if weights.exists() else None
    if result is None:
        return None
    if ("weights_sha256" if part == TRAINING else "measures") not in result:
        raise ValueError(f"study: expected {path} to hold the {part} of a run, got another file. Delete the file.")
    if part == TRAINING and _digest(weights) != result["weights_sha256"]:
        raise ValueError(f"study: expected {weights} to be that of {path}, got others. Delete both files.")
    return result


def dataset(run: Run) -> Dataset:
    r"""The data set of a run, kept for the next run of this process with the same seed."""
    return cached_dataset(run.source.data, run.source.data_dir, run.seed)


@lru_cache(maxsize=2)
def cached_dataset(name: str, data_dir: str | None, seed: int) -> Dataset:
    r"""A data set; the two last used are kept."""
    return load_dataset(name, data_dir=data_dir, seed=seed)


def _model(run: Run, data: Dataset) -> nn.Module:
    in_shape = tuple(data.train.x.shape[1:])
    return build(run.model, run.method == "WT", run.width, group_from_name(run.group), in_shape, data.num_classes)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
