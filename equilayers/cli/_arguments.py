r"""The command line, read and checked before anything is run."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from equilayers.cli._calibrate_arguments import add_calibrate
from equilayers.cli._profile_arguments import add_profile
from equilayers.cli._words import COMMAND, EXTRA, bad
from equilayers.groups import Group, group_from_name

INPUTS = ("image", "regular", "vector", "vector:right-down", "vector:down-right")
OUTPUTS = ("auto", "invariant", *INPUTS)
CODES = """exit codes:
  0    invariant (equivariant, for images and regular features)
  1    not, or random: two identical calls differ
  2    bad input: nothing was checked, and one line on standard error says why
  3    nothing shown: invariant, but only because it says nearly the same of everything
  130  interrupted
of data: 0 nothing against one of the groups or more, 1 symmetric under none, 2 bad input"""
EXAMPLE = """examples:
  equilayers check pkg.module:factory --group C4 --input 1,36,36 --weights model.safetensors --html report.html
  equilayers check --data train-images-idx3-ubyte.gz --by-class"""
OF_MODELS = (
    "weights",
    "moving",
    "tolerance",
    "atol",
    "bitwise",
    "batch_size",
    "quick",
    "html",
    "output",
    "input_as",
    "device",
)
OF_DATA = ("labels", "by_class", "level", "classifier")
SAMPLES, IMAGES = "8", "4000"  # inputs of a model, images of data


@dataclass(frozen=True)
class Settings:
    r"""What to check and how. shapes: of the inputs by name; their places are the names of several without."""

    target: str
    group: Group
    shapes: dict[str, tuple[int, ...]]
    moving: tuple[str, ...] | None
    input_as: str
    weights: Path | None
    data: Path | None
    samples: int
    seed: int
    output: str
    tolerance: float | None
    atol: float | None
    bitwise: bool
    batch_size: int | None
    quick: bool
    device: torch.device
    json: Path | None
    html: Path | None

    @property
    def shape(self) -> tuple[int, ...]:
        r"""Of the first input."""
        return next(iter(self.shapes.values()))


@dataclass(frozen=True)
class DataSettings:
    r"""Which data to look at, and how. groups: to test, None for all; shape: of an image, if it was said."""

    data: Path
    labels: Path | None
    groups: tuple[str, ...] | None
    shape: tuple[int, ...] | None
    samples: int
    seed: int
    level: float
    classifier: str
    by_class: bool
    json: Path | None


class _Parser(argparse.ArgumentParser):
    r"""Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        bad("arguments as --help shows them", message, f"Run {COMMAND.get()} --help.")


def parse(argv: list[str]) -> Settings | DataSettings | argparse.Namespace:
    r"""The settings of a check, of data without a model, or the arguments of a profile.

    `--help` and `--version` raise SystemExit.

    Raises:
        BadInputError: an argument is missing, unknown, or out of range.
    """
    args = _parser().parse_args(argv)
    if args.command is None:
        bad("a command", "none", "Run equilayers check --help.")
    if args.command in ("profile", "calibrate"):
        return args
    if args.target is None and args.data is not None:
        return _of_data(args)
    _require_model(args)
    given = args.tolerance if args.atol is None else args.atol
    if args.bitwise and given is not None:
        bad("--bitwise without --tolerance", given, "Bitwise allows no error: leave one of them out.")
    shapes = shapes_of(args.input)
    return Settings(
        target=args.target,
        group=group_of(args.group[0]),
        shapes=shapes,
        moving=None if args.moving is None else _moving(args.moving, shapes),
        input_as=args.input_as,
        weights=args.weights,
        data=args.data,
        samples=whole("--samples", args.samples or SAMPLES, 2),
        seed=whole("--seed", args.seed, 0),
        output=args.output,
        tolerance=None if args.tolerance is None else number("--tolerance", args.tolerance),
        atol=None if args.atol is None else number("--atol", args.atol),
        bitwise=args.bitwise,
        batch_size=None if args.batch_size is None else whole("--batch-size", args.batch_size, 1),
        quick=args.quick,
        device=device_of(args.device),
        json=file_of("--json", args.json),
        html=file_of("--html", args.html),
    )


