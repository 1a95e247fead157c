"""The command line of the study, on tiny runs: what it writes, what it keeps, and how it says no."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baselines import files, study, tables
from baselines.__main__ import main
from baselines.runs import MEASURES, Result, Run, Source, carry_out

ROOT = Path(__file__).parent.parent
TINY = ["study", "--epochs", "1", "--seeds", "1", "--groups", "R4", "--methods", "WT", "DA"]
PROTOCOL = study.PROTOCOLS["mlp", "digits"]
EQUAL = "equal-parameters"
COMMAND = [sys.executable, "-m", "baselines"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were trained: in this process, instead of a pool of new ones."""
    seen: list[Run] = []

    class Inline:
        def results(
            self, runs: list[Run], out: Path, progress: Callable[[int, Run], object]
        ) -> Iterator[tuple[Run, Result]]:
            for run in runs:
                seen.append(run)
                yield run, carry_out(run, out)

    monkeypatch.setattr(study, "pool", lambda workers: contextlib.nullcontext(Inline()))
    return seen


@pytest.fixture
def few_saliencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """SI on few images: it takes longer than to train on one epoch."""
    for model in ("mlp", "cnn"):
        tiny = replace(study.PROTOCOLS[model, "digits"], saliency_samples=5)
        monkeypatch.setitem(study.PROTOCOLS, (model, "digits"), tiny)


def results_of(out: Path) -> list[Result]:
    """The runs of results.json without their times."""
    runs = json.loads((out / "results.json").read_text())["runs"]
    return [{key: value for key, value in run.items() if key != "training_seconds"} for run in runs]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """The tiny study, run by run in this process."""
    out = tmp_path_factory.mktemp("alone")
    recipe = replace(PROTOCOL.recipe, epochs=1)
    source = Source("digits", None, PROTOCOL.saliency_samples)
    results = [carry_out(Run(source, "mlp", EQUAL, "R4", method, 0, recipe), out) for method in ("WT", "DA")]
    files.write_json(out / "results.json", {"runs": results})
    return results_of(out)


def test_command_writes_the_same_results_with_two_workers(alone: list[Result], tmp_path: Path) -> None:
    command = [*COMMAND, *TINY, "--workers", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"exactly invariant" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "runs", "table.md"]
    assert results_of(tmp_path) == alone
    tied, plain = alone
    assert (tied["LI"], tied["DI"], tied["SI"], tied["consistency"]) == (0.0, 0.0, 1.0, 1.0)
    assert plain["LI"] > 0 < plain["DI"]
    assert plain["SI"] < 0.95
    assert tied["parameters"] == plain["parameters"]
    table = (tmp_path / "table.md").read_text()
    assert "| R4 | WT |  |" in table
    assert "paper" not in table


