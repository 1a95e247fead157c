"""What the parts of the study say of made-up numbers: every claim comes out true or false as the numbers are."""

import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.shift import figures as shift_figures
from baselines.shift import runs as shift_runs
from baselines.study.config import FORMS
from baselines.study.parts import PARTS
from baselines.study.parts.base import Finding, Page, Verdict
from baselines.study.parts.deform import MODELS, DeformPart
from baselines.study.parts.drift import BETAS, DriftPart
from baselines.study.parts.gradient_flow import FlowPart, gradient_flow
from baselines.study.parts.saliency import SaliencyPart
from baselines.study.parts.shift import ShiftPart
from baselines.study.parts.spectral_decay import DecayPart
from baselines.study.parts.table1 import TablePart
from baselines.study.parts.tsne import TsnePart
from baselines.study.runner import StandaloneJob
from baselines.study.runs import Result
from baselines.study.tables import PAPER_COLUMNS
from equilayers.groups import group_from_name
from studies import entry, plan, run_of, small_shifts


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        *(([()] * count, None) for count in range(3)),
        *((claims, "holds") for claims in ([(True,)], [(True, True), (), (True,)])),
        *((claims, "partly") for claims in ([(True, False)], [(False,), (True,)])),
        ([(False,), (), (False, False)], "does not hold"),
    ],
    ids=str,
)
def test_the_verdict_of_a_page(claims: Sequence[tuple[bool, ...]], verdict: Verdict | None) -> None:
    assert Page([Finding("text", each) for each in claims]).verdict == verdict


def claims(page: Page) -> list[bool]:
    return [claim for finding in page.findings for claim in finding.claims]


def check(page: Page) -> None:
    """Rows as long as their head; every picture with a name of its own and words."""
    for table in page.tables:
        assert all(len(row) == len(table.head) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)
    assert len({picture.name for picture in page.pictures}) == len(page.pictures)
    assert all(len(picture.alt) > 20 for picture in page.pictures)
    assert all(finding.text[0].isupper() and finding.text.endswith(".") for finding in page.findings)


def test_every_part_has_a_title_and_a_claim() -> None:
    assert list(PARTS) == ["table", "drift", "decay", "saliency", "tsne", "flow", "deform", "shift"]
    assert len({part.title for part in PARTS.values()}) == len(PARTS)
    assert all(part.claim.endswith(".") for part in PARTS.values())


def table(data: str = "digits", model: str = "mlp", **other: dict[str, float]) -> list[Result]:
    """Numbers as the paper has them; what a method has otherwise by its name."""
    numbers = {
        "WT": {"accuracy": 0.95, "LI": 0.0, "DI": 0.0, "SI": 1.0, "consistency": 1.0},
        "DA": {"accuracy": 0.94, "LI": 50.0, "DI": 0.3, "SI": 0.3, "consistency": 0.9},
        "IR": {"accuracy": 0.88, "LI": 0.02, "DI": 0.001, "SI": 0.95, "consistency": 0.99},
    }
    numbers = {method: {**measures, **other.get(method, {})} for method, measures in numbers.items()}
    runs = (run_of(method, model=model, data=data) for method in numbers)
    return [entry(run, upright_accuracy=0.9, **numbers[run.method]) for run in runs]


@pytest.mark.parametrize(
    ("other", "false"),
    [
        ({}, 0),
        ({"WT": {"LI": 1e-12}}, 1),
        ({"WT": {"DI": 1e-12}}, 1),
        ({"WT": {"accuracy": 0.9301}}, 0),  # within a hundredth
        ({"WT": {"accuracy": 0.9299}}, 1),
        ({"DA": {"SI": 0.96}}, 1),
        ({"DA": {"LI": 0.0}}, 2),  # and regularisation is not below it
        ({"IR": {"LI": 51.0}}, 1),
        ({"IR": {"accuracy": 0.945}}, 1),
        ({"WT": {"LI": 1.0, "accuracy": 0.5}, "DA": {"LI": 0.0, "SI": 1.0}, "IR": {"accuracy": 0.99}}, 6),
    ],
    ids=str,
)
def test_claims_of_the_table(other: dict[str, dict[str, float]], false: int) -> None:
    page = TablePart().page(table(**other))
    check(page)
    assert len(claims(page)) == 6
    assert claims(page).count(False) == false
    assert page.verdict == {0: "holds", 6: "does not hold"}.get(false, "partly")


