r"""What was found as one HTML page that needs no network; everything that came from outside is escaped."""

from __future__ import annotations

import importlib.util

from equilayers.cli._measure import INVARIANT, NOT_INVARIANT, Report
from equilayers.cli._pictures import orbits, plot
from equilayers.cli._show import (
    LAYER_HEAD,
    RIGHT,
    layer_row,
    layers_words,
    looked_at,
    measure_row,
    reasons,
    settings_rows,
)
from equilayers.cli._subject import Subject
from equilayers.cli._words import EXTRA, bad, clean

BADGES = {INVARIANT: "passed", NOT_INVARIANT: "failed"}


def require_jinja() -> None:
    r"""BadInputError unless jinja2, which fills the page, is installed."""
    if importlib.util.find_spec("jinja2") is None:
        bad("jinja2 to be installed, for --html", "none", f"Run {EXTRA}.")


def page(report: Report, subject: Subject) -> str:
    r"""The page: the verdict, why, measures, layers, saliency over the orbit, and what was asked for."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("equilayers.cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown, missing = orbits(subject)
    return environment.get_template("check.html.j2").render(
        badge=BADGES.get(report.code, "nothing shown"),
        verdict=clean(report.verdict),
        reasons=reasons(report),
        looked_at=looked_at(report),
        measures=[measure_row(measure) for measure in report.measures],
        plot=plot(report.layers),
        layers_words=layers_words(report),
        layers=[layer_row(layer) for layer in report.layers],
        head=LAYER_HEAD,
        right=RIGHT,
        orbits=shown,
        saliency_missing=clean(missing),
        settings=settings_rows(report),
    )
