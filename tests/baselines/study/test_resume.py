"""What a study keeps: killed at any moment it is resumed to the same bytes, and other files are refused."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from rich.console import Console

from baselines.__main__ import main
from baselines.common import files
from baselines.common.runner import Advance, Result, SerialExecutor
from baselines.study.config import PROTOCOLS
from baselines.study.runner import RunJob, StandaloneJob, StudyRunner
from baselines.study.runs import FORMAT, cached_dataset
from studies import (
    TINY,
    Jobs,
    few_digits,
    few_saliency_samples,
    files_of,
    in_this_process,
    refused,
    results_of,
    trained,
)

PARTS = ["--parts", "table", "drift"]
STUDY = ["study", "--epochs", "2", "--seeds", "1", "--groups", "C4", *PARTS]
AGAIN = [*TINY, "--methods", "DA", *PARTS]
RESUME = ["--resume", "--out"]
EQUAL = "equal-parameters"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """What the study does: in this process, on few images."""
    few_digits(monkeypatch)
    yield in_this_process(monkeypatch)
    cached_dataset.cache_clear()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran job by job in this process and was not disturbed."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        assert main([*STUDY, "--out", str(out)]) == 0
    return out


def test_two_workers_write_the_same_results(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few_saliency_samples(monkeypatch)
    assert main([*STUDY, "--workers", "2", "--out", str(tmp_path)]) == 0
    assert "exactly invariant" in capsys.readouterr().out
    assert files_of(tmp_path) == files_of(alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "runs", "table.md", "times.json"]
    results = results_of(tmp_path)
    assert list(results) == ["configuration", "parts"]
    assert list(results["parts"]) == ["table", "drift"]
    tied, plain, regularised = results["parts"]["table"]
    assert (tied["LI"], tied["DI"], tied["SI"], tied["consistency"]) == (0.0, 0.0, 1.0, 1.0)
    assert plain["LI"] > regularised["LI"] > 0 < plain["DI"]
    assert plain["SI"] < 0.95
    assert tied["parameters"] == plain["parameters"]
    table = (tmp_path / "table.md").read_text()
    assert "| R4 | WT |  |" in table
    assert "paper" not in table


def test_times_stand_apart_from_results(alone: Path) -> None:
    times = json.loads((alone / "times.json").read_text())
    names = [run["name"] for run in results_of(alone)["parts"]["table"]]
    nu = PROTOCOLS["mlp", "digits"].nu["C4", "logit"]
    assert list(times["training_seconds"]) == names == ["R4-WT-seed0", "R4-DA-seed0", f"R4-IR-nu{nu:g}-seed0"]
    assert min(times["training_seconds"].values()) > 0 < times["wall_seconds"]
    assert "seconds" not in (alone / "results.json").read_text()
    kept = {path.name for path in (alone / "runs").iterdir()}
    assert kept == {f"{name}.{end}" for name in names for end in ("pt", "training.json", "table.json", "drift.json")}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_study_killed_at_random_moments_is_resumed_to_the_same_bytes(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_saliency_samples(monkeypatch)
    chance = random.Random(7)
    killed: list[BaseProcess] = []
    try:
        for few, many in ((1, 4), (5, 8)):  # files there, of the twelve of three runs
            killed.append(kill_after(chance.randint(few, many), chance.uniform(0, 0.3), tmp_path))
        outlived = not until(lambda: not any(members(process.pid or 0) for process in killed), 10)
    finally:
        for process in killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
    assert [process.exitcode for process in killed] == [-signal.SIGKILL] * 2, "it was done before it was killed"
    assert not outlived, "workers outlive a study that was killed"
    assert not (tmp_path / "results.json").exists()
    (tmp_path / "runs" / ".R4-DA-seed0.pt.torn").write_bytes(b"half")  # what a kill amid writing leaves
    jobs = in_this_process(monkeypatch)
    assert main([*STUDY, *RESUME, str(tmp_path)]) == 0
    assert files_of(tmp_path) == files_of(alone)
    assert "R4-WT-seed0" not in [run.name for run in trained(jobs)]


def kill_after(count: int, seconds: float, out: Path) -> BaseProcess:
    """Go on with the study in a process and its worker, and kill it that long after so many files were there."""
    process = multiprocessing.get_context("fork").Process(target=go_on, args=(out,))
    process.start()
    until(lambda: len(list((out / "runs").glob("R4-*"))) >= count or not process.is_alive(), 120)
    time.sleep(seconds)
    process.kill()
    process.join()
    return process


def go_on(out: Path) -> None:
    os.setsid()
    torch.set_num_threads(1)  # threads do not survive a fork
    main([*STUDY, "--workers", "1", *RESUME, str(out)])


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for the condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def test_resume_keeps_what_is_done(jobs: Jobs, tmp_path: Path) -> None:
    assert main([*TINY, "--out", str(tmp_path)]) == 0
    names = ["R4-WT-seed0", "R4-DA-seed0"]
    assert [run.name for run in trained(jobs)] == names
    before, times, (first, _) = files_of(tmp_path), modified(tmp_path), results_of(tmp_path)["parts"]["table"]
    assert main([*TINY, *RESUME, str(tmp_path)]) == 0
    assert len(jobs) == 2
    assert (files_of(tmp_path), modified(tmp_path)) == (before, times)
    assert main([*TINY, "--seeds", "2", "--methods", "WT", *RESUME, str(tmp_path)]) == 0
    assert [run.name for run in trained(jobs)] == [*names, "R4-WT-seed1"]
    assert results_of(tmp_path)["parts"]["table"][0] == first
    assert main([*TINY, "--methods", "WT", "--out", str(tmp_path)]) == 0
    assert [run.name for run in trained(jobs)][3:] == ["R4-WT-seed0"]  # without --resume all is done anew
    for part in ("training", "table"):
        assert modified(tmp_path)[f"R4-WT-seed0.{part}.json"] > times[f"R4-WT-seed0.{part}.json"]


def modified(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run with two parts."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        in_this_process(patch)
        assert main([*AGAIN, "--out", str(out)]) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to be spoiled."""
    return shutil.copytree(finished, tmp_path / "out")