def test_words_of_the_table_are_those_of_the_numbers() -> None:
    exact, augmented, regularised = (finding.text for finding in TablePart().page(table()).findings)
    assert exact == "R4 WT: exactly invariant: logits equal to the last bit, saliency similarity 1.000."
    assert augmented.startswith("R4 DA: not invariant: 10.0 % of moved images change class, ")
    assert regularised.endswith("saliency similarity 0.950.")
    (only,) = TablePart().page([table(WT={"LI": 1e-12})[0]]).findings
    assert (only.claims, "exactly" in only.text) == ((False,), False)
    numbers = {"accuracy": 0.5, "LI": 5.0, "DI": 0.1, "SI": 0.5, "consistency": 0.5}
    (only,) = TablePart().page([entry(run_of("UP"), upright_accuracy=0.9, **numbers)]).findings
    assert (only.claims, "90.0 % of upright images right" in only.text) == ((), True)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("data", ["digits", "mnist", "fashion-mnist"])
def test_columns_of_the_paper_for_its_model_and_data_only(data: str, model: str) -> None:
    page = TablePart().page(table(data, model))
    check(page)
    (shown,) = page.tables
    assert (tuple(shown.head[-4:]) == PAPER_COLUMNS) == ((data, model) == ("mnist", "mlp"))
    assert any("98.6" in row for row in shown.rows) == ((data, model) == ("mnist", "mlp"))


Curve = Callable[[float], float]


def curves(**di: Curve) -> list[Result]:
    """Entries of drift with DI over beta for each method."""
    results = []
    for method, f in di.items():
        drift = {"DI": [f(beta) for beta in BETAS], "accuracy": [0.9 - 0.4 * beta for beta in BETAS]}
        drift["consistency"] = [0.9] * len(BETAS)
        results.append(entry(run_of(method), drift_samples=100, drift_to="scrambled digits", drift=drift))
    return results


def zero(beta: float) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("tied", "augmented", "regularised", "found"),
    [
        (zero, lambda b: 0.1 + b, lambda b: 0.001, [True, True, True, True]),
        (lambda b: 1e-9 * b, lambda b: 0.1 + b, lambda b: 0.001, [False, True, True, True]),
        (zero, lambda b: 0.1 - 0.05 * b, lambda b: 0.001, [True, False, False, True]),
        (zero, lambda b: 0.1 + 0.05 * b, lambda b: 0.001, [True, True, False, True]),
        (zero, lambda b: 0.1 + b, lambda b: 0.001 + 0.1 * b, [True, True, True, False]),
        (lambda b: 1e-9, lambda b: 0.1, lambda b: 0.1, [False] * 4),
    ],
    ids=["as in the paper", "leaking", "falling", "rising a little", "regularisation fails", "nothing"],
)
def test_claims_of_drift(tied: Curve, augmented: Curve, regularised: Curve, found: list[bool]) -> None:
    page = DriftPart().page(curves(WT=tied, DA=augmented, IR=regularised))
    check(page)
    assert claims(page) == found
    assert page.verdict == ("holds" if all(found) else "partly" if any(found) else "does not hold")
    assert ("0 at every beta, to the last bit" in page.findings[0].text) == found[0]


def test_numbers_of_drift_are_those_of_the_curves() -> None:
    runs = curves(WT=zero, DA=lambda b: 0.1 + b)
    page = DriftPart().page(runs)
    assert page.findings[1].text == "R4: DI of augmentation goes from 0.1 nats to 0.2 at beta 0.1 and 1.1 at 1.0."
    assert page.tables[0].rows[1][2:4] == ["0.1", "0.3"]
    assert page.tables[0].rows[1][-2:] == ["90.0", "22.2 %"]  # 0.2 of 0.9 are lost at 0.5
    assert len(page.findings) == 3
    assert "WT 22 %" in page.findings[2].text


def decays(sigmas: Sequence[float], similarity: float = 0.96, seeds: int = 1, **more: Any) -> list[Result]:
    """Entries of decay: sigma of augmentation is 2, of weight tying 3, and of each form of the regulariser as given."""
    forms = [("IR", form, sigma) for form, sigma in zip(FORMS, sigmas, strict=True)]
    measured = {"SI": similarity, "moved": 0.2, "noisy": 0.4, "ratio": 0.5, "trivial": False, "decay_samples": 50}
    return [
        entry(
            run_of(method, form=form, nu=7.0 if method == "IR" else 0.0, seed=seed),
            sigma_max=sigma + (0.1 * (seed - (seeds - 1) / 2)),
            sigma_relative=0.1 * sigma,
            **{**measured, **more},
        )
        for method, form, sigma in [("DA", FORMS[0], 2.0), ("WT", FORMS[0], 3.0), *forms]
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("sigmas", "verdict"),
    [
        ((0.5, 1.0, 1.99), "holds"),
        ((0.5, 1.0, 2.01), "partly"),
        ((2.5, 2.1, 1.9), "partly"),
        ((2.0, 2.0, 2.0), "does not hold"),
        ((9.0, 3.0, 2.01), "does not hold"),
    ],
    ids=str,
)
@pytest.mark.parametrize("seeds", [1, 2])
def test_decay_holds_only_when_every_form_is_below_augmentation(
    seeds: int, sigmas: tuple[float, ...], verdict: Verdict
) -> None:
    page = DecayPart().page(decays(sigmas, seeds=seeds))
    check(page)
    assert claims(page) == [sigma < 2 for sigma in sigmas]
    assert page.verdict == verdict
    names = [row[1] for row in page.tables[0].rows]
    assert names == ["DA", "WT", "IR, LI", "IR, DI", "IR, normalised LI"]
    assert page.findings[1].text.startswith(f"R4: sigma max of IR, LI is {sigmas[0] / 2:.2g} times augmentation's")


