"""The command line of the study, on tiny runs: what it writes, what it keeps, and how it says no."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from baselines.__main__ import main
from baselines.common import files
from baselines.common.tables import rich_table
from baselines.study import runner, tables
from baselines.study.config import FORMS, PROTOCOLS
from baselines.study.parts import RUN_PARTS
from studies import TINY, Jobs, entry, in_this_process, plan, refused, results_of, run_of, trained

EQUAL = "equal-parameters"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """What the study does: in this process, SI on few images."""
    return in_this_process(monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--groups", "X4"], "X4"),
        (["--groups", "C4", "nonsense"], "nonsense"),
        (["--groups", "C3"], "exact group"),
        (["--groups", "C1"], "more than one element"),
        (["--groups", "T0"], "T0|0"),
        (["--groups", "T5"], "5"),
        (["--groups", "C4", "T5"], "5"),
        (["--nu", "-1"], "positive"),
        (["--nu", "0"], "positive"),
        (["--nu", "nan"], "positive"),
        (["--nu", "inf"], "positive"),
        (["--nu", "abc"], "'abc'"),
        (["--nu", "1", "2", "3"], "got 3"),
        (["--width", "equal-width"], "--model cnn"),
        (["--model", "cnn", "--groups", "T3"], "rotations and mirrors"),
        (["--model", "cnn", "--groups", "C4", "T3"], "nothing to tie"),
        (["--model", "cnn", "--groups", "C1"], "more than one element"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_found_before_any_training(
    arguments: list[str], says: str, jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([*TINY, "--out", str(tmp_path), *arguments], capsys)
    assert any(word in line for word in says.split("|"))
    assert not jobs


@pytest.mark.parametrize(
    "words",
    ["seeds 0", "seeds abc", "epochs -3", "workers 0", "methods XX", "data x", "model x", "width x", "parts x"],
)
def test_wrong_options_are_usage_errors(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, value = words.split()
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, f"--{option}", value])
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"--{option}" in message
    assert "_positive" not in message  # a name of the code


@pytest.mark.parametrize("under", ["file", "file/deeper"])
def test_unwritable_folder(under: str, jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    line = refused([*TINY, "--out", str(tmp_path / under)], capsys)
    assert str(tmp_path / under) in line
    assert "--out" in line
    assert not jobs


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist"])
def test_missing_data(
    data: str, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EQUILAYERS_DATA", raising=False)
    for given in ([], ["--data-dir", str(tmp_path / "nowhere")], ["--data-dir", str(tmp_path)]):
        line = refused([*TINY, "--data", data, *given, "--out", str(tmp_path / "out")], capsys)
        assert all(way in line for way in ("--data-dir", "EQUILAYERS_DATA", "--download", data))
    assert not jobs


@pytest.mark.parametrize("module", ["captum", "matplotlib"])
def test_missing_extras(
    module: str, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = refused([*TINY, "--out", str(tmp_path)], capsys)
    assert f"expected {module} to be installed" in line
    assert "pip install" in line
    assert not jobs


def test_convolutional_networks(jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--model", "cnn", "--epochs", "3", "--methods", "WT", "DA", "UP", "--out", str(tmp_path)]
    assert main(arguments) == 0
    tied, plain, upright = results_of(tmp_path)["parts"]["table"]
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


@pytest.mark.parametrize(("model", "groups"), [("mlp", ["C4", "T3"]), ("cnn", ["C4", "D4"])])
@pytest.mark.parametrize("data", ["digits", "mnist", "fashion-mnist"])
def test_what_is_trained_by_default(data: str, model: str, groups: list[str]) -> None:
    default = plan("--model", model, "--data", data)
    tried = default.with_nu({(group, form): 1.0 for group, form, nu in default.nu if nu is None})
    runs = tried.runs(tried.methods)
    assert list(dict.fromkeys((run.group, run.method) for run in runs)) == [
        (group, method) for group in groups for method in ("WT", "DA", "IR")
    ]
    assert {(run.model, run.width, run.recipe.form) for run in runs} == {(model, EQUAL, "logit")}
    assert all(bool(run.recipe.nu) == (run.method == "IR") for run in runs)
    assert [key for *key, _ in default.nu] == [[group, form] for form in FORMS for group in groups]
    for group, form, nu in default.nu:  # what the protocol does not hold is tuned
        assert nu == PROTOCOLS[model, data].nu.get((group, form))
    if (model, data) in {("mlp", "digits"), ("cnn", "digits")}:
        assert all(nu for _, form, nu in default.nu if form == "logit"), "the default command tunes nothing"


def test_a_weight_for_each_group_and_form() -> None:
    words = ["--nu", "2", "auto", "--nu-distribution", "5", "--nu-normalized-logit", "7"]
    asked = plan(*words, "--groups", "R4", "T3")
    assert asked.nu == (
        *(("C4", "logit", 2.0), ("T3", "logit", None)),
        *(("C4", "distribution", 5.0), ("T3", "distribution", 5.0)),
        *(("C4", "normalized_logit", 7.0), ("T3", "normalized_logit", 7.0)),
    )
    assert asked == plan(*words, "--groups", "C4", "T3"), "R4 is the paper's label of C4"
    names = [run.name for run in asked.runs(["IR"], FORMS) if run.seed == 0]
    assert names == [
        "R4-IR-nu2-seed0",
        "R4-IR-distribution-nu5-seed0",
        "R4-IR-normalized_logit-nu7-seed0",
        "T3-IR-distribution-nu5-seed0",
        "T3-IR-normalized_logit-nu7-seed0",
    ]


@pytest.mark.parametrize("ladder", [(1.0, 3.0), (3.0, 1.0)], ids=str)
def test_nu_is_tuned_on_request(
    ladder: tuple[float, ...], jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen() -> Any:
        return results_of(tmp_path)["configuration"]["nu"][0]

    monkeypatch.setattr(runner, "LADDER", ladder)
    monkeypatch.setattr(runner, "SALIENCY_TARGET", 2.0)  # never reached: the nearest is taken
    arguments = [*TINY, "--methods", "IR", "--nu", "auto", "--out", str(tmp_path)]
    assert main(arguments) == 0
    reached = {nu: files.read_json(tmp_path / "runs" / f"R4-IR-nu{nu:g}-seed0.table.json") for nu in ladder}
    assert reached[3.0]["measures"]["validation_SI"] > reached[1.0]["measures"]["validation_SI"]
    assert chosen() == ["R4", "logit", 3.0]
    assert [run.recipe.nu for run in trained(jobs)] == list(ladder)  # seed 0 of nu = 3 was trained already
    monkeypatch.setattr(runner, "SALIENCY_TARGET", 0.1)
    assert main([*arguments, "--resume"]) == 0
    assert chosen() == ["R4", "logit", ladder[0]]  # the first that reaches it
    assert len(jobs) == 2


def test_nu_is_tuned_on_validation_images_and_only_where_it_is_wanted(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "LADDER", (1.0,))
    asked = [*TINY, "--methods", "IR", "--nu", "auto", "--nu-distribution", "auto", "--nu-normalized-logit", "4"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    assert [run.recipe.form for run in trained(jobs)] == ["logit"]
    assert results_of(tmp_path)["configuration"]["nu"][1] == ["R4", "distribution", None]  # no part has a use for it
    (run,) = results_of(tmp_path)["parts"]["table"]
    assert run["validation_SI"] != run["SI"]
    said = capsys.readouterr().out
    assert f"R4 IR logit nu = 1: SI {run['validation_SI']:.3f} on validation images" in said
    assert "no nu up to 1 reaches SI 0.95" in said
    assert main([*asked, "--parts", "decay", "--out", str(tmp_path), "--resume"]) == 0
    assert [run.recipe.form for run in trained(jobs)] == ["logit", "distribution", "normalized_logit"]
    assert [run["recipe"]["nu"] for run in results_of(tmp_path)["parts"]["decay"]] == [1.0, 1.0, 4.0]


def example(data: str, model: str = "mlp") -> list[dict[str, Any]]:
    """A finished table of made-up numbers."""
    measures = {"LI": 0.0, "DI": 0.0, "SI": 1.0, "consistency": 1.0, "upright_accuracy": 0.9}
    runs = (run_of("WT", model=model, data=data, seed=seed) for seed in range(2))
    return [entry(run, accuracy=accuracy, **measures) for run, accuracy in zip(runs, (0.9, 0.8), strict=True)]


TIMES: dict[str, Any] = {
    "machine": {"workers": 3, "cores": 1, "processor": "abacus", "python": "3", "torch": "2"},
    "wall_seconds": 71.2,
    "training_seconds": {f"{model}R4-WT-seed{n}": 1.0 + 2 * n for model in ("", f"cnn-{EQUAL}-") for n in range(2)},
}


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("data", ["digits", "mnist", "fashion-mnist"])
def test_figures_of_the_paper_stand_beside_its_model_and_data_only(data: str, model: str) -> None:
    text = tables.markdown(example(data, model), TIMES)
    head, rule, row, *_ = text.splitlines()
    assert len(head.split("|")) == len(rule.split("|")) == len(row.split("|"))
    assert ("paper" in head) == ("94.6 ± 0.1" in row) == ((model, data) == ("mlp", "mnist"))
    assert row.startswith("| R4 | WT |  | 85.0 ± 7.1 | 0 | 0 | 1.000 | 100.0 | 2 |")
    assert "Wall time 71 s with 3 worker processes on 1 cores (abacus)" in text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rich_table(*tables.head_and_rows(example(data, model), TIMES["training_seconds"], paper=False)))
    assert "85.0 ± 7.1" in console.export_text()


def test_tables_do_not_round_to_exactness() -> None:
    assert tables.cell("LI", [0.0, 0.0]) == "0"
    assert tables.cell("LI", [0.0, 1e-3]) == "0.0005 ± 0.0007"
    assert tables.cell("DI", [1e-9]) != "0"
    (line,) = tables.verdict([{**run, "LI": 1e-12} for run in example("digits")])
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


def test_decay_compares_the_forms_asked_for() -> None:
    for forms in (("logit",), ("logit", "distribution"), FORMS):
        asked = plan("--forms", *forms, "--nu", "2", "--nu-distribution", "5", "--nu-normalized-logit", "7")
        found = {run.recipe.form for run in RUN_PARTS["decay"].runs(asked) if run.method == "IR"}
        assert found == set(forms)
