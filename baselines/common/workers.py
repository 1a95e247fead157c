r"""Jobs that go on side by side, each in a process with one core."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, Protocol, TypeVar

import torch

Advance = Callable[[int], object]


class Job(Protocol):
    r"""Something to do that takes a while, in so many steps; it travels to another process."""

    @property
    def steps(self) -> int:
        r"""How many steps it takes, a measure of its length."""
        ...

    def carry_out(self, advance: Advance) -> Any:
        r"""Do it, telling the number of each finished step."""
        ...


J = TypeVar("J", bound=Job)


class Pool:
    r"""Processes that carry out jobs side by side, each on one core."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._steps = context.Array("i", SLOTS + 1, lock=False)
        self._executor = ProcessPoolExecutor(workers, context, _share, (self._steps, os.getpid()))

    def results(self, jobs: Sequence[J], progress: Callable[[int, J], object]) -> Iterator[tuple[J, Any]]:
        r"""The jobs and their results in the order they finish; `progress(step, job)` is called meanwhile."""
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


class Here:
    r"""The jobs one after the other, in this process: what each process of `torchrun` does."""

    def results(self, jobs: Sequence[J], progress: Callable[[int, J], object]) -> Iterator[tuple[J, Any]]:
        r"""As `Pool.results`, in the order given."""
        torch.set_num_threads(1)  # as in a pool
        for job in jobs:
            yield job, job.carry_out(lambda step, job=job: progress(step, job))  # type: ignore[misc]


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Pool]:
    r"""A pool that is closed on the way out, whatever happens."""
    made = Pool(workers)
    try:
        yield made
    finally:
        made.close()


SLOTS = 65536  # of shared memory, one for the progress of each job; one more says stop
_shared: Any = None


def _share(steps: Any, parent: int) -> None:
    global _shared  # noqa: PLW0603  the only way to hand shared memory to a spawned worker
    _shared = steps
    torch.set_num_threads(1)  # so that a result does not depend on how many jobs share the machine
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    r"""End this process when the one that began it is gone: killed, it could not say so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(job: Job, slot: int) -> Any:
    def advance(step: int) -> None:
        _shared[slot] = step
        if _shared[SLOTS]:  # nobody waits for this job any more
            os._exit(1)

    return job.carry_out(advance)