def test_decay_says_when_the_regulariser_missed_its_target() -> None:
    for similarity, missed in ((0.95, False), (0.9499, True)):
        tied, *forms = DecayPart().page(decays((1, 1, 1), similarity)).findings
        assert all(("under the target of 0.95" in finding.text) == missed for finding in forms)
        assert "under the target" not in tied.text
        assert all(finding.claims == (True,) for finding in forms)


def test_decay_without_something_to_compare_with_claims_nothing() -> None:
    regularised = [run for run in decays((1, 1, 1)) if run["method"] == "IR"]
    page = DecayPart().page(regularised)
    check(page)
    assert (page.verdict, list(page.findings)) == (None, [])


def test_decay_names_the_trivial() -> None:
    (table,) = DecayPart().page(decays((1, 1, 1), trivial=True, ratio=math.nan)).tables
    assert all(row[-1] == "trivial" for row in table.rows)
    (table,) = DecayPart().page(decays((1, 1, 1))).tables
    assert all(row[-1] == "0.5" for row in table.rows)


@pytest.mark.parametrize(
    ("tied", "augmented", "found"),
    [(1.0, 0.3, [True, True]), (0.99, 0.3, [False, True]), (1.0, 0.95, [True, False]), (0.5, 0.95, [False, False])],
)
def test_claims_of_saliency(tied: float, augmented: float, found: list[bool]) -> None:
    picture = {"image": PIXEL, "maps": [PIXEL] * 4}
    runs = [
        entry(run_of(method), similarity=[value] * 3, saliency_maps=9, pictures=[picture])
        for method, value in (("WT", tied), ("DA", augmented), ("IR", 0.9))
    ]
    page = SaliencyPart().page(runs)
    check(page)
    assert claims(page) == found
    assert ("decides differently" in page.findings[1].text) == found[1]


PIXEL = {"shape": [1, 1], "low": 0.0, "high": 1.0, "pixels": "AA=="}


@pytest.mark.parametrize(
    ("tied", "augmented", "found"),
    [(0.0, 0.4, [True, True]), (1e-9, 0.4, [False, True]), (0.0, 0.05, [True, False]), (0.1, 0.01, [False, False])],
)
def test_claims_of_the_feature_space(tied: float, augmented: float, found: list[bool]) -> None:
    drawn = {"places": torch.rand(4, 20, 2).tolist(), "classes": [0, 1] * 10}
    runs = [
        entry(run_of(method), orbit_spread=value, tsne_images=20, **drawn)
        for method, value in (("WT", tied), ("DA", augmented), ("IR", 0.0))
    ]
    page = TsnePart().page(runs)
    check(page)
    assert claims(page) == found
    assert ("exactly 0" in page.findings[0].text) == found[0]


@pytest.fixture(scope="module")
def flow() -> Result:
    """The flow on a few random images."""
    found = gradient_flow(torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0)), group_from_name("C4"))
    numbers = {key: getattr(found, key).tolist() for key in ("times", "sigma", "exact_sigma", "loss", "error")}
    return {"group": "R4", "images": 20, "kept": found.kept, **numbers}


def test_a_rising_singular_value_or_an_inexact_flow_is_a_false_claim(flow: Result) -> None:
    page = FlowPart().page([flow])
    check(page)
    assert (claims(page), page.verdict) == ([True, True], "holds")
    rising = {**flow, "sigma": [*flow["sigma"][:-1], flow["sigma"][-2] + 1e-9]}
    assert claims(FlowPart().page([rising])) == [False, True]
    assert "RISES" in FlowPart().page([rising]).findings[0].text
    inexact = {**flow, "error": [*flow["error"][:-1], 2e-5]}
    assert claims(FlowPart().page([inexact])) == [True, False]
    assert FlowPart().page([{**rising, **inexact, "sigma": rising["sigma"]}]).verdict == "does not hold"
    assert FlowPart().page([flow, rising]).verdict == "partly"


