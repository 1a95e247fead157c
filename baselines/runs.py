r"""The runs of the study: what one is, how it is carried out, and how many go on side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from baselines.data import Dataset, load_dataset
from baselines.files import read_json, write_json
from baselines.measures import BATCHES, measure
from baselines.models import build, group_of, parameters
from baselines.training import Advance, Recipe, train

FORMAT = 2  # of a run's result file; a change of what a run means or measures makes it another
MEASURES = (
    *("parameters", "accuracy", "upright_accuracy", "LI", "LI_normalized", "DI", "SI", "consistency"),
    *("validation_SI", "training_seconds"),
)
Result = dict[str, Any]


@dataclass(frozen=True)
class Source:
    r"""Where a run's samples come from."""

    data: str
    data_dir: str | None
    saliency_samples: int


@dataclass(frozen=True)
class Run:
    r"""One training and its measures; model and width are among `models.MODELS` and `models.WIDTHS`."""

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
        weight = f"-nu{self.recipe.nu:g}" if self.recipe.nu else ""
        return f"{model}{self.group}-{self.method}{weight}-seed{self.seed}"

    def settings(self) -> Result:
        r"""Everything the result depends on, as JSON; where the files lie is not part of it."""
        settings: Result = asdict(self)
        del settings["source"]["data_dir"]
        return {"format": FORMAT, "torch": torch.__version__.split("+")[0], **settings}


def carry_out(run: Run, out: Path, advance: Advance | None = None) -> Result:
    r"""Train, measure on the test split, and write `<out>/<name>.json`."""
    torch.set_num_threads(1)  # so that a result does not depend on how many runs share the machine
    data = _dataset(run.source.data, run.source.data_dir, run.seed)
    group, in_shape = group_of(run.group), tuple(data.train.x.shape[1:])
    torch.manual_seed(run.seed)
    model = build(run.model, run.method == "WT", run.width, group, in_shape, data.num_classes)
    started = time.perf_counter()
    trained = train(model, data, group, run.recipe, run.seed, advance)
    seconds = time.perf_counter() - started
    result = {
        **run.settings(),
        "parameters": parameters(model),
        "best_epoch": trained.best_epoch,
        "validation_accuracy": trained.validation_accuracy,
        **measure(model, data, group, run.source.saliency_samples, BATCHES[run.model]),
        "training_seconds": seconds,
    }
    write_json(out / f"{run.name}.json", result)
    return result


_loaded: dict[tuple[str, str | None, int], Dataset] = {}


def _dataset(name: str, data_dir: str | None, seed: int) -> Dataset:
    r"""The data set, kept for the next run of this process with the same seed."""
    key = name, data_dir, seed
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_dataset(name, data_dir=data_dir, seed=seed)
    return _loaded[key]


def finished(run: Run, out: Path) -> Result | None:
    r"""The result of an earlier invocation, or None.

    Raises:
        ValueError: there is one, but of other settings.
    """
    path = out / f"{run.name}.json"
    if not path.exists():
        return None
    result: Result = read_json(path)
    for key, value in run.settings().items():
        if isinstance(result, dict) and result.get(key) != value:
            todo = "Name another --out, or leave --resume out to begin anew."
            raise ValueError(f"study: expected {path} of {key} {value!r}, got {result.get(key)!r}. {todo}")
    if not isinstance(result, dict) or not set(MEASURES) <= set(result):
        raise ValueError(f"study: expected {path} to hold a run's measures, got another file. Delete the file.")
    return result


class Pool:
    r"""Processes that carry out runs side by side, each on one core."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._epochs = context.Array("i", SLOTS + 1, lock=False)
        self._executor = ProcessPoolExecutor(workers, context, _share, (self._epochs, os.getpid()))

    def results(
        self, runs: list[Run], out: Path, progress: Callable[[int, Run], object]
    ) -> Iterator[tuple[Run, Result]]:
        r"""The runs and their results in the order they finish; `progress(epoch, run)` is called meanwhile."""
        waiting: dict[Future[Result], tuple[int, Run]] = {}
        for number, run in enumerate(runs):
            slot = number % SLOTS
            self._epochs[slot] = 0
            waiting[self._executor.submit(_work, run, out, slot)] = slot, run
        while waiting:
            done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for slot, run in waiting.values():
                progress(self._epochs[slot], run)
            for future in done:
                _, run = waiting.pop(future)
                yield run, future.result()

    def close(self) -> None:
        r"""Stop the processes: runs that have not begun are dropped, the others end with their epoch."""
        self._epochs[SLOTS] = 1
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Pool]:
    r"""A pool that is closed on the way out, whatever happens."""
    made = Pool(workers)
    try:
        yield made
    finally:
        made.close()


SLOTS = 65536  # of shared memory, one for the progress of each run; one more says stop
_shared: Any = None


def _share(epochs: Any, parent: int) -> None:
    global _shared  # noqa: PLW0603  the only way to hand shared memory to a spawned worker
    _shared = epochs
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    r"""End this process when the study that began it is gone: killed, it could not say so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(run: Run, out: Path, slot: int) -> Result:
    def advance(epoch: int) -> None:
        _shared[slot] = epoch
        if _shared[SLOTS]:  # nobody waits for this run any more
            os._exit(1)

    return carry_out(run, out, advance)
