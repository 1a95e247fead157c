r"""Results as tables: for the terminal, and as Markdown beside the paper's figures."""

import re
from statistics import fmean

from baselines.common import tables
from baselines.common.runner import Result

COLUMNS = {"accuracy": "accuracy %", "LI": "LI", "DI": "DI", "SI": "SI", "consistency": "same class %"}

# Moskalev et al. 2023, Table 1: accuracy, LI, DI, SI.
PAPER = {
    ("R4", "WT"): ("94.6 ± 0.1", "0", "0", "1.00"),
    ("R4", "DA"): ("94.0 ± 0.5", "98.6", "0.3", "0.17"),
    ("R4", "IR"): ("87.9 ± 0.8", "0.02", "0.0", "0.95"),
    ("T3", "WT"): ("96.6 ± 0.1", "0", "0", "1.00"),
    ("T3", "DA"): ("96.2 ± 0.2", "50.8", "0.1", "0.57"),
    ("T3", "IR"): ("93.1 ± 0.1", "0.01", "0.0", "0.95"),
}

# Of LI and DI, what passes for invariance: sums over tokens have no bitwise algorithm, others do.
ROUNDING = {"mlp": 0.0, "cnn": 0.0, "vit": 1e-9}
PAPER_COLUMNS = ("paper: accuracy %", "LI", "DI", "SI")


def paper_label(name: str) -> str:
    r"""The paper's label of a group: R4 for "C4", other names as they are."""
    return re.sub(r"^C(?=\d+$)", "R", name)


def group_name(label: str) -> str:
    r"""The name of a group that the paper labels so: "C4" for R4, other names as they are."""
    return re.sub(r"^R(?=\d+$)", "C", label)


def grouped(results: list[Result]) -> dict[tuple[str, str], list[Result]]:
    r"""The runs of each group and method, over seeds."""
    rows: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        rows.setdefault((result["group"], result["method"]), []).append(result)
    return rows


def cell(key: str, values: list[float]) -> str:
    r"""The mean of the values and their deviation, in the digits of this column."""
    if key in ("LI", "DI") and all(value == 0 for value in values):
        return "0"  # exactly: no rounding
    percent = key in ("accuracy", "consistency")
    return tables.mean_cell(values, ".1f" if percent else ".3f" if key == "SI" else ".3g", 100 if percent else 1)


def nu(runs: list[Result]) -> str:
    r"""The weight of the regulariser, empty without one."""
    weight = runs[0]["recipe"]["nu"]
    return f"{weight:g}" if weight else ""


def head_and_rows(
    results: list[Result], seconds: dict[str, float] | None = None, *, paper: bool = True
) -> tuple[list[str], list[list[str]]]:
    r"""The table, with seconds of training by the runs' names, and with the paper's figures where it has them."""
    paper = paper and (results[0]["model"], results[0]["source"]["data"]) == ("mlp", "mnist")
    head = ["group", "method", "ν", *COLUMNS.values()]
    head += [*(["training s"] if seconds else []), *(PAPER_COLUMNS if paper else [])]
    rows = []
    for key, runs in grouped(results).items():
        mean_seconds = [f"{fmean(seconds[run['name']] for run in runs):.0f}"] if seconds else []
        published = PAPER.get(key, ("",) * len(PAPER_COLUMNS)) if paper else ()
        cells = (cell(name, [run[name] for run in runs]) for name in COLUMNS)
        rows.append([*key, nu(runs), *cells, *mean_seconds, *published])
    return head, rows


def verdict(results: list[Result]) -> list[str]:
    r"""What the numbers say, in words computed from them."""
    lines = []
    for (group, method), runs in grouped(results).items():
        flips = 100 * (1 - fmean(run["consistency"] for run in runs))
        what = f"not invariant: {flips:.1f} % of moved images change class"
        if all(run["LI"] == 0 and run["DI"] == 0 for run in runs):
            what = "exactly invariant: logits equal to the last bit"
        elif all(max(run["LI"], run["DI"]) <= ROUNDING[run["model"]] for run in runs):
            what = "invariant up to rounding"
        what += f", saliency similarity {fmean(run['SI'] for run in runs):.3f}"
        if not runs[0]["recipe"]["augment"]:
            upright = 100 * fmean(run["upright_accuracy"] for run in runs)
            what += f"; {upright:.1f} % of upright images right, which is all that it was trained on"
        lines.append(f"{group} {method}: {what}")
    return lines


def sizes(results: list[Result]) -> str:
    r"""What was compared: the model, what its two forms have in common, and how many parameters each has."""
    counts: dict[str, dict[int, list[str]]] = {}
    for (group, method), runs in grouped(results).items():
        counts.setdefault(group, {}).setdefault(runs[0]["parameters"], []).append(method)
    lists = {group: [f"{n:,} ({' '.join(methods)})" for n, methods in each.items()] for group, each in counts.items()}
    words = "; ".join(f"{group} {', '.join(each)}" for group, each in lists.items())
    return f"Parameters of the {results[0]['model']}, {results[0]['width']}: {words}"


def markdown(results: list[Result], times: Result) -> str:
    r"""The table of a finished study, with the paper's figures where it has them, machine, versions and wall time."""
    machine = times["machine"]
    table = tables.markdown_table(*head_and_rows(results, times["training_seconds"]))
    how = (
        f"{protocol(results)} {sizes(results)}.\n"
        f"Wall time {times['wall_seconds']:.0f} s with {machine['workers']} worker processes on "
        f"{machine['cores']} cores ({machine['processor']}), Python {machine['python']}, torch {machine['torch']}."
    )
    return "\n".join([table, "", how, "", *(f"- {line}" for line in verdict(results)), ""])


def protocol(results: list[Result]) -> str:
    r"""How the networks were trained and measured, in a sentence or two; what they do not share is left out."""
    first = results[0]
    recipe, source = first["recipe"], first["source"]
    rates = {(run["recipe"]["schedule"], run["recipe"]["select"]) for run in results}
    rate = "" if recipe["schedule"] == "constant" else f" {recipe['schedule']}"
    last = ", last epoch" if recipe["select"] == "last" else ""
    how = f"{rate}{last}" if len(rates) == 1 else ", of several recipes"
    return (
        f"Data: {source['data']}; {recipe['epochs']} epochs, batch {recipe['batch_size']}, Adam {recipe['lr']:g}"
        f"{how}; {len({run['seed'] for run in results})} seed(s), mean ± "
        f"standard deviation. SI on {source['saliency_samples']} test images."
    )