def test_the_flow_is_of_the_groups_of_the_plan_and_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a job that is sent to another process."""
    monkeypatch.setattr("baselines.study.parts.gradient_flow.SAMPLES", 5)
    asked, told = plan("--groups", "C4", "D4"), []
    job = pickle.loads(pickle.dumps(StandaloneJob("flow", asked, tmp_path, resume=False)))
    results = job.carry_out(told.append)
    assert [(result["group"], result["images"]) for result in results] == [("R4", 5), ("D4", 5)]
    assert told == [1, 2]
    assert job.steps == 2
    assert FlowPart().page(results).verdict == "holds"


def deformed(*distances: float) -> list[Result]:
    """One network with these distances at deformations of 0, 0.1, 0.2 and 0.4."""
    sizes = {"gradient_norm": [0.0, 0.1, 0.2, 0.4], "interpolation_floor": [0.0, 0.01, 0.02, 0.03]}
    found = {"accuracy": 0.9, "distance": [0.0, *distances], "quartiles": [[0.0, *distances]] * 3}
    return [{"network": name, **sizes, **found} for name in MODELS]


def test_stability_is_a_bound_by_the_size_of_the_deformation() -> None:
    proportional = DeformPart().page(deformed(0.05, 0.1, 0.2))
    check(proportional)
    assert (claims(proportional), proportional.verdict) == ([True] * 3, "holds")
    assert "move by 0.5 to 0.5 times the largest gradient" in proportional.findings[0].text
    jumping = DeformPart().page(deformed(0.2, 0.2, 0.2))  # at once as far as it gets
    assert (claims(jumping), jumping.verdict) == ([False] * 3, "does not hold")
    mixed = DeformPart().page([*deformed(0.05, 0.1, 0.2)[:2], deformed(0.2, 0.2, 0.2)[2]])
    assert mixed.verdict == "partly"


def shifted(wobble: tuple[float, float, float], same: float = 1.0) -> list[Result]:
    """Detectors and segmentors with each pooling: the largest wobble of each, and the consistency of the last."""
    numbers = {"accuracy": 0.9, "digit_pixel_accuracy": 0.8, "pixel_accuracy": 0.9, "changed_digit_pixels": 0.1}
    numbers |= {"mean_error": 0.1, "largest_error": 0.2}
    results = []
    for kind, value in zip(("max", "blur", "polyphase"), wobble, strict=True):
        consistency = {"circular": same if kind == "polyphase" else 0.9, "cropped": 0.9}
        motions = {motion: {**numbers, "largest_wobble": value} for motion in ("circular", "cropped")}
        more = {"consistency": consistency, "consistency_at_initialisation": consistency}
        more |= {f"largest_{key}_at_initialisation": {"circular": 0.1, "cropped": 0.1} for key in ("wobble", "error")}
        results += [{"task": task, "kind": kind, **motions, **more} for task in ("detector", "segmentor")]
    return results


@pytest.mark.parametrize(
    ("wobble", "same", "found"),
    [
        ((0.5, 0.2, 1e-7), 1.0, [True, True]),
        ((0.2, 0.5, 1e-7), 1.0, [False, True]),
        ((0.5, 0.1, 0.2), 1.0, [False, True]),
        ((0.5, 0.2, 1e-7), 0.999, [True, False]),
        ((0.1, 0.2, 0.3), 0.9, [False, False]),
    ],
    ids=["as it should", "blur wobbles more", "polyphase wobbles", "a changed class", "nothing"],
)
def test_claims_of_shift(
    wobble: tuple[float, float, float], same: float, found: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift_figures, "drawings", lambda results: {})
    page = ShiftPart().page(shifted(wobble, same))
    check(page)
    assert claims(page) == found
    assert page.findings[-1].text.endswith("yes." if found[0] else "no.")
    assert any("is broken" in finding.text for finding in page.findings) == (not found[1])


def test_shift_keeps_its_runs_and_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shifts(monkeypatch)
    asked, told = plan("--epochs", "1"), []
    results = ShiftPart().results(asked, tmp_path, told.append, resume=False)
    assert ShiftPart().steps(asked) == max(told) == told[-1] == 6
    assert told == sorted(told)
    assert not any("seconds" in key for run in results for key in run)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert ShiftPart().results(asked, tmp_path, told.append, resume=True) == results
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    page = ShiftPart().page(results)
    check(page)
    names = ("toy", "accuracy", "probability", "segmentation")
    assert [picture.name for picture in page.pictures] == [f"shift-{name}" for name in names]
    shift_runs.data_of.cache_clear()