def _require_model(args: argparse.Namespace) -> None:
    names = {"TARGET": args.target, "--group": args.group, "--input": args.input}
    missing = [name for name, value in names.items() if value is None]
    if missing:
        words = f"the following arguments are required: {', '.join(missing)}"
        bad("arguments as --help shows them", words, "Run equilayers check --help.")
    if len(args.group) > 1:
        bad("one --group for a model", " ".join(args.group), "Call it once for each.")
    _refuse_others(args, OF_DATA, "no TARGET, but data alone")


def _refuse_others(args: argparse.Namespace, names: tuple[str, ...], wanted: str) -> None:
    r"""No option is ignored in silence."""
    parser = _parser()
    defaults = vars(parser.parse_args(["check"]))
    for name in names:
        if getattr(args, name) != defaults[name]:
            option = f"--{name.replace('_', '-')}"
            bad(f"{wanted}, with {option}", getattr(args, name), f"Leave out {option}, or run equilayers check --help.")


def _of_data(args: argparse.Namespace) -> DataSettings:
    _refuse_others(args, OF_MODELS, "a TARGET")
    shapes = None if args.input is None else list(shapes_of(args.input).values())
    if shapes is not None and (len(shapes) > 1 or len(shapes[0]) != 3):
        bad("--input C,H,W of one image", " ".join(args.input), "Pass 3,64,64, for example, or leave it out.")
    level = number("--level", args.level)
    if not 0 < level < 1:
        bad("--level between 0 and 1", args.level, "It is the probability of a false alarm: 0.05, for example.")
    for name in args.group or ():
        group_of(name)
    return DataSettings(
        data=args.data,
        labels=args.labels,
        groups=None if args.group is None else tuple(args.group),
        shape=None if shapes is None else shapes[0],
        samples=whole("--samples", args.samples or IMAGES, 40),
        seed=whole("--seed", args.seed, 0),
        level=level,
        classifier=args.classifier,
        by_class=args.by_class,
        json=file_of("--json", args.json),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="equilayers", description="Is a model invariant, and if not, which layer lost it?")
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", metavar="command")
    add_profile(commands)
    add_calibrate(commands)
    check = commands.add_parser(
        "check",
        help="check a model, or data",
        description="Check that a model is invariant (or equivariant) under a group. Without a TARGET: ask of which"
        " groups the data are symmetric, and so what to tie.",
        epilog=f"{CODES}\n\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = check.add_argument
    what = "pkg.module:name or file.py:name; a model, or what makes one when called"
    add("target", nargs="?", metavar="TARGET", help=what)
    add("--group", action="append", metavar="G", help="C2 C4 (rotations), D1 D2 D4 (and mirrors), T3 (cyclic shifts"
        " along the width; T3:-2 along the height), T3xT3:-2 (a product); of data several, each with --group, or none"
        " for all")  # fmt: skip
    add("--input", action="append", metavar="[NAME=]C,H,W", help="shape of one input, without the"
        " batch; once for each input of the model, with its name where it takes them by name")  # fmt: skip
    add("--moving", metavar="NAMES", help="which of several inputs the group moves, by name or place from 0, such as"
        " image,mask (default: all images)")  # fmt: skip
    add("--input-as", default="image", choices=INPUTS, help="how the inputs move, such as fields of vectors 1,2,H,W as"
        " vector (default: image)")  # fmt: skip
    add("--weights", type=Path, metavar="FILE", help=".safetensors, or .pt with a state dict of tensors alone")
    add("--data", type=Path, metavar="DATA", help=".npz with an array x, or arrays named as the inputs, or a"
        " folder of images (default: random input); without TARGET also .npy and idx files, and a folder of a folder"
        " of images for each class")  # fmt: skip
    add("--samples", metavar="N", help=f"inputs to look at (default: {SAMPLES}; of data {IMAGES}, drawn at random)")
    add("--seed", default="0", metavar="N", help="of random inputs and of the model's own weights (default: 0)")
    add("--output", default="auto", choices=OUTPUTS, help="how the output should move (default: (B, K) stays, images"
        " and regular features move along); vectors are (B, 2), (B, C, 2), or fields (B, 2, H, W), (B, C, 2, H, W), of"
        " components to the right and upwards, or as they are named")  # fmt: skip
    add("--tolerance", metavar="T", help="largest error, relative to the largest output (default: rounding)")
    add("--atol", metavar="T", help="largest error in units of the output, added to that of --tolerance")
    add("--bitwise", action="store_true", help="ask for equality to the last bit")
    add("--batch-size", metavar="N", help="samples per call of the model while measuring")
    add("--quick", action="store_true", help="leave out what needs gradients: SI, sigma_max, saliency")
    add("--device", default="cpu", metavar="D", help="cpu, cuda, mps (default: cpu)")
    _add_data(add)
    add("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    add("--html", type=Path, metavar="FILE", help=f"write it as a page with pictures ({EXTRA})")
    add("--traceback", action="store_true", help="show where an error came from")
    return parser


def _add_data(add: Callable[..., Any]) -> None:
    r"""The options that are of data alone."""
    add("--labels", type=Path, metavar="FILE", help="of data: .npy or idx file with the class of each image")
    add("--by-class", action="store_true", help="of data: each class by itself as well")
    add("--level", default="0.05", metavar="P", help="of data: probability of a false alarm, all groups together"
        " (default: 0.05)")  # fmt: skip
    add("--classifier", default="kernel", choices=("kernel", "cnn"), help="of data: what is trained (default: kernel)")


def version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"equilayers {version('equilayers')}"
    except PackageNotFoundError:  # a source tree that was never installed
        return "equilayers 0+unknown"


def group_of(name: str) -> Group:
    hint = "Pick one of C2 C4 D1 D2 D4, T and a number, or a product such as T3xT3:-2."
    try:
        group = group_from_name(name)
    except ValueError as error:
        bad("--group to be a name such as C4, D4, T3 or T3:-2", f"{name!r} ({error})", hint)
    if group.exactness != "bitwise":
        bad("--group to be a group that is exact on pixels", repr(name), hint)
    if group.order == 1:
        bad("--group to be of more than one element", repr(name), "The trivial group moves nothing: take C2.")
    return group


def shapes_of(texts: list[str]) -> dict[str, tuple[int, ...]]:
    r"""The shapes of the inputs by name, by place where there are several without names, of one as x."""
    pairs = [text.rpartition("=") for text in texts]
    named = {bool(equals) for _, equals, _ in pairs}
    names = [name or (str(i) if len(texts) > 1 else "x") for i, (name, *_) in enumerate(pairs)]
    if len(named) > 1 or len(set(names)) < len(names) or not all(n.isidentifier() or n.isdigit() for n in names):
        got = " ".join(texts)
        bad(
            "--input with a name of its own for each input, or for none",
            got,
            "Pass --input image=1,36,36, for example.",
        )
    shapes = {}
    for name, (_, _, text) in zip(names, pairs, strict=True):
        numbers = re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text)
        shapes[name] = tuple(map(int, text.split(","))) if numbers else ()
        if not shapes[name] or 0 in shapes[name]:
            bad("--input to be the shape of one input", repr(text), "Pass whole numbers, such as 1,36,36.")
    return shapes


def _moving(text: str, shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(shapes) == 1 or not set(names) <= set(shapes):
        bad(
            f"--moving to name some of several inputs {', '.join(shapes)}",
            repr(text),
            "Name those that the group moves.",
        )
    return names


def whole(name: str, text: str, low: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < low:
        bad(f"{name} to be a whole number from {low} on", repr(text), f"Pass {max(low, 8)}, for example.")
    return int(text)


def number(name: str, text: str, example: str = "1e-4") -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        bad(f"{name} to be a number from 0 on", repr(text), f"Pass {example}, for example.")
    return value


def device_of(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # each device says in another way that it is not there
        bad("--device to be one that torch has here", f"{name!r} ({type(error).__name__})", "Pass cpu, for example.")
    return device


def file_of(name: str, path: Path | None) -> Path | None:
    r"""A file to write: refused before anything is run."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        bad(f"{name} to be a file in a folder that can be written to", path, "Make the folder, or name another.")
    return path
