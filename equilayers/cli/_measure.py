r"""What there is to know about a model's invariance: the verdict, the measures, and every layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equilayers.cli._arguments import Settings
from equilayers.cli._subject import Subject
from equilayers.cli._words import CALLER, EXTRA, said
from equilayers.metrics import (
    InvarianceGap,
    distribution_invariance_error,
    equivariance_error,
    invariance_gap,
    jacobian_spectral_norm,
    logit_invariance_error,
    prediction_consistency,
    saliency_invariance_similarity,
)
from equilayers.testing import Check, LayerError, compare, layer_errors

INVARIANT, NOT_INVARIANT, BAD_INPUT, NOTHING_SHOWN, INTERRUPTED = 0, 1, 2, 3, 130
FAINT = 1e-3  # outputs that lie apart by less, by their size, say the same of everything
QUICK = "--quick leaves it out"


@dataclass(frozen=True)
class Measure:
    r"""A number with what it means, or why there is none."""

    name: str
    meaning: str
    value: float = math.nan
    missing: str = ""


@dataclass(frozen=True)
class Report:
    r"""What was found. code: the exit code. layers_missing: why there are no layers."""

    settings: Settings
    output: str
    shape: tuple[int, ...]
    check: Check
    code: int
    verdict: str
    measures: list[Measure]
    layers: list[LayerError]
    layers_missing: str


def examine(subject: Subject) -> Report:
    r"""Check the model and measure it; it is left as it was.

    Raises:
        ValueError, TypeError: the output does not move as it was said.
    """
    with subject.running():
        check, gap, code, verdict = judge(subject)
        measures = _measures(subject, gap)
        layers, missing = _layers(subject, check)
    shape, moves = tuple(subject.y.shape), subject.action.name
    return Report(subject.settings, moves, shape, check, code, verdict, measures, layers, missing)


def judge(subject: Subject, *, diagnose: bool = True) -> tuple[Check, InvarianceGap | str, int, str]:
    r"""The check, the gap against deafness, and what they come to: the exit code and the verdict."""
    settings, model, x, action = subject.settings, subject.model, subject.inputs, subject.action
    how: dict[str, Any] = {"bitwise": settings.bitwise, "tolerance": settings.tolerance, "atol": settings.atol}
    with subject.running():
        check = compare(CALLER, model, x, settings.group, action, **how, diagnose=diagnose)
        gap = _gap(subject)
    return check, gap, *_verdict(subject, check, gap)


def _verdict(subject: Subject, check: Check, gap: InvarianceGap | str) -> tuple[int, str]:
    group, location = subject.group, check.location
    what = "invariant" if subject.action.fixed else "equivariant"
    allowed = check.tolerance / check.scale if check.scale else check.tolerance
    error = f"error {check.relative_error:.2g} of the size of the outputs there, tolerance {allowed:.2g}"
    if check.nothing_shown:
        return NOTHING_SHOWN, f"nothing shown of {group!r}: {error}, but {check.nothing_shown}"
    if not check.passed:
        random = "it is random, two identical calls differ; " if location and location.kind == "random" else ""
        lost = f"; lost at {location.path or 'the model itself'}: {location.description}" if location else ""
        lost += f", and {len(check.locations) - 1} more" if len(check.locations) > 1 else ""
        return NOT_INVARIANT, f"not {what} under {group!r}: {random}{error}{lost}"
    if isinstance(gap, str) or not gap.trivial:
        return INVARIANT, f"{what} under {group!r}: {error}"
    near = "the model says nearly the same of every input"
    why = "the model hears no noise either" if gap.spread > FAINT else near
    return NOTHING_SHOWN, f"nothing shown of {group!r}: {error}, but {why}"


def _gap(subject: Subject) -> InvarianceGap | str:
    r"""Against deafness, or why that is not known."""
    if subject.several:
        return subject.several
    try:
        return invariance_gap(subject, subject.x, subject.group, batch_size=subject.settings.batch_size)
    except Exception as error:
        return said(error)


def _layers(subject: Subject, check: Check) -> tuple[list[LayerError], str]:
    r"""Every layer on the worst sample and another, or why not."""
    if check.location is not None and check.location.kind == "random":
        return [], "two identical calls differ"
    pair = subject.inputs.samples([check.sample, (check.sample or len(subject.x)) - 1])
    try:
        return layer_errors(subject.model, pair, subject.group), ""
    except Exception as error:
        return [], said(error)


def _measures(subject: Subject, gap: InvarianceGap | str) -> list[Measure]:
    x, group, size = subject.x, subject.group, subject.settings.batch_size
    outputs = f"the output {tuple(subject.y.shape)} is no (B, K) of logits that stay"
    several = subject.several
    logits = several or ("" if subject.logits else outputs)

    def similarity() -> Tensor:
        target = subject.y.argmax(1)
        return saliency_invariance_similarity(subject, x, target, group, batch_size=size or 1)

    def moved() -> Tensor:
        act = subject.action.move
        return equivariance_error(subject, x, group, action_out=act, batch_size=size).mean()

    def of_gap(part: Callable[[InvarianceGap], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.tensor(math.nan) if isinstance(gap, str) else part(gap)

    deaf = gap if isinstance(gap, str) else ""
    quick = several or (QUICK if subject.settings.quick else "")
    found = [
        _measure("LI", "half the squared distance that the logits move with the input; 0: they stay", logits,
                 lambda: logit_invariance_error(subject, x, group, batch_size=size)),
        _measure("DI", "how far the predicted distribution moves, in nats; 0: it stays", logits,
                 lambda: distribution_invariance_error(subject, x, group, batch_size=size)),
        _measure("consistency", "share of moved inputs that keep their class; 1: all", logits,
                 lambda: prediction_consistency(subject, x, group, batch_size=size)),
        _measure("SI", "does it look at the same thing when the input moves? 1: always", logits or quick, similarity),
    ]  # fmt: skip
    if not subject.logits:
        found.append(
            _measure("EE", "how far the output is from moving along, by its size; 0: it moves along", several, moved)
        )
    return [
        *found,
        _measure("sigma_max", "how far the output moves for the worst small change of the input, per unit of it", quick,
                 lambda: jacobian_spectral_norm(subject, x, batch_size=size).mean()),
        _measure("gap", "how far the group moves the output, over how far noise as large does; 1: like any noise",
                 deaf or logits, of_gap(lambda found: found.ratio)),
        _measure("spread", "how far outputs of different inputs lie apart, by their size; near 0: deaf", deaf,
                 of_gap(lambda found: found.spread)),
    ]  # fmt: skip


def _measure(name: str, meaning: str, missing: str, value: Callable[[], Tensor]) -> Measure:
    if missing:
        return Measure(name, meaning, missing=missing)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            number = float(value())
    except ImportError as error:
        return Measure(name, meaning, missing=f"needs {error.name or said(error)}, {EXTRA}")
    except Exception as error:  # one that cannot be had does not take the others with it
        return Measure(name, meaning, missing=said(error))
    if math.isnan(number):
        return Measure(name, meaning, missing="it came out as NaN")
    notes = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return Measure(name, f"{meaning} ({said(UserWarning(notes[0]))})" if notes else meaning, number)
