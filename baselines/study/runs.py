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
from baselines.study.starts import start
from baselines.study.tables import paper_label
from baselines.study.training import Recipe, train
from equilayers.groups import Group, group_from_name

FORMAT = 4  # of the files; a change of what a run means or measures makes it another
TRAINING = "training"  # the part that every other begins with


@dataclass(frozen=True)
class Source:
    r"""Where a run's samples come from, and what is explained of how many of them.

    padding: "before" standardisation or "after"; saliency_baseline: where integrated gradients begin, "zero" (the mean
    grey) or "black"; saliency_target: of what they are taken, the "logit" or the "log-softmax" of the class.
    """

    data: str
    data_dir: str | None
    saliency_samples: int
    padding: str = "before"
    saliency_baseline: str = "zero"
    saliency_target: str = "logit"


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
        how = "".join(f"-{word}" for word in self._unusual())
        return f"{model}{paper_label(self.group)}-{self.method}{weight}{how}-seed{self.seed}"

    def _unusual(self) -> list[str]:
        r"""What is unlike the paper's protocol, in words for a file's name."""
        recipe = self.recipe
        words = {
            "cosine": recipe.schedule == "cosine",
            "orbits": recipe.elements == "all",
            recipe.init: recipe.init != "torch",
            recipe.select: recipe.select != "best",
            f"padded-{self.source.padding}": self.source.padding != "before",
        }
        return [word for word, so in words.items() if so]

    def settings(self) -> Result:
        r"""Everything the result depends on, as JSON; where the files lie is not part of it."""
        settings: Result = {**asdict(self), "group": paper_label(self.group)}
        del settings["source"]["data_dir"]
        return {"format": FORMAT, "torch": torch.__version__.split("+")[0], **settings}


@dataclass(frozen=True, eq=False)
class Subject:
    r"""A trained network, and what it is measured on; the same network after its last epoch."""

    run: Run
    model: nn.Module
    data: Dataset
    group: Group
    last: nn.Module


def train_run(run: Run, out: Path, advance: Advance | None = None) -> Result:
    r"""Train, and write `<out>/<name>.pt` with the weights and then `<name>.training.json`."""
    data, group = dataset(run), group_from_name(run.group)
    torch.manual_seed(run.seed)
    model = _model(run, data)
    start(model, run.recipe.init, group)
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
        write_tensors(out / f"{run.name}.pt", {"selected": model.state_dict(), "last": trained.last})
        result["weights_sha256"] = _digest(out / f"{run.name}.pt")
        write_json(out / f"{run.name}.{TRAINING}.json", result)
    return result


def subject(run: Run, out: Path) -> Subject:
    r"""The network that `train_run` left in the folder, ready to be measured."""
    data = dataset(run)
    weights = torch.load(out / f"{run.name}.pt", weights_only=True, map_location="cpu")
    models = []
    for epoch in ("selected", "last"):
        models.append(_model(run, data).eval())
        models[-1].load_state_dict(weights[epoch])
    return Subject(run, models[0], data, group_from_name(run.group), models[1])


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
    return cached_dataset(run.source.data, run.source.data_dir, run.seed, run.source.padding)


@lru_cache(maxsize=2)
def cached_dataset(name: str, data_dir: str | None, seed: int, padding: str = "before") -> Dataset:
    r"""A data set; the two last used are kept."""
    return load_dataset(name, data_dir=data_dir, seed=seed, pad_first=padding == "before")


def _model(run: Run, data: Dataset) -> nn.Module:
    in_shape = tuple(data.train.x.shape[1:])
    return build(run.model, run.method == "WT", run.width, group_from_name(run.group), in_shape, data.num_classes)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
