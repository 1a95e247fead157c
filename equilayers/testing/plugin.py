r"""A pytest plugin: the fixture and marker `invariance`, and `--invariance-report=FILE`.

The fixture makes checks that end up in the report; the marker selects tests, `pytest -m invariance`. The report is a
JSON file, and an HTML page beside it, of every check of the run, passed or failed; it works under pytest-xdist.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from equilayers._files import html_page, strict, table, tag, write_text
from equilayers.groups import Group, as_group
from equilayers.testing._check import Check, require
from equilayers.testing._comparison import Output, compare
from equilayers.testing._diagnosis.actions import Action, invariant
from equilayers.testing._execution import Model
from equilayers.testing._inputs import Given, first_tensor
from equilayers.testing._outputs import name_of

PROPERTY = "equilayers.invariance"


def pytest_addoption(parser: pytest.Parser) -> None:
    r"""The option `--invariance-report`."""
    parser.getgroup("equilayers").addoption(
        "--invariance-report",
        metavar="FILE",
        help="write every check of the fixture `invariance` to FILE as JSON, and as a page to FILE with .html",
    )


def pytest_configure(config: pytest.Config) -> None:
    r"""The marker, and the recorder where a report is asked for: in the process that hears of all tests."""
    config.addinivalue_line("markers", "invariance: a test of invariance or equivariance")
    wanted = config.getoption("--invariance-report")
    if wanted and not hasattr(config, "workerinput"):
        path = Path(wanted)
        if path.is_dir() or not path.absolute().parent.is_dir():
            hint = "Name a file in a folder that exists."
            raise pytest.UsageError(f"--invariance-report: expected FILE to be a file, got {wanted}. {hint}")
        config.pluginmanager.register(_Recorder(path))


@pytest.fixture
def invariance(request: pytest.FixtureRequest) -> Invariance:
    r"""Checks whose outcomes are reported: `invariance.assert_invariant(model, x, group)` and the like."""
    return Invariance(request.node)


class Invariance:
    r"""The assertions of `equilayers.testing`, each written down."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def assert_invariant(self, model: Model, x: Given, group: Group | str, **options: Any) -> Check:
        r"""As `equilayers.testing.assert_invariant`; what was found is returned, and reported either way."""
        __tracebackhide__ = True
        return self._check("assert_invariant", model, x, group, invariant(), **options)

    def assert_equivariant(
        self, model: Model, x: Given, group: Group | str, *, output: Output = "auto", **options: Any
    ) -> Check:
        r"""As `equilayers.testing.assert_equivariant`; what was found is returned, and reported either way."""
        __tracebackhide__ = True
        return self._check("assert_equivariant", model, x, group, output, **options)

    def _check(
        self,
        caller: str,
        model: Model,
        x: Given,
        group: Group | str,
        output: Output | Action,
        **options: Any,
    ) -> Check:
        __tracebackhide__ = True
        entry: dict[str, Any] = {
            "what": caller.removeprefix("assert_"),
            "model": name_of(model),
            "group": str(group),
            "input": list(getattr(first_tensor(x), "shape", ())),
            "passed": False,
            **dict.fromkeys(("error", "relative_error", "tolerance")),
            **dict.fromkeys(("diagnosis", "nothing_shown", "raised", "lost_at"), ""),
            "also_lost_at": [],
        }
        self._node.user_properties.append((PROPERTY, entry))
        try:
            check = compare(caller, model, x, group, output, **options)
        except BaseException as error:
            entry["raised"] = f"{type(error).__name__}: {error}"
            raise
        entry |= {
            "group": repr(as_group(caller, group)),
            "passed": check.passed,
            "error": strict(check.error),
            "relative_error": strict(check.relative_error),
            "tolerance": strict(check.tolerance),
            "diagnosis": check.diagnosis,
            "nothing_shown": check.nothing_shown,
            "lost_at": str(check.location or ""),
            "also_lost_at": [found.path for found in check.locations[1:]],
        }
        require(check, caller, model, group)
        return check


def _verdict(check: dict[str, Any]) -> str:
    if check["passed"]:
        return "passed"
    found = "raised" if check["raised"] else "nothing shown" if check["nothing_shown"] else "failed"
    return f"{found}, as expected" if check["xfail"] else found


def _summary(checks: list[dict[str, Any]]) -> str:
    r"""How many, and how many of them failed; those of tests that are marked xfail apart."""
    bad = [check for check in checks if not check["passed"]]
    expected = sum(check["xfail"] for check in bad)
    return f"{len(checks)} checks, {len(bad) - expected} failed" + (f", {expected} xfailed" if expected else "")


def _page(checks: list[dict[str, Any]]) -> str:
    r"""The checks as a page: how many passed, and a row for each."""
    rows, failed = [], [not check["passed"] and not check["xfail"] for check in checks]
    for check in checks:
        notes = [check[key] for key in ("raised", "nothing_shown", "diagnosis", "lost_at") if check[key]]
        notes += [f"also at {', '.join(check['also_lost_at'])}"] if check["also_lost_at"] else []
        test = tag("div", str(check["test"]), *(tag("div", str(note), class_="note") for note in notes))
        error = "-" if check["relative_error"] is None else f"{float(check['relative_error']):.2g}"
        shape, verdict = " × ".join(map(str, check["input"])), f"{check['what']}: {_verdict(check)}"
        rows.append((test, check["model"], check["group"], shape, verdict, error))
    head = ("test", "model", "group", "input", "", "relative error")
    title = "Checks of invariance"
    summary = tag("p", f"{_summary(checks)}.")
    return html_page(title, tag("h1", title), summary, table(rows, head, numbers=(5,), marked=failed))


class _Recorder:
    r"""Collects the checks of all tests, which pytest-xdist sends along, and writes the report at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_suffix(".json") if path.suffix == ".html" else path  # the page stands beside it
        self.checks: list[dict[str, Any]] = []
        self.xfailed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "wasxfail"):
            self.xfailed.add(report.nodeid)
        if report.when == "teardown":  # which comes after every test, also where a fixture raised
            found = (value for name, value in report.user_properties if name == PROPERTY)
            more = {"test": report.nodeid, "xfail": report.nodeid in self.xfailed}
            self.checks += [{**more, **entry} for entry in found if isinstance(entry, dict)]

    def pytest_sessionfinish(self) -> None:
        write_text(self.path, json.dumps({"torch": torch.__version__, "checks": self.checks}, indent=2) + "\n")
        write_text(self.path.with_suffix(".html"), _page(self.checks))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        names = f"{self.path} and {self.path.with_suffix('.html').name}"
        terminalreporter.write_line(f"invariance: {_summary(self.checks)}; {names}")
