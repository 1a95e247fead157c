"""Training shared by processes: their shares, the weights they end with, and the study under torchrun."""

import contextlib
import datetime
import itertools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from baselines.__main__ import main
from baselines.common import distributed as parallel
from baselines.common.data import Dataset, Split
from baselines.common.runner import SerialExecutor
from baselines.study import command as study
from baselines.study import runner, training
from baselines.study.models import mlp
from baselines.study.runner import RunJob
from baselines.study.runs import TRAINING, Run
from baselines.study.training import Recipe, train
from equilayers.groups import group_from_name
from studies import few_saliency_samples, in_this_process, refused, results_of, run_of, trained

STUDY = ["study", "--epochs", "1", "--seeds", "1", "--groups", "C4", "--methods", "DA"]
SHAPE = (1, 6, 6)
RECIPES = {
    "DA": Recipe(epochs=2, batch_size=16, lr=3e-3),
    "IR": Recipe(epochs=2, batch_size=16, lr=3e-3, nu=1.0, schedule="one-cycle"),
}
COUNT = 49  # the last batch has one sample, fewer than there are processes
Share = Callable[[int], slice]


def partitions(share: Share, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the shares of one to four processes put together are all samples, in order, and differ by one at most."""
    for count, size in itertools.product(range(1, 5), range(21)):
        shares = []
        for rank in range(count):
            monkeypatch.setattr(parallel, "place", lambda rank=rank, count=count: (rank, count))
            shares.append(list(range(size))[share(size)])
        sizes = [len(each) for each in shares]
        if list(itertools.chain(*shares)) != list(range(size)) or max(sizes) - min(sizes) > 1:
            return False
    return True


def test_shares_are_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    assert partitions(parallel.share, monkeypatch)


@pytest.mark.parametrize("kind", ["the rest is lost", "overlapping", "uneven"])
def test_shares_that_are_none_would_be_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(size: int) -> slice:
        rank, count = parallel.place()
        each = size // count
        if kind == "the rest is lost":
            return slice(rank * each, (rank + 1) * each)
        if kind == "overlapping":
            return slice(rank * each, size)
        return slice(rank * each, (rank + 1) * each if rank + 1 < count else size)

    assert not partitions(wrong, monkeypatch)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.processes() as place:
        assert place == parallel.place() == (0, 1)
        assert parallel.share(5) == slice(0, 5)
        model = mlp(SHAPE, 3, (4,))
        parallel.add_gradients(model)
        assert all(p.grad is None for p in model.parameters())
        value: list[int] = []
        assert parallel.from_first(value) is value


def weights(recipe: Recipe) -> dict[str, Tensor]:
    """Those of a toy training, in as many processes as there are."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(COUNT + 60, *SHAPE, generator=generator), torch.arange(COUNT + 60) % 3
    cut = [Split(*pair) for pair in zip(x.split([COUNT, 30, 30]), y.split([COUNT, 30, 30]), strict=True)]
    torch.manual_seed(1)
    model = mlp(SHAPE, 3, (16, 16))
    train(model, Dataset("toy", *cut, 0.0, 1.0, 3), group_from_name("C4"), recipe, 0)
    return model.state_dict()


def work(rank: int, folder: str, port: int, run: Run) -> None:
    """One of two processes: what it trains, what it resumes, what it trains with gradients left apart, and a study."""
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    found: dict[str, Any] = {name: weights(recipe) for name, recipe in RECIPES.items()}
    found["first"] = parallel.from_first(f"of {rank}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "add_gradients", lambda model: None)
        found["apart"] = weights(RECIPES["DA"])
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
        if rank == 1:  # comes late, when the other is done
            finished = runner.finished
            patch.setattr(runner, "finished", lambda *key: (time.sleep(2), finished(*key))[1])
        resumed = runner.StudyRunner(Console(quiet=True), Path(folder), SerialExecutor(), resume=True)
        with contextlib.suppress(RuntimeError):  # the other has gone
            resumed.carry_out({run: ["drift"]}, [], "resumed")
            dist.barrier()
            torch.save([part for _, part in resumed.known], f"{folder}/{rank}-resumed.pt")
    dist.destroy_process_group()
    with pytest.MonkeyPatch.context() as patch:  # what torchrun sets
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            patch.setenv(name, str(value))
        few_saliency_samples(patch)
        assert main([*STUDY, "--out", f"{folder}/together"]) == 0


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that two processes have left, and what they have said."""
    folder, run = tmp_path_factory.mktemp("together"), run_of()
    RunJob(run, (TRAINING,), folder / "runs").carry_out(lambda step: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch, (folder / "said").open("w") as said:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        stdout = os.dup(1)
        os.dup2(said.fileno(), 1)
        try:
            torch.multiprocessing.spawn(work, (str(folder), port, run), nprocs=2)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
    return folder, (folder / "said").read_text()


def test_two_processes_take_the_steps_of_one(together: tuple[Path, str]) -> None:
    folder, _ = together
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    alone = {name: weights(recipe) for name, recipe in RECIPES.items()}
    for name, expected in alone.items():
        assert distance(first[name], second[name]) == 0, "all end with the same weights, to the last bit"
        assert distance(first[name], expected) < 1e-5
    assert distance(first["apart"], second["apart"]) > 1e-3, "gradients that are not added would be noticed"
    assert distance(first["apart"], alone["DA"]) > 1e-3
    assert first["first"] == second["first"] == "of 0"
    for rank in range(2):  # what the first has measured meanwhile the late one must not leave out of the work
        assert (folder / f"{rank}-resumed.pt").exists(), "processes that resume wait for each other forever"
        assert torch.load(folder / f"{rank}-resumed.pt") == [TRAINING, "drift"]


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def test_the_study_under_torchrun(together: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, said = together
    assert said.count("R4 DA: not invariant") == 1, "the first speaks for all"
    jobs = in_this_process(monkeypatch)
    assert main([*STUDY, "--out", str(tmp_path)]) == 0
    (first,), (second,) = (results_of(out)["parts"]["table"] for out in (folder / "together", tmp_path))
    assert asdict(trained(jobs)[0].recipe) == first["recipe"]
    assert first.pop("weights_sha256") != second.pop("weights_sha256"), "one process may have trained alone"
    measures = {key for key, value in second.items() if isinstance(value, float)}
    assert {"accuracy", "validation_accuracy", "LI", "DI", "SI"} <= measures
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == (pytest.approx(second[key], rel=1e-4) if key in measures else second[key])
    assert first["LI"] != pytest.approx(1.001 * second["LI"], rel=1e-4)


@pytest.mark.parametrize("arguments", [["--model", "cnn"], ["--parts", "deform"]], ids=" ".join)
def test_batch_norm_is_refused_under_torchrun(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "processes", lambda: contextlib.nullcontext((0, 2)))
    line = refused([*STUDY, "--out", str(tmp_path), *arguments], capsys)
    assert line.startswith("study: expected --model mlp, and no part deform, under torchrun, got ")
    assert "leave torchrun out" in line
