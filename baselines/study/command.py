r"""The study: weight tying (WT) against data augmentation (DA) and invariance regularisation (IR), part by part."""

import argparse
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import get_num_threads

from baselines.common.data import download_files, load_dataset
from baselines.common.distributed import processes
from baselines.common.files import read_json, writable_folder, write_json, write_text
from baselines.common.runner import Executor, SerialExecutor, pool
from baselines.common.tables import rich_table
from baselines.common.terminal import add_training_arguments, console_of_output, positive, require, this_machine
from baselines.study.config import ARMS, FORMS, Plan, plan_of
from baselines.study.explain import BASELINES, TARGETS
from baselines.study.models import METHODS, MODELS, UPRIGHT, WIDTHS
from baselines.study.parts import EXTRA, PARTS
from baselines.study.runner import StudyRunner
from baselines.study.search import FIRST
from baselines.study.starts import INITS
from baselines.study.tables import head_and_rows, markdown, sizes
from baselines.study.training import CENTRED, ELEMENTS, SCHEDULES, SELECTED
from equilayers.groups import group_from_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines study`."""

    def several(option: str, choices: Sequence[str] | None, default: Sequence[str] | None, help_: str) -> None:
        name = option.split("-")[2].removesuffix("s").upper()
        parser.add_argument(option, nargs="+", choices=choices, default=default, metavar=name, help=help_)

    several(
        "--parts", (*PARTS, "all"), ["table"], f"of {' '.join(PARTS)}, or all but {' '.join(EXTRA)} (default: table)"
    )
    parser.add_argument("--model", choices=MODELS, default="mlp", help="network (default: mlp, the paper's)")
    shared = "what the plain cnn has in common with the tied one (default: %(default)s)"
    parser.add_argument("--width", choices=WIDTHS, default=WIDTHS[0], help=shared)
    several("--groups", None, None, "such as C4, T3 or D4 (default: C4 T3; cnn C4 D4)")
    methods = f"of WT DA IR (all by default) and {UPRIGHT}, trained without augmentation"
    several("--methods", (*METHODS, UPRIGHT), list(METHODS), methods)
    weight = "weight of IR%s: one, one for each group, or auto to tune it"
    several("--nu", None, None, weight % "")
    several("--nu-distribution", None, None, weight % " by DI")
    several("--nu-normalized-logit", None, None, weight % " by normalised LI")
    several(f"--nu-{CENTRED}", None, None, weight % " by normalised LI of centred logits")
    first = "weights that auto begins with, such as two that may straddle the target (default: 10, then tenfold steps)"
    parser.add_argument("--first-nu", nargs="+", default=[str(nu) for nu in FIRST], metavar="NU", help=first)
    parser.add_argument("--form", choices=(*FORMS, CENTRED), default=FORMS[0], help="of IR (default: %(default)s)")
    forms = f"of IR that decay compares, of {' '.join(FORMS)} (default: these) and {CENTRED}"
    several("--forms", (*FORMS, CENTRED), list(FORMS), forms)
    _add_choices(parser)
    curve = f"weights of an arm of mitigation, of {' '.join(ARMS)}, as ARM=NU,NU or ARM:GROUP=NU (default: all arms)"
    parser.add_argument("--curve", nargs="+", metavar="ARM=NU", help=curve)
    parser.add_argument("--seeds", type=positive, metavar="N", help="runs of each kind (default: digits 2, else 4)")
    parser.add_argument("--workers", type=positive, default=None, help="processes, one core each (default: all)")
    parser.add_argument("--download", action="store_true", help="fetch the data set, checksums checked")
    add_training_arguments(parser, "study")


def _add_choices(parser: argparse.ArgumentParser) -> None:
    r"""Options for what the paper does not say; their defaults are the study's protocol."""
    for option, choices, help_ in (
        ("--regulariser-elements", ELEMENTS, "elements that IR compares a sample with: one at random, or whole orbits"),
        ("--init", INITS, "start of the weights; symmetric: the first layer of DA and IR is tied at the start"),
        ("--select", SELECTED, "epoch that is kept, by validation accuracy or the last"),
        ("--padding", ("before", "after"), "images are padded before or after they are standardised"),
        ("--saliency-baseline", BASELINES, "image that integrated gradients begin at: mean grey or black"),
        ("--saliency-target", TARGETS, "what integrated gradients explain"),
    ):
        parser.add_argument(option, choices=choices, default=choices[0], help=f"{help_} (default: %(default)s)")
    parser.add_argument("--lr-schedule", choices=SCHEDULES[:2], help="of the learning rate (default: the protocol's)")


def main(args: argparse.Namespace) -> None:
    r"""Carry out the parts asked for; leave results.json, times.json, table.md and the figures in the folder."""
    console = console_of_output()
    started, cores = time.perf_counter(), get_num_threads()
    out = writable_folder(args.out)
    data_dir = str(download_files(args.data, args.data_dir)) if args.download else args.data_dir
    plan = _checked(plan_of(args, data_dir))
    earlier, earlier_times = (_stored(out / name) if args.resume else {} for name in ("results.json", "times.json"))
    with contextlib.ExitStack() as stack:
        rank, count = stack.enter_context(processes())
        _check_together(plan, count)
        workers = min(args.workers or cores, 64)
        executor: Executor = SerialExecutor() if count > 1 else stack.enter_context(pool(workers))
        console.quiet = rank > 0  # the first process speaks for all
        runner = StudyRunner(console, out, executor, resume=args.resume)
        plan = runner.tune(plan)
        results, seconds = runner.results(plan)
        if rank > 0:
            return
    times = {
        "machine": {**this_machine(), "cores": cores, "workers": count if count > 1 else workers},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "training_seconds": earlier_times.get("training_seconds", {}) | seconds,
    }
    report: dict[str, Any] = {"configuration": plan.configuration(), "parts": results}
    write_json(out / "times.json", times)
    write_json(out / "results.json", _with_earlier(report, earlier))
    if "table" in results:
        write_text(out / "table.md", markdown(results["table"], times))
        console.print(rich_table(*head_and_rows(results["table"], seconds, paper=False)))
        console.print(sizes(results["table"]))
    for name, entries in results.items():
        for finding in PARTS[name].page(entries).findings:
            console.print(finding.text, markup=False)
    hint = f"python -m baselines report {out} makes a page of them"
    line = f"{', '.join(results)} in {times['wall_seconds']:.0f} s; results.json is in {out}; {hint}"
    console.print(line, markup=False)


def _stored(path: Path) -> dict[str, Any]:
    r"""A JSON file of an earlier invocation; empty where there is none."""
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _with_earlier(report: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    r"""The report with those parts of an earlier one that it lacks, and the configuration that each of them had."""
    kept = {name: entries for name, entries in earlier.get("parts", {}).items() if name not in report["parts"]}
    if not kept:
        return report
    configurations = {**dict.fromkeys(kept, earlier["configuration"]), **earlier.get("earlier", {})}
    parts = {name: (kept | report["parts"])[name] for name in PARTS if name in kept or name in report["parts"]}
    return {**report, "parts": parts, "earlier": {name: configurations[name] for name in kept}}


def _checked(plan: Plan) -> Plan:
    r"""The plan, all its parts named; a fault of the data, or of a group, shows here and not in a worker."""
    require("study", "captum", "matplotlib")
    source = plan.source
    in_shape = tuple(load_dataset(source.data, data_dir=source.data_dir).train.x.shape[1:])
    for name in plan.groups:
        group_from_name(name).check_space(in_shape, f"study --groups {name}")
    every = [name for name in PARTS if name not in EXTRA]  # those of the paper and the lecture
    parts = tuple(name for name in PARTS if name in plan.parts or ("all" in plan.parts and name in every))
    return replace(plan, parts=parts)


def _check_together(plan: Plan, count: int) -> None:
    r"""Whether the networks of the plan can be trained by several processes together."""
    if count > 1 and (plan.model != "mlp" or "deform" in plan.parts):
        got = f"--model {plan.model} and --parts {' '.join(plan.parts)}"
        hint = "Batch norm takes the statistics of whole batches: leave torchrun out, --workers trains side by side."
        raise ValueError(f"study: expected --model mlp, and no part deform, under torchrun, got {got}. {hint}")
