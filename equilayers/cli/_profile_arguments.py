r"""The command line of `equilayers profile`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """exit codes:
  0    the model was profiled
  2    bad input: one line on standard error says why
  130  interrupted

example:
  equilayers profile my.models:net --input 3,64,64 --batch 8 --against my.models:plain --html profile.html"""


def add_profile(commands: Any) -> None:
    r"""Add the command to a parser."""
    parser = commands.add_parser(
        "profile",
        help="what each module of a model costs",
        description="Time, memory and operations of each module of a model, forward and backward.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("target", metavar="TARGET", help="pkg.module:name or file.py:name; a model, or what makes one when called")
    add("--input", required=True, action="append", metavar="[NAME=]C,H,W", help="shape of one input, without the"
        " batch; once for each input of the model, with its name where it takes them by name")  # fmt: skip
    add("--batch", default="8", metavar="N", help="samples in a batch (default: 8)")
    twin = parser.add_mutually_exclusive_group()
    add_twin = twin.add_argument
    add_twin("--against", metavar="TARGET", help="a model to compare with")
    add_twin("--group", metavar="G", help="profile the model converted to this group, against the model itself")
    add("--forward-only", action="store_true", help="leave out the backward pass")
    add("--eval", action="store_true", help="in eval mode (default: the modes the model comes in)")
    add("--compile", action="store_true", help="compile the models first")
    add("--seconds", default="2", metavar="S", help="how long to repeat each model (default: 2)")
    add("--threads", metavar="N", help="threads of torch")
    add("--seed", default="0", metavar="N", help="of random inputs and of the model's own weights (default: 0)")
    add("--device", default="cpu", metavar="D", help="cpu, cuda, mps (default: cpu)")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--html", type=Path, metavar="FILE", help="write a page with a picture")
    add("--traceback", action="store_true", help="show where an error came from")