ALL = ("training", "table", "drift")  # measures of other weights are worth nothing
MISSING = {None: None, "pt": ALL, "training.json": ALL, "table.json": ("table",), "drift.json": ("drift",)}


@pytest.mark.parametrize("lost", MISSING)
def test_resume_does_what_is_missing(lost: str | None, finished: Path, out: Path, jobs: Jobs) -> None:
    if lost:
        (out / "runs" / f"R4-DA-seed0.{lost}").unlink()
    (out / "results.json").unlink()
    assert main([*AGAIN, *RESUME, str(out)]) == 0
    assert [job.parts for job in jobs if isinstance(job, RunJob)] == ([MISSING[lost]] if lost else [])
    assert files_of(out) == files_of(finished)


def test_comparing_files_would_show_another_number(finished: Path, out: Path, jobs: Jobs) -> None:
    """What is found is taken: a measure changed by hand changes the results, so equal bytes mean something."""
    path = out / "runs" / "R4-DA-seed0.table.json"
    kept = json.loads(path.read_text())
    kept["measures"]["LI"] += 1e-12
    files.write_json(path, kept)
    assert main([*AGAIN, *RESUME, str(out)]) == 0
    assert not jobs
    assert results_of(out)["parts"]["table"][0]["LI"] == kept["measures"]["LI"]
    assert files_of(out) != files_of(finished)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_measures_do_not_depend_on_those_before(model: str, jobs: Jobs, tmp_path: Path) -> None:
    arguments = [*TINY, "--model", model, "--methods", "WT"]
    at_once, one_by_one = tmp_path / "at once", tmp_path / "one by one"
    assert main([*arguments, "--parts", "table", "decay", "--out", str(at_once)]) == 0
    assert main([*arguments, "--out", str(one_by_one)]) == 0
    assert main([*arguments, "--parts", "table", "decay", *RESUME, str(one_by_one)]) == 0
    assert files_of(at_once) == files_of(one_by_one)


