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
from baselines.study import runner, search, tables
from baselines.study.config import FORMS, PROTOCOLS
from baselines.study.parts import RUN_PARTS
from baselines.study.parts.table1 import TablePart
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
        (["--first-nu", "0"], "positive"),
        (["--nu", "nan"], "positive"),
        (["--nu", "inf"], "positive"),
        (["--nu", "abc"], "'abc'"),
        (["--nu", "1", "2", "3"], "got 3"),
        (["--width", "equal-width"], "--model cnn"),
        (["--model", "cnn", "--groups", "T3"], "rotations and mirrors"),
        (["--model", "cnn", "--groups", "C4", "T3"], "nothing to tie"),
        (["--model", "cnn", "--groups", "C1"], "more than one element"),
        (["--model", "vit", "--groups", "T3"], "nothing to tie"),
        (["--model", "cnn", "--init", "symmetric"], "--model mlp"),
        (["--curve", "nothing=1"], "tied"),
        (["--curve", "tied:D4=1"], "groups"),
        (["--curve", "tied"], "positive"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_found_before_any_training(
    arguments: list[str], says: str, jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([*TINY, "--out", str(tmp_path), *arguments], capsys)
    assert any(word in line for word in says.split("|"))
    assert not jobs


@pytest.mark.parametrize("option", ["methods", "data", "model", "width", "parts"])
def test_wrong_options_are_usage_errors(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, f"--{option}", "x"])
    assert f"--{option}" in capsys.readouterr().err.splitlines()[-1]


def test_what_is_missing_is_said_before_any_training(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data, and extras."""
    tiny = [*TINY, "--out", str(tmp_path / "out")]
    monkeypatch.delenv("EQUILAYERS_DATA", raising=False)
    for data in ("mnist", "fashion-mnist"):
        for given in ([], ["--data-dir", str(tmp_path / "nowhere")], ["--data-dir", str(tmp_path)]):
            line = refused([*tiny, "--data", data, *given], capsys)
            assert all(way in line for way in ("--data-dir", "EQUILAYERS_DATA", "--download", data))
    for module in ("captum", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            line = refused(tiny, capsys)
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
    assert (plain["recipe"]["augment"], upright["recipe"]["augment"]) == (True, False)
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
    values = {"logit": (2.0, None), "distribution": (5.0, 5.0), "normalized_logit": (7.0, 7.0)}
    assert asked.nu == tuple(
        (group, form, nu) for form, each in values.items() for group, nu in zip(("C4", "T3"), each, strict=True)
    )
    assert asked == plan(*words, "--groups", "C4", "T3"), "R4 is the paper's label of C4"
    names = [run.name for run in asked.runs(["IR"], FORMS) if run.seed == 0]
    assert names == [
        *(f"R4-IR-{weight}-seed0" for weight in ("nu2", "distribution-nu5", "normalized_logit-nu7")),
        *(f"T3-IR-{weight}-seed0" for weight in ("distribution-nu5", "normalized_logit-nu7")),
    ]
    for forms in (("logit",), ("logit", "distribution"), FORMS):
        compared = plan("--forms", *forms, "--nu", "2", *words[3:])
        assert {run.recipe.form for run in RUN_PARTS["decay"].runs(compared) if run.method == "IR"} == set(forms)


def test_nu_is_tuned_on_request(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TINY, "--methods", "IR", "--nu", "auto", "--out", str(tmp_path)]
    monkeypatch.setattr(search, "STRONGEST", 100.0)
    monkeypatch.setattr(runner, "SALIENCY_TARGET", 2.0)  # never reached: the nearest is taken
    assert main(arguments) == 0
    assert [run.recipe.nu for run in trained(jobs)] == [10.0, 100.0]
    kept = [files.read_json(tmp_path / "runs" / f"R4-IR-nu{nu:g}-seed0.table.json") for nu in (10.0, 100.0)]
    low, high = (each["measures"]["validation_SI"] for each in kept)
    assert results_of(tmp_path)["configuration"]["nu"][0] == ["R4", "logit", 10.0 if low > high else 100.0]
    monkeypatch.setattr(runner, "SALIENCY_TARGET", (low + high) / 2)  # between the two: bisected
    assert main([*arguments, "--resume"]) == 0
    assert [run.recipe.nu for run in trained(jobs)][:3] == [10.0, 100.0, 31.6 if low < high else 1.0]
    assert len(jobs) == len({run.name for run in trained(jobs)}), "each is trained once"


@pytest.mark.parametrize("first", [search.FIRST, (1.0, 90.0)])
@pytest.mark.parametrize("threshold", [0.02, 0.7, 10.0, 77.0, 9000.0])
def test_bisection_ends_at_the_weakest_that_reaches_the_target(threshold: float, first: tuple[float, ...]) -> None:
    found = search.Search(0.95, first)
    while (nu := found.following()) is not None:
        assert nu not in found.tried
        found.tried[nu] = 1 - 0.05 * threshold / nu  # reaches 0.95 from the threshold on
    assert tuple(found.tried)[: len(first)] == first
    assert threshold <= found.chosen() <= threshold * search.CLOSE
    assert len(found.tried) <= 10


@pytest.mark.parametrize(("reached", "chosen"), [(1.0, search.WEAKEST), (0.5, 10.0)])
def test_bisection_ends_where_nothing_straddles_the_target(reached: float, chosen: float) -> None:
    found = search.Search(0.95)
    while (nu := found.following()) is not None:
        found.tried[nu] = reached
    assert found.chosen() == chosen


def test_nu_is_tuned_on_validation_images_and_only_where_it_is_wanted(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (search, runner):
        monkeypatch.setattr(module, "STRONGEST", 1.0)
    monkeypatch.setattr(runner, "SALIENCY_TARGET", 2.0)
    asked = [*TINY, "--methods", "IR", "--nu", "auto", "--nu-distribution", "auto", "--nu-normalized-logit", "4"]
    asked += ["--first-nu", "1"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    assert [run.recipe.form for run in trained(jobs)] == ["logit"]
    assert results_of(tmp_path)["configuration"]["nu"][1] == ["R4", "distribution", None]  # no part has a use for it
    (run,) = results_of(tmp_path)["parts"]["table"]
    assert run["validation_SI"] != run["SI"]
    said = capsys.readouterr().out
    assert f"R4 IR logit nu = 1: SI {run['validation_SI']:.3f} on validation images" in said
    assert "no nu up to 1 reaches SI 2.0" in said
    assert main([*asked, "--parts", "decay", "--out", str(tmp_path), "--resume"]) == 0
    assert [run.recipe.form for run in trained(jobs)] == ["logit", "distribution", "normalized_logit"]
    assert [run["recipe"]["nu"] for run in results_of(tmp_path)["parts"]["decay"]] == [1.0, 1.0, 4.0]


TIMES: dict[str, Any] = {
    "machine": {"workers": 3, "cores": 1, "processor": "abacus", "python": "3", "torch": "2"},
    "wall_seconds": 71.2,
    "training_seconds": {f"{model}R4-WT-seed{n}": 1.0 + 2 * n for model in ("", f"cnn-{EQUAL}-") for n in range(2)},
}


def example(data: str, model: str = "mlp", **more: float) -> list[dict[str, Any]]:
    """A finished table of made-up numbers."""
    measures = {"LI": 0.0, "DI": 0.0, "SI": 1.0, "consistency": 1.0, "upright_accuracy": 0.9, **more}
    runs = (run_of("WT", model=model, data=data, seed=seed) for seed in range(2))
    return [entry(run, accuracy=accuracy, **measures) for run, accuracy in zip(runs, (0.9, 0.8), strict=True)]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("data", ["digits", "mnist", "fashion-mnist"])
def test_figures_of_the_paper_stand_beside_its_model_and_data_only(data: str, model: str) -> None:
    runs = example(data, model)
    text = tables.markdown(runs, TIMES)
    head, rule, row, *_ = text.splitlines()
    assert len(head.split("|")) == len(rule.split("|")) == len(row.split("|"))
    papers = (model, data) == ("mlp", "mnist")
    assert ("paper" in head) == ("94.6 ± 0.1" in row) == papers
    assert row.startswith("| R4 | WT |  | 85.0 ± 7.1 | 0 | 0 | 1.000 | 100.0 | 2 |")
    assert "Wall time 71 s with 3 worker processes on 1 cores (abacus)" in text
    (shown,) = TablePart().page(runs).tables
    assert (tuple(shown.head[-4:]) == tables.PAPER_COLUMNS) == papers
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rich_table(*tables.head_and_rows(runs, TIMES["training_seconds"], paper=False)))
    assert "85.0 ± 7.1" in console.export_text()


def test_tables_do_not_round_to_exactness() -> None:
    assert tables.cell("LI", [0.0, 0.0]) == "0"
    assert tables.cell("LI", [0.0, 1e-3]) == "0.0005 ± 0.0007"
    assert tables.cell("DI", [1e-9]) != "0"
    (line,) = tables.verdict(example("digits", LI=1e-12))
    assert "exactly" not in line


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "x.txt"

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    for before in ([], ["old"]):
        with pytest.raises(KeyboardInterrupt):
            files.write(path, fail)
        assert [p.read_text() for p in path.parent.iterdir()] == before
        files.write_text(path, "old")
        assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("x.txt", "old")]
