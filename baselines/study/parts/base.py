r"""Base classes of the parts of the study: trainings, measures, and the page of results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from baselines.common.runner import Result, StoredJob
from baselines.study.runs import Run, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from baselines.study.config import Plan

Verdict = Literal["holds", "partly", "does not hold"]


@dataclass(frozen=True)
class Finding:
    r"""A sentence computed from the numbers; `claims` says which of the paper's claims it bears on came out true."""

    text: str
    claims: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Table:
    r"""Cells as text, a row for each entry."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    r"""A figure, what it is called as a file, and what it shows in words for those who cannot see it."""

    name: str
    figure: Figure
    alt: str


@dataclass(frozen=True)
class Page:
    r"""The findings, tables and pictures of a part."""

    findings: Sequence[Finding]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()

    @property
    def verdict(self) -> Verdict | None:
        r"""Whether the claim of the paper holds; None where nothing was found that bears on it."""
        claims = [claim for finding in self.findings for claim in finding.claims]
        if not claims:
            return None
        return "holds" if all(claims) else "partly" if any(claims) else "does not hold"


class Part(ABC):
    r"""One part of the study."""

    title = ""
    claim = ""  # of the paper or the lecture, in our words

    @abstractmethod
    def page(self, results: list[Result]) -> Page:
        r"""What is said and drawn of the results."""


class RunPart(Part):
    r"""A part that measures networks the study trains: its results are the runs with their measures."""

    needs_measures_of: tuple[str, ...] = ()  # other parts

    def runs(self, plan: Plan) -> list[Run]:
        r"""The trainings it measures: those of every method."""
        return plan.runs(plan.methods)

    def further_runs(self, plan: Plan, results: list[Result]) -> list[Run]:  # noqa: ARG002
        r"""Trainings that depend on what the first ones showed: none, for most."""
        return []

    @abstractmethod
    def measure(self, trained: Subject) -> Result:
        r"""What is measured of one network, as JSON."""


class StandalonePart(Part):
    r"""A part that trains what it needs by itself."""

    @abstractmethod
    def jobs(self, plan: Plan, out: Path) -> Sequence[StoredJob]:
        r"""What it trains and measures, and keeps in `out`."""

    def results(self, found: list[Result]) -> list[Result]:
        r"""The results of the part, of those of its jobs: the same, for most."""
        return found
