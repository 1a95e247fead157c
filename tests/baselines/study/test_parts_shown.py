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
from baselines.study.parts.base import Finding, Page
from baselines.study.parts.deform import MODELS, DeformPart
from baselines.study.parts.drift import BETAS, DriftPart
from baselines.study.parts.gradient_flow import FlowPart, gradient_flow
from baselines.study.parts.shift import ShiftPart
from baselines.study.parts.spectral_decay import DecayPart
from baselines.study.parts.table1 import TablePart
from baselines.study.runner import StandaloneJob
from baselines.study.runs import Result
from equilayers.groups import group_from_name
from studies import entry, plan, run_of, small_shifts


def claims(page: Page) -> str:
    """Which come out true, T, or false, F."""
    return "".join("FT"[claim] for finding in page.findings for claim in finding.claims)


def shown(part: str, results: list[Result], found: str) -> Page:
    """The page of a part, after having seen that it is whole and that its claims come out so.

    Rows are as long as their head; every picture has a name of its own and words.
    """
    page = PARTS[part].page(results)
    for table in page.tables:
        assert all(len(row) == len(table.head) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)
    assert len({picture.name for picture in page.pictures}) == len(page.pictures)
    assert all(len(picture.alt) > 20 for picture in page.pictures)
    assert all(finding.text[0].isupper() and finding.text.endswith(".") for finding in page.findings)
    assert claims(page) == found
    assert page.verdict == verdict_of(found)
    return page


def verdict_of(found: str) -> str | None:
    return {"": None, "T": "holds", "F": "does not hold"}.get("".join(sorted(set(found))), "partly")


@pytest.mark.parametrize("each", [(), ("", ""), ("TT", "", "T"), ("TF",), ("F", "T"), ("F", "", "FF")], ids=str)
def test_the_verdict_of_a_page(each: tuple[str, ...]) -> None:
    page = Page([Finding("text", tuple(claim == "T" for claim in claimed)) for claimed in each])
    assert page.verdict == verdict_of("".join(each))


def test_every_part_has_a_title_and_a_claim() -> None:
    assert list(PARTS) == [
        *("table", "drift", "decay", "saliency", "tsne", "mitigation", "sensitivity"),
        *("flow", "deform", "shift"),
    ]
    assert len({part.title for part in PARTS.values()}) == len(PARTS)
    assert all(part.claim.endswith(".") for part in PARTS.values())


def table(**other: dict[str, float]) -> list[Result]:
    """Numbers as the paper has them; what a method has otherwise by its name."""
    numbers = {
        "WT": {"accuracy": 0.95, "LI": 0.0, "DI": 0.0, "SI": 1.0, "consistency": 1.0},
        "DA": {"accuracy": 0.94, "LI": 50.0, "DI": 0.3, "SI": 0.3, "consistency": 0.9},
        "IR": {"accuracy": 0.88, "LI": 0.02, "DI": 0.001, "SI": 0.95, "consistency": 0.99},
    }
    numbers = {method: {**measures, **other.get(method, {})} for method, measures in numbers.items()}
    return [entry(run_of(method), upright_accuracy=0.9, **measures) for method, measures in numbers.items()]


Curve = Callable[[float], float]


def zero(beta: float) -> float:
    return 0.0


def curves(**di: Curve) -> list[Result]:
    """Entries of drift with DI over beta for each method."""
    results = []
    for method, f in di.items():
        drift = {"DI": [f(beta) for beta in BETAS], "accuracy": [0.9 - 0.4 * beta for beta in BETAS]}
        drift["consistency"] = [0.9] * len(BETAS)
        results.append(entry(run_of(method), drift_samples=100, drift_to="scrambled digits", drift=drift))
    return results


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


PIXEL = {"shape": [1, 1], "low": 0.0, "high": 1.0, "pixels": "AA=="}


def maps(**similarity: float) -> list[Result]:
    """Entries of saliency."""
    measured = {"saliency_maps": 9, "pictures": [{"image": PIXEL, "maps": [PIXEL] * 4}]}
    return [entry(run_of(method), similarity=[value] * 3, **measured) for method, value in similarity.items()]


def orbits(**spread: float) -> list[Result]:
    """Entries of the feature space."""
    drawn = {"places": torch.rand(4, 20, 2).tolist(), "classes": [0, 1] * 10, "tsne_images": 20}
    return [entry(run_of(method), orbit_spread=value, **drawn) for method, value in spread.items()]


def deformed(*distances: float) -> list[Result]:
    """One network with these distances at deformations of 0, 0.1, 0.2 and 0.4."""
    sizes = {"gradient_norm": [0.0, 0.1, 0.2, 0.4], "interpolation_floor": [0.0, 0.01, 0.02, 0.03]}
    found = {"accuracy": 0.9, "distance": [0.0, *distances], "quartiles": [[0.0, *distances]] * 3}
    return [{"network": name, **sizes, **found} for name in MODELS]


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


