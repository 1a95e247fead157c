r"""The runner of all commands: jobs are carried out in this process or in a pool, with a progress bar and resuming."""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from baselines.common.files import read_json

Advance = Callable[[int], object]  # told the number of each finished step, from 1
Result = dict[str, Any]


class Job(Protocol):
    r"""Something that takes a known number of steps; it is pickled to be sent to another process."""

    @property
    def steps(self) -> int: ...

    def carry_out(self, advance: Advance) -> Any: ...


class StoredJob(Job, Protocol):
    r"""A job that writes its result to a file; `finished` reads the one of an earlier invocation, or is None."""

    def finished(self) -> Any: ...


J = TypeVar("J", bound=Job)
S = TypeVar("S", bound=StoredJob)


class Executor(Protocol):
    r"""Carries out jobs: yields each with its result as it finishes, and calls `progress(step, job)` meanwhile."""

    def results(self, jobs: Sequence[J], progress: Callable[[int, J], object]) -> Iterator[tuple[J, Any]]: ...


def carry_out(jobs: Sequence[J], executor: Executor, console: Console, title: str) -> Iterator[tuple[J, Any]]:
    r"""The jobs and their results in the order they finish, under one progress bar."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=console.quiet)
    steps = dict.fromkeys(jobs, 0)
    with bar:
        task = bar.add_task(title, total=sum(job.steps for job in jobs))

        def progress(step: int, job: J) -> None:
            steps[job] = step
            bar.update(task, completed=sum(steps.values()))

        for job, result in executor.results(jobs, progress):
            progress(job.steps, job)
            yield job, result


def all_results(jobs: Sequence[S], executor: Executor, console: Console, title: str, *, resume: bool) -> list[Any]:
    r"""The results of the jobs, in their order; with `resume` those that are on the disk are not carried out again."""
    known = {job: result for job in jobs if resume and (result := job.finished()) is not None}
    known |= carry_out([job for job in jobs if job not in known], executor, console, title)
    return [known[job] for job in jobs]


def settings_of(run: Any, format_: int, **more: Any) -> Result:
    r"""Everything that the result of a run depends on, as JSON; where the files lie is not part of it."""
    settings = asdict(run)
    del settings["data_dir"]
    return {"format": format_, "torch": torch.__version__.split("+")[0], **settings, **more}


def load_checkpoint(caller: str, path: Path, settings: Result) -> dict[str, Any]:
    r"""What was kept of a run; ValueError where it is of other settings."""
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    if kept["settings"] != settings:
        hint = "Name another --out, or leave --resume out to begin anew."
        raise ValueError(f"{caller}: expected {path} to be of the settings asked for, got others. {hint}")
    return kept


def stored_result(caller: str, path: Path, settings: Result) -> Result | None:
    r"""The result in a file, or None without the file; ValueError where it is of other settings, or no JSON."""
    if not path.exists():
        return None
    result = read_json(path)
    found: Result = result if isinstance(result, dict) else {}
    for key, value in settings.items():
        if found.get(key) != value:
            hint = "Name another --out, or leave --resume out to begin anew."
            raise ValueError(f"{caller}: expected {path} of {key} {value!r}, got {found.get(key)!r}. {hint}")
    return found


class SerialExecutor:
    r"""The jobs one after the other, in this process: what each process of `torchrun` does."""

    def results(self, jobs: Sequence[J], progress: Callable[[int, J], object]) -> Iterator[tuple[J, Any]]:
        r"""The jobs and their results in the order given."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a pool
        try:
            for job in jobs:
                yield job, job.carry_out(lambda step, job=job: progress(step, job))  # type: ignore[misc]
        finally:
            torch.set_num_threads(threads)


class PoolExecutor:
    r"""Processes that carry out jobs side by side, each on one core."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._steps = context.Array("i", SLOTS + 1, lock=False)
        self._executor = ProcessPoolExecutor(workers, context, _share, (self._steps, os.getpid()))

    def results(self, jobs: Sequence[J], progress: Callable[[int, J], object]) -> Iterator[tuple[J, Any]]:
        r"""The jobs and their results in the order they finish; `progress` is called twice a second."""
        waiting: dict[Future[Any], tuple[int, J]] = {}
        for number, job in enumerate(jobs):
            slot = number % SLOTS
            self._steps[slot] = 0
            waiting[self._executor.submit(_work, job, slot)] = slot, job
        while waiting:
            done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for slot, job in waiting.values():
                progress(self._steps[slot], job)
            for future in done:
                _, job = waiting.pop(future)
                yield job, future.result()

    def close(self) -> None:
        r"""Stop the processes: jobs that have not begun are dropped, the others end with their step."""
        self._steps[SLOTS] = 1
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def pool(workers: int) -> Iterator[PoolExecutor]:
    r"""A pool that is closed on the way out, whatever happens."""
    made = PoolExecutor(workers)
    try:
        yield made
    finally:
        made.close()


SLOTS = 65536  # of shared memory, one for the progress of each job; one more tells the workers to stop
_shared: Any = None


def _share(steps: Any, parent: int) -> None:
    global _shared  # noqa: PLW0603  the only way to hand shared memory to a spawned worker
    _shared = steps
    torch.set_num_threads(1)  # so that a result does not depend on how many jobs share the machine
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    r"""End this process when its parent is gone: a killed parent cannot tell it to."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(job: Job, slot: int) -> Any:
    def advance(step: int) -> None:
        _shared[slot] = step
        if _shared[SLOTS]:  # nobody waits for this job any more
            os._exit(1)

    return job.carry_out(advance)
