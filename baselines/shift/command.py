r"""Shift invariance shown: max, blur and polyphase pooling on a toy signal, in a detector and in a segmentor."""

import argparse
import itertools
import time
from dataclasses import asdict
from typing import Any

from baselines.common.data import load_dataset
from baselines.common.figures import save
from baselines.common.files import writable_folder, write_json, write_text
from baselines.common.runner import SerialExecutor, all_results
from baselines.common.tables import rich_table
from baselines.common.terminal import add_training_arguments, console_of_output, positive, require, this_machine
from baselines.shift.models import KINDS, TASKS
from baselines.shift.runs import PROTOCOLS, Run, ShiftJob
from baselines.shift.tables import markdown, tables, verdict
from baselines.shift.toy_signal import toy_rows, toy_table

FIGURES = ("toy.png", "accuracy.png", "probability.png", "segmentation.png")
SAMPLES = 1000  # scenes of the consistency, or as many as there are


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines shift`."""
    add_training_arguments(parser, "shift")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs of each kind (default: 1)")
    scenes = f"test scenes under two random shifts each (default: {SAMPLES}, or all of fewer)"
    parser.add_argument("--consistency-samples", type=positive, metavar="N", help=scenes)


def main(args: argparse.Namespace) -> None:
    r"""Show the toy signal, train and shift the networks; leave shift.json, shift.md and the figures in the folder."""
    console = console_of_output()
    started = time.perf_counter()
    runs = runs_of(args.data, args.data_dir, args.epochs, args.seeds, args.consistency_samples)
    require("shift", "matplotlib")
    out = writable_folder(args.out, "shift")
    load_dataset(args.data, data_dir=args.data_dir, splits=PROTOCOLS[args.data].splits)  # its faults show here
    console.print(toy_table())
    jobs = [ShiftJob(run, out / "runs") for run in runs]
    results = all_results(jobs, SerialExecutor(), console, "training, epochs", resume=args.resume)
    summary: dict[str, Any] = {
        "machine": this_machine(),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "toy": [asdict(row) for row in toy_rows()],
        "runs": results,
    }
    from baselines.shift.figures import drawings

    for name, drawn in drawings(results).items():
        save(drawn, out / f"{name}.png")
    write_text(out / "shift.md", markdown(summary))
    write_json(out / "shift.json", summary)
    for table in tables(results):
        console.print(rich_table(*table))
    for line in verdict(results):
        console.print(line)
    files = f"shift.json, shift.md and {', '.join(FIGURES)}"
    console.print(f"{len(results)} runs in {summary['wall_seconds']:.0f} s; {files} are in {out}")


def runs_of(
    data: str, data_dir: str | None, epochs: int | None, seeds: int, consistency_samples: int | None
) -> list[Run]:
    r"""The runs on a data set; what is None is the protocol's. ValueError for more scenes than there are."""
    protocol = PROTOCOLS[data]
    there = protocol.splits[1]
    samples = consistency_samples or min(SAMPLES, there)
    if samples > there:
        most = f"at most the {there} test scenes of {data}"
        raise ValueError(f"shift: expected --consistency-samples to be {most}, got {samples}. Ask for fewer.")
    each = {"detector": epochs or protocol.detector_epochs, "segmentor": epochs or protocol.segmentor_epochs}
    kinds = itertools.product(range(seeds), TASKS, KINDS)
    return [Run(data, data_dir, task, kind, seed, each[task], samples) for seed, task, kind in kinds]