BAD = {"WT": {"LI": 1.0, "accuracy": 0.5}, "DA": {"LI": 0.0, "SI": 1.0}, "IR": {"accuracy": 0.99}}
# The part, made-up results, and which of its claims come out true.
CASES: dict[str, tuple[str, list[Result], str]] = {
    "table: as in the paper": ("table", table(), "TTTTTT"),
    "table: LI": ("table", table(WT={"LI": 1e-12}), "FTTTTT"),
    "table: DI": ("table", table(WT={"DI": 1e-12}), "FTTTTT"),
    "table: within a hundredth": ("table", table(WT={"accuracy": 0.9301}), "TTTTTT"),
    "table: accuracy": ("table", table(WT={"accuracy": 0.9299}), "TFTTTT"),
    "table: SI of augmentation": ("table", table(DA={"SI": 0.96}), "TTTFTT"),
    "table: LI of augmentation, below regularisation": ("table", table(DA={"LI": 0.0}), "TTFTFT"),
    "table: LI of regularisation": ("table", table(IR={"LI": 51.0}), "TTTTFT"),
    "table: accuracy of regularisation": ("table", table(IR={"accuracy": 0.945}), "TTTTTF"),
    "table: nothing": ("table", table(**BAD), "FFFFFF"),
    "drift: as in the paper": ("drift", curves(WT=zero, DA=lambda b: 0.1 + b, IR=lambda b: 0.001), "TTTT"),
    "drift: leaking": ("drift", curves(WT=lambda b: 1e-9 * b, DA=lambda b: 0.1 + b, IR=lambda b: 0.001), "FTTT"),
    "drift: falling": ("drift", curves(WT=zero, DA=lambda b: 0.1 - 0.05 * b, IR=lambda b: 0.001), "TFFT"),
    "drift: rising a little": ("drift", curves(WT=zero, DA=lambda b: 0.1 + 0.05 * b, IR=lambda b: 0.001), "TTFT"),
    "drift: regularisation": ("drift", curves(WT=zero, DA=lambda b: 0.1 + b, IR=lambda b: 0.001 + 0.1 * b), "TTTF"),
    "drift: nothing": ("drift", curves(WT=lambda b: 1e-9, DA=lambda b: 0.1, IR=lambda b: 0.1), "FFFF"),
    "decay: as in the paper": ("decay", decays((0.5, 1.0, 1.99)), "TTT"),
    "decay: one form": ("decay", decays((0.5, 1.0, 2.01)), "TTF"),
    "decay: the others": ("decay", decays((2.5, 2.1, 1.9)), "FFT"),
    "decay: equal": ("decay", decays((2.0, 2.0, 2.0)), "FFF"),
    "decay: nothing, two seeds": ("decay", decays((9.0, 3.0, 2.01), seeds=2), "FFF"),
    "decay: two seeds": ("decay", decays((0.5, 1.0, 1.99), seeds=2), "TTT"),
    "decay: nothing to compare with": ("decay", [run for run in decays((1, 1, 1)) if run["method"] == "IR"], ""),
    "saliency: as in the paper": ("saliency", maps(WT=1.0, DA=0.3, IR=0.9), "TT"),
    "saliency: not tied": ("saliency", maps(WT=0.99, DA=0.3, IR=0.9), "FT"),
    "saliency: alike": ("saliency", maps(WT=1.0, DA=0.95, IR=0.9), "TF"),
    "saliency: nothing": ("saliency", maps(WT=0.5, DA=0.95, IR=0.9), "FF"),
    "t-SNE: as in the paper": ("tsne", orbits(WT=0.0, DA=0.4, IR=0.0), "TT"),
    "t-SNE: not tied": ("tsne", orbits(WT=1e-9, DA=0.4, IR=0.0), "FT"),
    "t-SNE: points": ("tsne", orbits(WT=0.0, DA=0.05, IR=0.0), "TF"),
    "t-SNE: nothing": ("tsne", orbits(WT=0.1, DA=0.01, IR=0.0), "FF"),
    "deform: in proportion": ("deform", deformed(0.05, 0.1, 0.2), "TTT"),
    "deform: at once as far as it gets": ("deform", deformed(0.2, 0.2, 0.2), "FFF"),
    "deform: one network": ("deform", [*deformed(0.05, 0.1, 0.2)[:2], deformed(0.2, 0.2, 0.2)[2]], "TTF"),
    "shift: as it should": ("shift", shifted((0.5, 0.2, 1e-7)), "TT"),
    "shift: blur wobbles more": ("shift", shifted((0.2, 0.5, 1e-7)), "FT"),
    "shift: polyphase wobbles": ("shift", shifted((0.5, 0.1, 0.2)), "FT"),
    "shift: a changed class": ("shift", shifted((0.5, 0.2, 1e-7), 0.999), "TF"),
    "shift: nothing": ("shift", shifted((0.1, 0.2, 0.3), 0.9), "FF"),
}
# What the findings say where a claim is true, by the part and the number of the claim; nowhere else.
SAID = {
    ("table", 0): "exactly invariant",
    ("drift", 0): "0 at every beta, to the last bit",
    ("saliency", 1): "decides differently",
    ("tsne", 0): "WT have a size of exactly 0",
    ("shift", 0): "yes.",
}