def test_killed_study_is_resumed_to_the_same_results(alone: list[Result], trained: list[Run], tmp_path: Path) -> None:
    command = [*COMMAND, *TINY, "--workers", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        assert until(lambda: any((tmp_path / "runs").glob("R4-*.json")), 60)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
        alive = not until(lambda: not members(process.pid), 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        until(lambda: not members(process.pid), 10)
    assert not (tmp_path / "results.json").exists()
    assert main([*TINY, "--out", str(tmp_path), "--resume"]) == 0
    assert results_of(tmp_path) == alone
    assert "R4-WT-seed0" not in [run.name for run in trained]
    assert not alive, "workers outlive a study that was killed"


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for the condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
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


def test_resume_keeps_what_is_done(trained: list[Run], few_saliencies: None, tmp_path: Path) -> None:
    assert main([*TINY, "--out", str(tmp_path)]) == 0
    names = ["R4-WT-seed0", "R4-DA-seed0"]
    assert [run.name for run in trained] == names
    before, times = results_of(tmp_path), modified(tmp_path)
    assert main([*TINY, "--out", str(tmp_path), "--resume"]) == 0
    assert [run.name for run in trained] == names
    assert (results_of(tmp_path), modified(tmp_path)) == (before, times)
    assert main([*TINY, "--seeds", "2", "--methods", "WT", "--out", str(tmp_path), "--resume"]) == 0
    assert [run.name for run in trained] == [*names, "R4-WT-seed1"]
    assert results_of(tmp_path)[0] == before[0]
    assert main([*TINY, "--methods", "WT", "--out", str(tmp_path)]) == 0
    assert [run.name for run in trained][3:] == ["R4-WT-seed0"]  # without --resume all is done anew
    assert modified(tmp_path)["R4-WT-seed0.json"] > times["R4-WT-seed0.json"]


def modified(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}


def no(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command says: one line on standard error, with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ": expected " in line
    assert ", got " in line
    assert line.endswith(".")
    return line


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text.replace('"format": 2', '"format": 1'), "format"),
        (lambda text: text.replace('"model": "mlp"', '"model": "cnn"'), "model"),
        (lambda text: text.replace('"width": "equal-parameters"', '"width": "equal-width"'), "width"),
        (lambda text: text.replace('"epochs": 1', '"epochs": 7'), "epochs"),
        (lambda text: text.replace('"torch": "', '"torch": "0.'), "torch"),
        (lambda text: text[: len(text) // 2], "JSON"),
        (lambda text: "", "JSON"),
        (lambda text: "\x00" * len(text), "JSON"),
        (lambda text: "[]\n", ""),
        (lambda text: text[: text.index(',\n  "parameters"')] + "\n}\n", ""),
    ],
    ids=["format", "model", "width", "epochs", "torch", "truncated", "empty", "zeros", "list", "unmeasured"],
)
def test_resume_refuses_other_files(
    spoil: Callable[[str], str],
    says: str,
    trained: list[Run],
    few_saliencies: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = Source("digits", None, 5)
    run = Run(source, "mlp", EQUAL, "R4", "DA", 0, replace(PROTOCOL.recipe, epochs=1))
    path = tmp_path / "runs" / f"{run.name}.json"
    measures = dict.fromkeys(MEASURES, 0.5)
    good = {**run.settings(), **measures}
    arguments = [*TINY, "--methods", "DA", "--out", str(tmp_path), "--resume"]
    files.write_json(path, good)
    assert main(arguments) == 0  # as it is, it is taken
    path.write_text(spoil(path.read_text()))
    line = no(arguments, capsys)
    assert str(path) in line
    assert says in line
    assert "Name another --out" in line or "Delete the file" in line
    assert not trained


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--groups", "X4"], "X4"),
        (["--groups", "R4", "nonsense"], "nonsense"),
        (["--groups", "R3"], "1, 2 or 4"),
        (["--groups", "R1"], "more than one element"),
        (["--groups", "T0"], "T0|0"),
        (["--groups", "T5"], "5"),
        (["--groups", "R4", "T5"], "5"),
        (["--nu", "-1"], "positive"),
        (["--nu", "0"], "positive"),
        (["--nu", "nan"], "positive"),
        (["--nu", "inf"], "positive"),
        (["--nu", "abc"], "'abc'"),
        (["--nu", "1", "2", "3"], "got 3"),
        (["--width", "equal-width"], "--model cnn"),
        (["--model", "cnn", "--groups", "T3"], "turns and mirrors"),
        (["--model", "cnn", "--groups", "R4", "T3"], "nothing to tie"),
        (["--model", "cnn", "--groups", "R1"], "more than one element"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_found_before_any_training(
    arguments: list[str], says: str, trained: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = no([*TINY, "--out", str(tmp_path), *arguments], capsys)
    assert any(word in line for word in says.split("|"))
    assert not trained


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "0"],
        ["--seeds", "abc"],
        ["--epochs", "-3"],
        ["--workers", "0"],
        ["--methods", "XX"],
        ["--data", "x"],
        ["--model", "x"],
        ["--width", "x"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*TINY, *arguments])
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert arguments[0] in message
    assert "_positive" not in message  # a name of the code


@pytest.mark.parametrize("under", ["file", "file/deeper"])
def test_unwritable_folder(under: str, trained: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    line = no([*TINY, "--out", str(tmp_path / under)], capsys)
    assert str(tmp_path / under) in line
    assert "--out" in line
    assert not trained


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist"])
def test_missing_data(
    data: str,
    trained: list[Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("EQUILAYERS_DATA", raising=False)
    for given in ([], ["--data-dir", str(tmp_path / "nowhere")], ["--data-dir", str(tmp_path)]):
        line = no([*TINY, "--data", data, *given, "--out", str(tmp_path / "out")], capsys)
        assert all(way in line for way in ("--data-dir", "EQUILAYERS_DATA", "--download", data))
    assert not trained


def test_missing_captum(
    trained: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("captum", "captum.attr"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main([*TINY, "--out", str(tmp_path)]) == 2
    assert "pip install" in capsys.readouterr().err


def test_convolutional_networks(
    trained: list[Run], few_saliencies: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "--model", "cnn", "--epochs", "3", "--methods", "WT", "DA", "UP", "--out", str(tmp_path)]
    assert main(arguments) == 0
    tied, plain, upright = results_of(tmp_path)
    assert (tied["LI"], tied["DI"], tied["SI"], tied["consistency"]) == (0.0, 0.0, 1.0, 1.0)
    assert tied["accuracy"] == tied["upright_accuracy"] > plain["accuracy"] > 0.2
    for run in (plain, upright):
        assert run["LI"] > 0 < run["DI"]
        assert run["SI"] < 0.9
        assert 1 <= run["parameters"] / tied["parameters"] < 1.05
    assert upright["upright_accuracy"] > upright["accuracy"] + 0.1
    assert plain["recipe"]["augment"]
    assert not upright["recipe"]["augment"]
    words = capsys.readouterr().out
    assert f"{tied['parameters']:,} (WT), {plain['parameters']:,} (DA UP)" in words
    assert "exactly invariant" in words
    table = (tmp_path / "table.md").read_text()
    assert "Parameters of the cnn, equal-parameters: R4 " in table
    assert "upright images right" in table


def test_resume_does_not_take_one_model_for_another(trained: list[Run], few_saliencies: None, tmp_path: Path) -> None:
    arguments = [*TINY, "--methods", "DA", "--out", str(tmp_path), "--resume"]
    kinds = [[], ["--model", "cnn"], ["--model", "cnn", "--width", "equal-width"], ["--methods", "UP"]]
    found = []
    for kind in kinds:
        assert main([*arguments, *kind]) == 0
        found.append(results_of(tmp_path))
    assert [(run.model, run.width, run.method) for run in trained] == [
        ("mlp", EQUAL, "DA"),
        ("cnn", EQUAL, "DA"),
        ("cnn", "equal-width", "DA"),
        ("mlp", EQUAL, "UP"),
    ]
    assert len({run["parameters"] for (run,) in found}) == 3
    assert sorted(path.stem for path in (tmp_path / "runs").iterdir()) == sorted(run.name for run in trained)
    assert len({run.name for run in trained}) == 4
    for kind, before in zip(kinds, found, strict=True):
        assert main([*arguments, *kind]) == 0
        assert results_of(tmp_path) == before
    assert len(trained) == 4


@pytest.mark.parametrize(("model", "groups"), [("mlp", ["R4", "T3"]), ("cnn", ["R4", "D4"])])
def test_what_is_trained_by_default(model: str, groups: list[str]) -> None:
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    for data in ("digits", "mnist", "fashion-mnist"):
        runs, tuned = study._plan(parser.parse_args(["--model", model, "--data", data]), None)
        assert list(dict.fromkeys((run.group, run.method) for run in runs)) == [
            (group, method) for group in groups for method in ("WT", "DA", "IR")
        ]
        assert {run.model for run in runs} == {model}
        assert {run.width for run in runs} == {EQUAL}
        assert list(tuned) == (groups if (model, data != "digits") == ("mlp", True) else [])


def test_nu_is_tuned_on_request(
    trained: list[Run], few_saliencies: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "LADDER", (1.0, 3.0))
    monkeypatch.setattr(study, "SALIENCY_TARGET", 2.0)  # never reached: the last one is taken
    arguments = [*TINY, "--methods", "IR", "--nu", "auto", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "results.json").read_text())["nu"] == {"R4": 3.0}
    assert [run.recipe.nu for run in trained] == [1.0, 3.0]  # seed 0 of nu = 3 was trained already
    monkeypatch.setattr(study, "SALIENCY_TARGET", -2.0)
    assert main([*arguments, "--resume"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["nu"] == {"R4": 1.0}
    assert len(trained) == 2


def example(data: str, model: str = "mlp") -> dict[str, Any]:
    """A finished study of made-up numbers."""
    measures = {"accuracy": 0.9, "LI": 0.0, "DI": 0.0, "SI": 1.0, "consistency": 1.0}
    measures |= {"training_seconds": 2.0, "parameters": 1234, "upright_accuracy": 0.9}
    recipe = {"epochs": 3, "batch_size": 8, "lr": 8e-4, "one_cycle": False, "nu": 0.0, "augment": True}
    source = {"data": data, "saliency_samples": 5}
    run = {"source": source, "model": model, "width": EQUAL, "group": "R4", "method": "WT", "seed": 0, "recipe": recipe}
    machine = {"workers": 1, "cores": 1, "processor": "x", "python": "3", "torch": "2"}
    second = {**run, "seed": 1, **measures, "accuracy": 0.8}
    return {"machine": machine, "wall_seconds": 1.0, "nu": {}, "runs": [{**run, **measures}, second]}


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("data", ["digits", "mnist", "fashion-mnist"])
def test_figures_of_the_paper_stand_beside_its_model_and_data_only(data: str, model: str) -> None:
    head, rule, row, *_ = tables.markdown(example(data, model)).splitlines()
    assert len(head.split("|")) == len(rule.split("|")) == len(row.split("|"))
    assert ("paper" in head) == ("94.6 ± 0.1" in row) == ((model, data) == ("mlp", "mnist"))
    assert row.startswith("| R4 | WT |  | 85.0 ± 7.1 | 0 | 0 | 1.000 | 100.0 | 2 |")


def test_tables_do_not_round_to_exactness() -> None:
    assert tables.cell("LI", [0.0, 0.0]) == "0"
    assert tables.cell("LI", [0.0, 1e-3]) == "0.0005 ± 0.0007"
    assert tables.cell("DI", [1e-9]) != "0"
    (line,) = tables.verdict([{**run, "LI": 1e-12} for run in example("digits")["runs"]])
    assert "exactly" not in line


@pytest.mark.parametrize("before", [None, "old"])
def test_files_are_whole_or_not_there(before: str | None, tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "x.txt"
    if before is not None:
        files.write_text(path, before)

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(path, fail)
    assert [p.name for p in path.parent.iterdir()] == ([] if before is None else ["x.txt"])
    files.write_text(path, "new")
    assert [p.read_text() for p in path.parent.iterdir()] == ["new"]
