r"""The command line of `equilayers calibrate`."""

from __future__ import annotations

from typing import Any


def add_calibrate(commands: Any) -> None:
    r"""Add the command to a parser."""
    parser = commands.add_parser(
        "calibrate",
        help="measure which algorithms are fastest on this machine",
        description='Measure this machine, so that algorithm="auto" knows it. The result is kept in the user\'s cache'
        " folder, or in that of EQUILAYERS_COSTS. Nothing else should run meanwhile.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--device", default="cpu", metavar="D", help="cpu or cuda (default: cpu)")
    add("--threads", action="append", metavar="N", help="threads of torch to measure with; may be repeated (default:"
        " 1, and as many as torch takes)")  # fmt: skip
    add("--seconds", default="90", metavar="S", help="how long, in all (default: 90)")
    add("--traceback", action="store_true", help="show where an error came from")
