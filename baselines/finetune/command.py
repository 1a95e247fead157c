r"""A pretrained plain ViT made equivariant by its weights: at once, by degrees, or from scratch, trained on equally."""

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean

from baselines.common.figures import save
from baselines.common.files import writable_folder, write_json, write_text
from baselines.common.runner import Result, all_results, pool
from baselines.common.tables import markdown_table, mean_cell, rich_table
from baselines.common.terminal import add_training_arguments, console_of_output, positive, require, this_machine
from baselines.finetune.curves import drawing
from baselines.finetune.runs import METHODS, PRETRAINED, PROTOCOLS, FinetuneJob, Run, images_of

GROUPS = ("D1", "C2", "C4", "D4")
SOFTNESS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.0)
HEAD = (
    "network",
    "softness",
    "steps",
    "parameters",
    "accuracy, moved %",
    "upright %",
    "LI, normalised",
    "same class %",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines finetune`."""
    parser.add_argument("--data", choices=list(PROTOCOLS), default="fashion-mnist", help="default: fashion-mnist")
    parser.add_argument("--group", choices=GROUPS, default="D4", help="default: D4")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs of each network (default: 1)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="trainings side by side")
    add_training_arguments(parser, "finetune", epochs=None, data=False)


def main(args: argparse.Namespace) -> None:
    r"""Train and test the networks; leave finetune.json, finetune.md and finetune.png in the folder."""
    require("finetune", "matplotlib")
    console = console_of_output()
    out = writable_folder(args.out, "finetune")
    folder = out / "runs"
    images_of(args.data, args.data_dir)  # its faults show here
    if not args.resume:
        for path in itertools.chain(folder.glob("*.json"), folder.glob("*.pt")):
            path.unlink()
    plain = [Run(args.data, args.data_dir, args.group, PRETRAINED, seed) for seed in range(args.seeds)]
    made = [replace(run, method=method, softness=s) for run, (method, s) in itertools.product(plain, variants())]
    with pool(args.workers) as processes:
        results = []
        for runs, title in ((plain, "pretraining, steps"), (made, "training on, steps")):
            jobs = [FinetuneJob(run, folder) for run in runs]
            results += all_results(jobs, processes, console, title, resume=True)
    lines = list(rows(results))
    console.print(rich_table(HEAD, lines))
    write_text(out / "finetune.md", markdown_table(HEAD, lines) + "\n")
    write_json(out / "finetune.json", {"machine": this_machine(), "results": results})
    save(drawing(results), out / "finetune.png")
    console.print(f"finetune.json, finetune.md and finetune.png are in {out}")


def variants() -> Iterator[tuple[str, float]]:
    r"""What is made of a plain network: method and softness."""
    for method in METHODS:
        if method in ("softened", "projected"):
            yield from ((method, softness) for softness in SOFTNESS)
        elif method != PRETRAINED:
            yield method, 1.0 if method == "annealed" else 0.0


def rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    r"""One for each network: means over seeds, and the deviation where there are several."""
    for method, softness in dict.fromkeys((result["method"], result["softness"]) for result in results):
        found = [result for result in results if (result["method"], result["softness"]) == (method, softness)]
        protocol = found[0]["protocol"]
        steps = {PRETRAINED: protocol["pretrain"], "projected": 0}.get(method, protocol["steps"])
        soft = {"softened": f"{softness:g}", "projected": f"{softness:g}", "annealed": "1 to 0"}
        yield (
            method,
            soft.get(method, ""),
            str(steps),
            f"{mean(result['parameters'] for result in found):,.0f}",
            mean_cell([result["accuracy"] for result in found], ".1f", 100),
            mean_cell([result["upright_accuracy"] for result in found], ".1f", 100),
            mean_cell([result["LI_normalized"] for result in found], ".2g", 1),
            mean_cell([result["consistency"] for result in found], ".1f", 100),
        )
