r"""Vision transformers on turned and mirrored images: plain, augmented, C4 and D4, at equal steps and equal time."""

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean

from baselines.common.data import DATASETS
from baselines.common.figures import save
from baselines.common.files import writable_folder, write_json, write_text
from baselines.common.runner import Result, all_results, pool
from baselines.common.tables import markdown_table, mean_cell, rich_table
from baselines.common.terminal import add_training_arguments, console_of_output, positive, require, this_machine
from baselines.vit.curves import drawing
from baselines.vit.runs import METHODS, PROTOCOLS, Run, ViTJob, images_of

TITLES = {"plain": "plain", "augmented": "plain, augmented", "C4": "C4", "D4": "D4"}
COMPARISONS = ("steps", "time")
HEAD = ("data", "equal", "network", "parameters", "steps", "minutes", "accuracy %", "LI", "consistency %")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines vit`."""
    large = ["mnist", "fashion-mnist"]
    sets = "data sets (default: both large ones; digits, which are built in, take half a minute with a small network)"
    parser.add_argument("--data", nargs="+", choices=DATASETS, default=large, help=sets)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    equal = "what is equal: steps, or time as well, for which tied networks are trained once more (default: both)"
    parser.add_argument("--equal", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help=equal)
    steps = f"of each training; time is proportional to it (default: {PROTOCOLS['mnist'].steps}, which take an hour"
    parser.add_argument("--steps", type=positive, metavar="N", help=f"{steps} on two cores)")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs of each network (default: 1)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="trainings side by side")
    add_training_arguments(parser, "vit", epochs=None, data=False)


def main(args: argparse.Namespace) -> None:
    r"""Train and test the networks; leave vit.json, vit.md and vit.png in the folder."""
    require("vit", "matplotlib")
    console = console_of_output()
    out = writable_folder(args.out, "vit")
    folder = out / "runs"
    if "time" in args.equal and not any(METHODS[method] is None for method in args.methods):
        got = f"{args.methods}. Add plain, or take --equal steps."
        raise ValueError(f"vit: expected --methods with a plain network, whose time is the measure, got {got}")
    runs = [
        Run(data, args.data_dir, method, seed, args.steps or PROTOCOLS[data].steps)
        for data, seed, method in itertools.product(args.data, range(args.seeds), args.methods)
    ]
    for data in args.data:
        images_of(data, args.data_dir)  # its faults show here
    if not args.resume:
        for path in itertools.chain(folder.glob("*.json"), folder.glob("*.pt")):
            path.unlink()

    with pool(args.workers) as processes:

        def results_of(runs: list[Run], title: str) -> list[Result]:
            jobs = [ViTJob(run, folder) for run in runs]
            return all_results(jobs, processes, console, f"{title}, steps", resume=True)

        found = {"steps": results_of(runs, "equal steps")}
        if "time" in args.equal:
            found["time"] = results_of(of_equal_time(runs, found["steps"]), "equal time")

    found = {name: results for name, results in found.items() if name in args.equal}
    lines = list(itertools.chain.from_iterable(rows(name, results) for name, results in found.items()))
    console.print(rich_table(HEAD, lines))
    write_text(out / "vit.md", markdown_table(HEAD, lines) + "\n")
    write_json(out / "vit.json", {"machine": this_machine(), **found})
    save(drawing(found), out / "vit.png")
    console.print(f"vit.json, vit.md and vit.png are in {out}")


def of_equal_time(runs: Sequence[Run], results: Sequence[Result]) -> list[Run]:
    r"""The runs with as many steps as take the seconds of the plain network's, by what their own steps took.

    The plain network with augmentation keeps its steps: it is the same network.
    """
    found = []
    seconds = {run: result["training_seconds"] for run, result in zip(runs, results, strict=True)}
    for run in runs:
        plain = [
            s for r, s in seconds.items() if METHODS[r.method] is None and (r.data, r.seed) == (run.data, run.seed)
        ]
        tied = METHODS[run.method] is not None
        steps = max(1, round(run.steps * mean(plain) / seconds[run])) if tied else run.steps
        found.append(replace(run, steps=steps))
    return found


def rows(equal: str, results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    r"""One for each data set and method: means over seeds, and the deviation where there are several."""
    for data, method in dict.fromkeys((result["data"], result["method"]) for result in results):
        found = [result for result in results if (result["data"], result["method"]) == (data, method)]

        def cell(key: str, form: str, factor: float = 1, found: list[Result] = found) -> str:
            return mean_cell([result[key] for result in found], form, factor)

        yield (
            data,
            equal,
            TITLES[method],
            f"{found[0]['parameters']:,}",
            f"{mean(result['steps'] for result in found):.0f}",
            cell("training_seconds", ".1f", 1 / 60),
            cell("accuracy", ".2f", 100),
            cell("LI", ".2g"),
            cell("consistency", ".1f", 100),
        )
