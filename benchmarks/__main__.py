r"""`python -m benchmarks SUBJECT`: ratios of medians in Markdown, line by line as they are measured.

linear, conv: the layers in all their algorithms. shift: blur and polyphase pooling. turns: their equivariance errors.
rotations: rotations by any angle. jacobian: singular values. transformer: blocks, linear layers at many positions, 1x1
convolutions. construction, memory: of convolutions. cuda: linear, conv and transformer on a GPU. report: cost against
width and against the order of the group, with a drawing. figures: the pictures of the documentation. models: networks
of MONAI and of transformers before and after `to_equivariant`, as tables on the terminal, and in a file with
--markdown. choices: how near `algorithm="auto"` is to the fastest algorithm, over random layers. What models and
choices have measured stays in --out: stopped, they go on with what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from baselines.common.terminal import positive
from benchmarks import (
    choices,
    construction,
    conv,
    cuda,
    figures,
    jacobian,
    linear,
    memory,
    models,
    report,
    rotations,
    shift,
    transformer,
    turns,
)

SUBJECTS: dict[str, Callable[[float], Iterator[str]]] = {
    "linear": linear.report,
    "conv": conv.report,
    "construction": construction.report,
    "shift": shift.report,
    "turns": turns.report,
    "rotations": rotations.report,
    "jacobian": jacobian.report,
    "memory": memory.report,
    "transformer": transformer.report,
    "cuda": cuda.report,
}
OTHERS = "report", "figures", "models", "choices"  # with options of their own


# The subjects that an option is for.
OPTIONS = {
    "quick": ("models",),
    "every_width": ("models",),
    "markdown": ("models", "choices"),
    "cases": ("choices",),
    "seed": ("choices",),
}


def main() -> None:
    r"""Print the report of one subject."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=form)
    parser.add_argument("subject", choices=[*SUBJECTS, *OTHERS])
    parser.add_argument("--seconds", type=float, default=2.0, help="per case (default: 2)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmarks"),
        help="folder of drawings and of figures of `models` and `choices`",
    )
    parser.add_argument("--quick", action="store_true", help="only show that `models` works: half a minute")
    parser.add_argument(
        "--every-width", action="store_true", help="convert `models` to equal parameters and compute, too"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="where to write the tables of `models` or `choices`"
    )
    parser.add_argument("--cases", type=positive, default=200, help="layers of `choices` (default: 200)")
    parser.add_argument("--seed", type=int, default=choices.SEED, help=f"of `choices` (default: {choices.SEED})")
    args = parser.parse_args()
    for name, subjects in OPTIONS.items():
        if args.subject not in subjects and getattr(args, name) != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            parser.error(f"expected {option} with {' or '.join(subjects)}, got {args.subject}. Leave it out.")
    if args.subject == "models":
        try:
            settings = {"quick": args.quick, "every_width": args.every_width, "markdown": args.markdown}
            models.run(args.seconds, args.out, **settings)
        except (ImportError, OSError) as error:
            parser.error(str(error))
        return
    if args.subject == "choices":
        choices.run(args.seconds, args.cases, args.seed, args.out, args.markdown)
        return
    try:
        for line in _lines(args.subject, args.seconds, args.out):
            print(line, flush=True)
    except RuntimeError as error:
        if args.subject != "cuda" or torch.cuda.is_available():
            raise
        parser.error(str(error))


def _lines(subject: str, seconds: float, out: Path) -> Iterator[str]:
    if subject == "figures":
        return figures.lines(out)
    return report.lines(seconds, out) if subject == "report" else SUBJECTS[subject](seconds)


if __name__ == "__main__":
    main()