Spoil = Callable[[bytes], bytes]


def instead(old: str, new: str) -> Spoil:
    return lambda text: text.replace(old.encode(), new.encode())


def flipped(weights: bytes) -> bytes:
    middle = len(weights) // 2
    return weights[:middle] + bytes([weights[middle] ^ 1]) + weights[middle + 1 :]


# What is done to a file, and what is said of it.
SPOILED: dict[str, tuple[Spoil, str]] = {
    "format": (instead(f'"format": {FORMAT}', f'"format": {FORMAT - 1}'), "format"),
    "model": (instead('"model": "mlp"', '"model": "cnn"'), "model"),
    "width": (instead('"width": "equal-parameters"', '"width": "equal-width"'), "width"),
    "epochs": (instead('"epochs": 1', '"epochs": 7'), "epochs"),
    "torch": (instead('"torch": "', '"torch": "0.'), "torch"),
    "truncated": (lambda text: text[: len(text) // 2], "JSON"),
    "empty": (lambda text: b"", "JSON"),
    "zeros": (lambda text: bytes(len(text)), "JSON"),
    "list": (lambda text: b"[]", ""),
    "no training": (instead('"weights_sha256"', '"x"'), "another file"),
    "no measures": (instead('"measures"', '"x"'), "another file"),
    "weights": (flipped, "Delete both files"),
}
FILES = [
    *itertools.product(["training.json"], [*SPOILED][:-2]),
    ("table.json", "format"),
    ("table.json", "no measures"),
]


@pytest.mark.parametrize(("file", "what"), [*FILES, ("pt", "weights")])
def test_resume_refuses_other_files(
    file: str, what: str, out: Path, jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    path, (spoil, says) = out / "runs" / f"R4-DA-seed0.{file}", SPOILED[what]
    path.write_bytes(spoil(path.read_bytes()))
    line = refused([*AGAIN, *RESUME, str(out)], capsys)
    assert str(path) in line
    assert says in line
    assert any(hint in line for hint in ("Name another --out", "Delete the file", "Delete both files"))
    assert not jobs


def test_resume_does_not_take_one_model_for_another(jobs: Jobs, tmp_path: Path) -> None:
    arguments = [*TINY, "--methods", "DA", *RESUME, str(tmp_path)]
    kinds = [[], ["--model", "cnn"], ["--model", "cnn", "--width", "equal-width"], ["--methods", "UP"]]
    found = []
    for kind in kinds:
        assert main([*arguments, *kind]) == 0
        found.append(results_of(tmp_path))
    runs = trained(jobs)
    asked = [("mlp", EQUAL, "DA"), ("cnn", EQUAL, "DA"), ("cnn", "equal-width", "DA"), ("mlp", EQUAL, "UP")]
    assert [(run.model, run.width, run.method) for run in runs] == asked
    assert len({results["parts"]["table"][0]["parameters"] for results in found}) == 3
    assert len({run.name for run in runs}) == 4
    for kind, before in zip(kinds, found, strict=True):
        assert main([*arguments, *kind]) == 0
        assert results_of(tmp_path) == before
    assert len(jobs) == 4


@dataclass(frozen=True)
class Kept:
    """A job of a standalone part whose result is on the disk."""

    steps: int = 1

    def finished(self) -> Result:
        return {"kept": True}

    def carry_out(self, advance: Advance) -> Result:
        return {"kept": False}


@pytest.mark.parametrize("resume", [True, False])
def test_a_job_of_a_standalone_part_is_resumed(resume: bool, tmp_path: Path) -> None:
    job = StandaloneJob("flow", Kept())
    runner = StudyRunner(Console(quiet=True), tmp_path, SerialExecutor(), resume=resume)
    assert runner.carry_out({}, [job], "the study") == {job: {"kept": resume}}
