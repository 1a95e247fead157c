r"""The command `equilayers profile`: what each module of a model costs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any

import torch
from torch import nn

from equilayers.cli._arguments import device_of, file_of, group_of, number, shapes_of, whole
from equilayers.cli._load import load_model
from equilayers.cli._words import bad, clean, printable, said
from equilayers.profiling import Profile, profile

LEAST = 1e-9  # seconds, for "--seconds 0": as few runs as there may be


def run_profile(args: argparse.Namespace) -> int:
    r"""Profile what the arguments name, and say what was found."""
    html, json, device = file_of("--html", args.html), file_of("--json", args.json), device_of(args.device)
    shapes, batch = shapes_of(args.input), whole("--batch", args.batch, 1)
    seconds = number("--seconds", args.seconds, "2") or LEAST
    threads = torch.get_num_threads()
    try:
        if args.threads is not None:
            torch.set_num_threads(_threads(args.threads))
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            torch.manual_seed(whole("--seed", args.seed, 0))
            x = {name: torch.randn(batch, *shape).to(device) for name, shape in shapes.items()}
            inputs: Any = x if not (set(x) <= {"x"} or "0" in x) else list(x.values())
            model, twin = (None if m is None else _ready(m, args, device) for m in _models(args, inputs))
            found = _profiled(model, twin, inputs, args, seconds)
    finally:
        torch.set_num_threads(threads)
    with contextlib.suppress(BrokenPipeError):  # whoever reads has read enough
        print("\n".join(printable(line) for line in str(found).splitlines()), flush=True)
    if html is not None:
        found.to_html(html)
    if json is not None:
        found.to_json(json)
    return 0


def _threads(text: str) -> int:
    most = os.cpu_count() or 1
    if whole("--threads", text, 1) > most:
        bad(f"--threads to be at most the {most} processors here", repr(text), f"Pass {most}, for example.")
    return int(text)


def _models(args: argparse.Namespace, inputs: Any) -> tuple[nn.Module, nn.Module | None]:
    model = load_model(args.target)
    if args.against is not None:
        return model, load_model(args.against)
    if args.group is None:
        return model, None
    group = group_of(args.group)
    if isinstance(inputs, dict) or len(inputs) != 1:
        bad("one input with --group", ", ".join(args.input), "Convert the model in Python, and pass --against.")
    try:
        from equilayers.convert import to_equivariant

        converted, report = to_equivariant(model, group, inputs[0].cpu()[:2])
    except (Exception, SystemExit) as error:
        bad(f"a model that converts to {args.group}", said(error), "Convert it in Python, and pass --against.")
    if not report.complete:
        print(f"Not all of the model was converted to {args.group}: equilayers.convert says what and why.")
    return converted, model


def _ready(model: nn.Module, args: argparse.Namespace, device: torch.device) -> Any:
    model = model.to(device)
    if args.eval:
        model.eval()
    return torch.compile(model) if args.compile else model


def _profiled(model: Any, twin: Any, inputs: Any, args: argparse.Namespace, seconds: float) -> Profile:
    last = ""

    def tell(words: str) -> None:
        nonlocal last
        if sys.stderr.isatty():
            print(f"\r\x1b[K{clean(words)}", end="", file=sys.stderr, flush=True)
        elif words.partition(":")[0] != last.partition(":")[0]:
            print(clean(words.partition(":")[0]), file=sys.stderr)
        last = words

    try:
        return profile(model, inputs, compare_with=twin, backward=not args.forward_only, seconds=seconds, progress=tell)
    except (Exception, SystemExit) as error:
        bad("the model to run on these inputs", said(error), "Change --input, or add --traceback, to see where.")
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
