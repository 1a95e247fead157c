r"""The study: weight tying (WT) against data augmentation (DA) and invariance regularisation (IR), part by part."""

from __future__ import annotations

import argparse
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from baselines.common.data import DATASETS, download_files, load_dataset
from baselines.common.distributed import processes
from baselines.common.files import writable_folder, write_json, write_text
from baselines.common.runner import Executor, SerialExecutor, pool
from baselines.common.terminal import console_of_output, positive, require, this_machine
from baselines.study.config import Plan, plan_of
from baselines.study.models import METHODS, MODELS, UPRIGHT, WIDTHS
from baselines.study.parts import PARTS
from baselines.study.protocols import FORMS
from baselines.study.runner import StudyRunner
from baselines.study.tables import markdown, rich_table, sizes
from equilayers.groups import group_from_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines study`."""
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["table"],
        choices=(*PARTS, "all"),
        metavar="PART",
        help=f"of {' '.join(PARTS)}, or all (default: table)",
    )
    parser.add_argument("--model", choices=MODELS, default="mlp", help="network (default: mlp, the paper's)")
    parser.add_argument(
        "--width",
        choices=WIDTHS,
        default=WIDTHS[0],
        help="what the plain cnn has in common with the tied one (default: %(default)s)",
    )
    parser.add_argument("--data", choices=DATASETS, default="digits", help="data set (default: digits, built in)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the idx files; else EQUILAYERS_DATA")
    parser.add_argument("--download", action="store_true", help="fetch the data set, checksums checked")
    parser.add_argument(
        "--groups",
        nargs="+",
        metavar="GROUP",
        help="such as C4, T3 or D4; R4 is the paper's label of C4 (default: C4 T3; cnn C4 D4)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=(*METHODS, UPRIGHT),
        metavar="METHOD",
        help=f"of WT DA IR (all by default) and {UPRIGHT}, trained without augmentation",
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help="runs of each kind (default: digits 2, else 4)")
    parser.add_argument("--epochs", type=positive, help="passes over the training split (default: the protocol's)")
    weight = "weight of IR%s: one, one for each group, or auto to tune it"
    parser.add_argument("--nu", nargs="+", metavar="NU", help=weight % "")
    parser.add_argument("--nu-distribution", nargs="+", metavar="NU", help=weight % " by DI, for decay")
    parser.add_argument("--nu-normalized-logit", nargs="+", metavar="NU", help=weight % " by normalised LI, for decay")
    parser.add_argument(
        "--forms",
        nargs="+",
        default=list(FORMS),
        choices=FORMS,
        metavar="FORM",
        help=f"of the regulariser that decay compares, of {' '.join(FORMS)} (default: all)",
    )
    parser.add_argument("--workers", type=positive, default=None, help="processes, one core each (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="keep what is finished in --out")


def main(args: argparse.Namespace) -> None:
    r"""Carry out the parts asked for; leave results.json, times.json, table.md and the figures in the folder."""
    console = console_of_output()
    started = time.perf_counter()
    out = writable_folder(args.out)
    data_dir = str(download_files(args.data, args.data_dir)) if args.download else args.data_dir
    plan = _checked(plan_of(args, data_dir))
    with contextlib.ExitStack() as stack:
        rank, count = stack.enter_context(processes())
        _check_together(plan, count)
        workers = min(args.workers or _cores(), 64)
        executor: Executor = SerialExecutor() if count > 1 else stack.enter_context(pool(workers))
        runner = StudyRunner(console, out, executor, resume=args.resume, quiet=rank > 0)
        plan = runner.tune(plan)
        results, seconds = runner.results(plan)
        if rank > 0:
            return
    times = {
        "machine": {**this_machine(), "cores": _cores(), "workers": count if count > 1 else workers},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "training_seconds": seconds,
    }
    report: dict[str, Any] = {"configuration": plan.configuration(), "parts": results}
    write_json(out / "times.json", times)
    write_json(out / "results.json", report)
    if "table" in results:
        write_text(out / "table.md", markdown(results["table"], times))
        console.print(rich_table(results["table"], seconds))
        console.print(sizes(results["table"]))
    for name, entries in results.items():
        for finding in PARTS[name].page(entries).findings:
            console.print(finding.text, markup=False)
    hint = f"python -m baselines report {out} makes a page of them"
    line = f"{', '.join(results)} in {times['wall_seconds']:.0f} s; results.json is in {out}; {hint}"
    console.print(line, markup=False)


def _checked(plan: Plan) -> Plan:
    r"""The plan, all its parts named; a fault of the data, or of a group, shows here and not in a worker."""
    require("study", "captum", "matplotlib")
    source = plan.source
    in_shape = tuple(load_dataset(source.data, data_dir=source.data_dir).train.x.shape[1:])
    for name in plan.groups:
        group_from_name(name).check_space(in_shape, f"study --groups {name}")
    parts = tuple(name for name in PARTS if name in plan.parts or "all" in plan.parts)
    return replace(plan, parts=parts)


def _check_together(plan: Plan, count: int) -> None:
    r"""Whether the networks of the plan can be trained by several processes together."""
    if count > 1 and (plan.model == "cnn" or "deform" in plan.parts):
        got = f"--model {plan.model} and --parts {' '.join(plan.parts)}"
        hint = "Batch norm takes the statistics of whole batches: leave torchrun out, --workers trains side by side."
        raise ValueError(f"study: expected --model mlp, and no part deform, under torchrun, got {got}. {hint}")


def _cores() -> int:
    import torch

    return torch.get_num_threads()
