r"""What was found as one HTML page; everything that came from outside is escaped."""

from __future__ import annotations

from equilayers._files import html_page, pairs, table, tag
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
from equilayers.cli._words import clean

BADGES = {INVARIANT: "passed", NOT_INVARIANT: "failed"}
SALIENCY = (
    "Above the input moved by each element g, beneath it where the model looks to tell the class that it predicts "
    "for g = 0: the strongest integrated gradients, over a faint copy of the input. SI: how alike that is to the "
    "first one, moved back; 1 for a model that looks at the same thing."
)


def page(report: Report, subject: Subject) -> str:
    r"""The page: the verdict, why, measures, layers, saliency over the orbit, and what was asked for."""
    badge = BADGES.get(report.code, "nothing shown")
    verdict = [tag("div", badge, class_="badge"), tag("h1", clean(report.verdict)), pairs(reasons(report))]
    lost = [layer.lost for layer in report.layers]
    layers = [tag("h2", "Which layer lost it" if any(lost) else "Layer by layer"), _note(f"{layers_words(report)}.")]
    if report.layers:
        rows = [layer_row(layer) for layer in report.layers]
        layers += [plot(report.layers), table(rows, LAYER_HEAD, numbers=RIGHT, marked=lost)]
    shown, missing = orbits(subject)
    return html_page(
        f"{badge}: equilayers check",
        tag("section", *verdict, class_=f"verdict {badge}"),
        tag("h2", "Measures"),
        _note(f"Over {looked_at(report)}."),
        table([measure_row(measure) for measure in report.measures], numbers=(1,)),
        *layers,
        tag("h2", "What it looks at over the orbit"),
        _note(f"Not shown: {clean(missing)}." if missing else SALIENCY),
        *shown,
        tag("h2", "What was checked"),
        pairs(settings_rows(report)),
    )


def _note(words: str) -> str:
    return tag("p", words, class_="note")
