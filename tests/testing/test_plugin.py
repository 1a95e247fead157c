"""The pytest plugin: what it checks, what it reports, and that it works from an installed wheel."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from equilayers.testing import plugin

PROJECT = """
import pytest
import torch
from torch import nn

from equilayers.groups import CyclicRotation
from equilayers.nn import LiftingConv2d, OrbitPool

C4 = CyclicRotation(4)
X = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))


class Evil(nn.Conv2d):
    pass


Evil.__name__ = "<script>alert(1)</script>"


@pytest.mark.invariance
def test_tied(invariance):
    check = invariance.assert_equivariant(nn.Sequential(LiftingConv2d(C4, 1, 3, 3), OrbitPool()), X, C4)
    assert check.passed
    invariance.assert_invariant(lambda x: x.amax((-2, -1)), X, C4, bitwise=True)


def test_plain(invariance):
    torch.manual_seed(0)
    invariance.assert_equivariant(Evil(1, 3, 3), X, C4)


def test_other():
    pass
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "test_models.py").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """Pytest in the project, in this process: torch need not be imported again."""
    return int(pytest.main(["--rootdir=.", "--import-mode=importlib", "-p", "no:cacheprovider", *arguments]))


def assert_reported(project: Path, output: str, passed: int) -> None:
    """Every check, passed or failed, on the terminal, in the JSON file and on the page."""
    for words in (f"{passed} passed", "1 failed", "3 checks, 1 failed"):
        assert words in output
    checks = json.loads((project / "report.json").read_text())["checks"]
    found = {(check["test"].split("::")[1], check["what"]): check["passed"] for check in checks}
    assert found == {
        ("test_tied", "equivariant"): True,
        ("test_tied", "invariant"): True,
        ("test_plain", "equivariant"): False,
    }
    (failed,) = (check for check in checks if not check["passed"])
    assert failed["relative_error"] > 0.1
    assert "structural" in failed["diagnosis"]
    page = (project / "report.html").read_text()
    assert "3 checks, 1 failed" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_every_check_is_in_the_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--invariance-report=report.json") == 1
    assert_reported(project, capsys.readouterr().out, 2)


MORE = """
import pytest
from torch import nn

from test_models import C4, X


@pytest.mark.xfail
def test_expected(invariance):
    invariance.assert_equivariant(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), X, C4)


def test_raises(invariance):
    invariance.assert_invariant(nn.Linear(5, 5), X, C4)


def test_constant(invariance):
    invariance.assert_invariant(lambda x: x[:, 0, 0, 0] * 0, X, C4)


@pytest.fixture
def checked(invariance):
    invariance.assert_invariant(lambda x: x.sum((1, 2)), X, C4)


def test_of_a_fixture(checked):
    pass
"""


def test_what_is_expected_or_raises_is_in_the_report(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "test_more.py").write_text(MORE.replace("from test_models", "from .test_models"))
    (project / "__init__.py").touch()
    assert run("--invariance-report=report.json") == 1
    output = capsys.readouterr().out
    assert "7 checks, 4 failed, 1 xfailed" in output
    assert not re.findall(r"^.*(?:plugin|_comparison|_assertions|_checks|_outputs)\.py:.*", output, re.MULTILINE)
    report, page = json.loads((project / "report.json").read_text()), (project / "report.html").read_text()
    checks = {check["test"].split("::")[1]: check for check in report["checks"] if "test_more" in check["test"]}
    assert [(check["xfail"], check["passed"]) for check in checks.values()] == [(True, False), *[(False, False)] * 3]
    assert checks["test_expected"]["also_lost_at"] == ["1"]
    assert checks["test_raises"]["raised"].startswith("RuntimeError: assert_invariant: expected Linear to run on g·x")
    assert "the same for every input" in checks["test_constant"]["nothing_shown"]
    for words in ("failed, as expected", "invariant: raised", "nothing shown", "also at 1"):
        assert words in page


def test_the_marker_selects(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-m", "invariance", "--strict-markers") == 0
    assert "1 passed, 2 deselected" in capsys.readouterr().out
    assert not list(project.glob("*.json"))


@pytest.mark.parametrize("file", ["nowhere/report.json", "."])
def test_a_file_that_cannot_be_is_refused(project: Path, file: str) -> None:
    config = SimpleNamespace(addinivalue_line=lambda *_: None, getoption=lambda _: file)
    with pytest.raises(pytest.UsageError, match=rf"^--invariance-report: expected FILE .+, got {re.escape(file)}\. "):
        plugin.pytest_configure(config)  # type: ignore[arg-type]


def test_it_works_from_a_wheel_in_an_empty_project_and_under_xdist(project: Path, wheel: Path) -> None:
    (project / "test_where.py").write_text(
        f"import equilayers\n\n\ndef test_where():\n    assert equilayers.__file__.startswith({str(wheel)!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--invariance-report=report.json", "-n", "1"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stdout
    assert_reported(project, done.stdout, 3)
