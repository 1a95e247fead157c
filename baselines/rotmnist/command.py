r"""Rotated MNIST: plain, group-equivariant and harmonic networks of equal size, beside published errors."""

import argparse
import itertools
import os
from collections.abc import Iterator
from statistics import mean

from baselines.common.figures import save
from baselines.common.files import writable_folder, write_json, write_text
from baselines.common.runner import Result, all_results, pool
from baselines.common.tables import markdown_table, mean_cell, rich_table
from baselines.common.terminal import add_training_arguments, console_of_output, positive, require, this_machine
from baselines.rotmnist.curves import drawing, invariance_curves
from baselines.rotmnist.models import MODELS
from baselines.rotmnist.runs import EPOCHS, RotMnistJob, Run

# Test errors in percent, with about as many parameters but for the last.
PUBLISHED = {
    "Z2CNN": "5.03 (Cohen and Welling 2016), 4.81 (Romero et al. 2020)",
    "P4CNN": "2.28 (Cohen and Welling 2016), 2.14 (Romero et al. 2020)",
    "P4MCNN": "",
    "C8": "",
    "C16": "0.68 (Weiler and Cesa 2019: larger, with augmentation)",
    "H-Net": "1.69 (Worrall et al. 2017)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines rotmnist`."""
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs of each network (default: 1)")
    parser.add_argument("--validate", action="store_true", help="train on 10,000 and test on the 2,000 held out")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="trainings side by side")
    add_training_arguments(parser, "rotmnist", epochs=str(EPOCHS), data=False)


def main(args: argparse.Namespace) -> None:
    r"""Train and test the networks; leave rotmnist.json, rotmnist.md and rotmnist.png in the folder."""
    require("rotmnist", "matplotlib")
    console = console_of_output()
    out = writable_folder(args.out, "rotmnist")
    epochs, kinds = args.epochs or EPOCHS, itertools.product(range(args.seeds), args.models)
    runs = [Run(name, seed, epochs, args.validate, args.data_dir) for seed, name in kinds]
    jobs = [RotMnistJob(run, out / "runs") for run in runs]
    if not args.resume:
        for job in jobs:
            job.discard()
    with pool(args.workers) as processes:
        results = all_results(jobs, processes, console, "trainings, epochs", resume=args.resume)
    write_text(out / "rotmnist.md", markdown_table(HEAD, rows(results)) + "\n")
    console.print(rich_table(HEAD, rows(results)))
    found = invariance_curves(runs, out / "runs")
    for name in dict.fromkeys(run.model for run in runs if run.model not in found):
        console.print(f"no curve of {name}: its weights are not in {out / 'runs'} any more")
    curves = {name: {part: getattr(curve, part).tolist() for part in curve._fields} for name, curve in found.items()}
    write_json(out / "rotmnist.json", {"machine": this_machine(), "runs": results, "invariance": curves})
    save(drawing(found), out / "rotmnist.png")
    console.print(f"rotmnist.json, rotmnist.md and rotmnist.png are in {out}")


HEAD = ("network", "parameters", "test error %", "published error %", "minutes on one core")


def rows(results: list[Result]) -> Iterator[tuple[str, ...]]:
    r"""One for each network: means over seeds, and the deviation where there are several."""
    for name in dict.fromkeys(result["model"] for result in results):
        found = [result for result in results if result["model"] == name]
        errors = [result["test_error"] for result in found]
        minutes = mean(result["training_seconds"] for result in found) / 60
        learned = f"{found[0]['parameters']:,}"
        yield name, learned, mean_cell(errors, ".2f"), PUBLISHED[name], f"{minutes:.0f}"