@pytest.mark.parametrize("case", CASES)
def test_claims_come_out_as_the_numbers_are(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift_figures, "drawings", lambda results: {})
    part, results, found = CASES[case]
    page = shown(part, results, found)
    words = " ".join(finding.text for finding in page.findings)
    for (of, number), said in SAID.items():
        if of == part:
            assert (said in words) == (found[number] == "T")
    if part == "shift":
        assert ("is broken" in words) == (found[1] == "F")


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


def test_numbers_of_drift_are_those_of_the_curves() -> None:
    runs = curves(WT=zero, DA=lambda b: 0.1 + b)
    page = DriftPart().page(runs)
    assert page.findings[1].text == "R4: DI of augmentation goes from 0.1 nats to 0.2 at beta 0.1 and 1.1 at 1.0."
    assert page.tables[0].rows[1][2:4] == ["0.1", "0.3"]
    assert page.tables[0].rows[1][-2:] == ["90.0", "22.2 %"]  # 0.2 of 0.9 are lost at 0.5
    assert len(page.findings) == 3
    assert "WT 22 %" in page.findings[2].text


def test_words_of_decay_are_those_of_the_numbers() -> None:
    page = DecayPart().page(decays((0.5, 1.0, 1.99)))
    assert [row[1] for row in page.tables[0].rows] == ["DA", "WT", "IR, LI", "IR, DI", "IR, normalised LI"]
    assert page.findings[1].text.startswith("R4: sigma max of IR, LI is 0.25 times augmentation's")
    assert all(row[-1] == "0.5" for row in page.tables[0].rows)
    (table,) = DecayPart().page(decays((1, 1, 1), trivial=True, ratio=math.nan)).tables
    assert all(row[-1] == "trivial" for row in table.rows)


def test_decay_says_when_the_regulariser_missed_its_target() -> None:
    for similarity, missed in ((0.95, False), (0.9499, True)):
        tied, *forms = DecayPart().page(decays((1, 1, 1), similarity)).findings
        assert all(("under the target of 0.95" in finding.text) == missed for finding in forms)
        assert "under the target" not in tied.text
        assert all(finding.claims == (True,) for finding in forms)


def test_a_rising_singular_value_or_an_inexact_flow_is_a_false_claim() -> None:
    images = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = gradient_flow(images, group_from_name("C4"))
    numbers = {key: getattr(found, key).tolist() for key in ("times", "sigma", "exact_sigma", "loss", "error")}
    flow = {"group": "R4", "images": 20, "kept": found.kept, **numbers}
    rising = {"sigma": [*flow["sigma"][:-1], flow["sigma"][-2] + 1e-9]}
    inexact = {"error": [*flow["error"][:-1], 2e-5]}
    shown("flow", [flow], "TT")
    assert "RISES" in shown("flow", [{**flow, **rising}], "FT").findings[0].text
    shown("flow", [{**flow, **inexact}], "TF")
    shown("flow", [{**flow, **rising, **inexact}], "FF")


def test_the_flow_is_of_the_groups_of_the_plan_and_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By jobs that are sent to other processes."""
    monkeypatch.setattr("baselines.study.parts.gradient_flow.SAMPLES", 5)
    told: list[int] = []
    jobs = [StandaloneJob("flow", job) for job in FlowPart().jobs(plan("--groups", "C4", "D4"), tmp_path)]
    results = FlowPart().results([job.carry_out(told.append) for job in pickle.loads(pickle.dumps(jobs))])
    assert [(result["group"], result["images"]) for result in results] == [("R4", 5), ("D4", 5)]
    assert told == [job.steps for job in jobs] == [1, 1]
    assert FlowPart().page(results).verdict == "holds"


def test_stability_is_a_bound_by_the_size_of_the_deformation() -> None:
    (finding, *_) = DeformPart().page(deformed(0.05, 0.1, 0.2)).findings
    assert "move by 0.5 to 0.5 times the largest gradient" in finding.text


def test_shift_keeps_its_runs_and_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shifts(monkeypatch)
    jobs, told = ShiftPart().jobs(plan("--epochs", "1"), tmp_path), []
    results = ShiftPart().results([job.carry_out(told.append) for job in jobs])
    assert told == [job.steps for job in jobs] == [1] * 6
    assert not any("seconds" in key for run in results for key in run)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert ShiftPart().results([job.finished() for job in jobs]) == results
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    page = ShiftPart().page(results)
    names = ("toy", "accuracy", "probability", "segmentation")
    assert [picture.name for picture in page.pictures] == [f"shift-{name}" for name in names]
    shift_runs.data_of.cache_clear()
