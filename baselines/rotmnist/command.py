r"""Rotated MNIST: plain, group-equivariant and harmonic networks of equal size, beside published errors."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baselines.common.files import writable_folder, write_json, write_text
from baselines.common.terminal import console_of_output, positive, this_machine
from baselines.common.workers import pool
from baselines.rotmnist.curves import invariance_curves, save_figure
from baselines.rotmnist.models import MODELS
from baselines.rotmnist.runs import EPOCHS, Result, RotMnistJob, Run, finished

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
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST's idx files; else EQUILAYERS_DATA")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs of each network (default: 1)")
    parser.add_argument("--epochs", type=positive, default=EPOCHS, help=f"passes over the data (default: {EPOCHS})")
    parser.add_argument("--validate", action="store_true", help="train on 10,000 and test on the 2,000 held out")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="trainings side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/rotmnist"), help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="keep what is finished in --out, go on with the rest")


def main(args: argparse.Namespace) -> None:
    r"""Train and test the networks; leave rotmnist.json, rotmnist.md and rotmnist.png in the folder."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("rotmnist: expected matplotlib to be installed, got none. pip install 'equilayers[study]'.")
    console = console_of_output()
    out = writable_folder(args.out, "rotmnist")
    runs = [
        Run(name, seed, args.epochs, args.validate, args.data_dir) for seed in range(args.seeds) for name in args.models
    ]
    results = train_all(runs, out / "runs", args.workers, args.resume, console)
    write_text(out / "rotmnist.md", "\n".join(markdown(results)) + "\n")
    console.print(table(results))
    found = invariance_curves(runs, out / "runs")
    for name in dict.fromkeys(run.model for run in runs if run.model not in found):
        console.print(f"no curve of {name}: its weights are not in {out / 'runs'} any more")
    curves = {name: {part: getattr(curve, part).tolist() for part in curve._fields} for name, curve in found.items()}
    write_json(out / "rotmnist.json", {"machine": this_machine(), "runs": results, "invariance": curves})
    save_figure(found, out / "rotmnist.png")
    console.print(f"rotmnist.json, rotmnist.md and rotmnist.png are in {out}")


def train_all(runs: list[Run], out: Path, workers: int, resume: bool, console: Console) -> list[Result]:
    r"""The results of the runs, in their order, each on a core of its own; epochs done before a kill are kept."""
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        for run in runs:
            for ending in ("json", "pt"):
                (out / f"{run.name}.{ending}").unlink(missing_ok=True)
    known = {run: result for run in runs if (result := finished(run, out)) is not None}
    jobs = [RotMnistJob(run, out) for run in runs if run not in known]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with pool(workers) as processes, Progress(*columns, console=console, transient=True) as progress:
        bars = {job: progress.add_task(f"{job.run.name}; epochs", total=job.steps) for job in jobs}

        def show(step: int, job: RotMnistJob) -> None:
            progress.update(bars[job], completed=step)

        for job, result in processes.results(jobs, show):
            progress.update(bars[job], completed=job.steps)
            known[job.run] = result
    return [known[run] for run in runs]


HEAD = ("network", "numbers learned", "test error %", "published error %", "minutes on one core")


def rows(results: list[Result]) -> Iterator[tuple[str, ...]]:
    r"""One for each network: means over seeds, and the deviation where there are several."""
    for name in dict.fromkeys(result["model"] for result in results):
        found = [result for result in results if result["model"] == name]
        errors = [result["test_error"] for result in found]
        spread = f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""
        minutes = mean(result["training_seconds"] for result in found) / 60
        learned = f"{found[0]['parameters']:,}"
        yield name, learned, f"{mean(errors):.2f}{spread}", PUBLISHED[name], f"{minutes:.0f}"


def table(results: list[Result]) -> Table:
    r"""On the terminal."""
    made = Table(box=box.SIMPLE_HEAD)
    for name in HEAD:
        made.add_column(name)
    for row in rows(results):
        made.add_row(*row)
    return made


def markdown(results: list[Result]) -> Iterator[str]:
    r"""As Markdown."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    yield from (f"| {' | '.join(row)} |" for row in rows(results))
