r"""Conversion of third-party models: where they lose the symmetry, the error afterwards, and the cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from baselines.common.files import writable_folder, write_text
from baselines.common.tables import markdown_table, rich_table
from baselines.common.terminal import console_of_output
from baselines.study.models import parameters
from benchmarks.third_party import Network, error, images, networks, random_loss, tensor_of, train, versions
from benchmarks.timing import Call, Timing, in_turn, machine, threads
from equilayers.convert import Report, to_equivariant
from equilayers.groups import group_from_name
from equilayers.testing import locate_break

WIDTHS = ("equal-width", "equal-parameters", "equal-compute")
ORIGINAL, BLURRED = "original", "equal-width, blur"
BATCH = 4
ROUNDING = 1e-4  # by how far outputs lie apart
Made = dict[str, tuple[nn.Module, Report | None]]


@dataclass(frozen=True)
class Effort:
    r"""How much is measured: `small` networks, the groups and widths, seconds per timing, and steps of training."""

    small: bool
    groups: tuple[str, ...]
    widths: tuple[str, ...]
    seconds: float
    rounds: int
    steps: int


def effort(seconds: float, *, quick: bool, every_width: bool = False) -> Effort:
    r"""Equal width or every width, or what shows in half a minute that it works."""
    if quick:
        return Effort(True, ("C4",), WIDTHS[:1], 0.0, 2, 5)
    widths = (WIDTHS[0], BLURRED, *WIDTHS[1:]) if every_width else (WIDTHS[0], BLURRED)
    return Effort(False, ("C4", "D4"), widths, seconds, 5, 10)


@dataclass
class Section:
    r"""What is said of one network: a table, where it breaks above it, what is to be noted below."""

    title: str
    head: list[str]
    breaks: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> Iterator[str]:
        r"""Line by line."""
        yield f"\n## {self.title}\n"
        yield from (f"- {line}" for line in self.breaks)
        yield "\n" + markdown_table(self.head, self.rows)
        if self.notes:
            yield ""
        yield from (f"- {line}" for line in self.notes)

    def show(self, console: Console) -> None:
        r"""On the terminal."""
        console.print(f"\n[bold]{escape(self.title)}[/bold]")
        for line in self.breaks:
            console.print(f"- {line}", markup=False, highlight=False)
        console.print(rich_table(self.head, ([escape(cell) for cell in row] for row in self.rows)))
        for line in self.notes:
            console.print(f"- {line}", markup=False, highlight=False)


def run(seconds: float, *, quick: bool = False, every_width: bool = False, markdown: Path | None = None) -> None:
    r"""Print a table for each network as it is measured, and write all of them to a file, whole or not at all."""
    about = f"{machine()}, {versions()}"
    if markdown is not None:
        writable_folder(markdown.parent, "models", "the folder of --markdown")
    how, console = effort(seconds, quick=quick, every_width=every_width), console_of_output()
    lines = ["# Third-party models", "", *introduction(about, how)]
    console.print("\n".join(lines[2:]), markup=False, highlight=False)
    with threads(1):
        for network in networks(small=how.small):
            section = measure(network, how, console)
            section.show(console)
            lines += section.markdown()
    if markdown is not None:
        write_text(markdown, "\n".join(lines) + "\n")
        console.print(f"\nThe same as Markdown: {markdown}", markup=False)


def introduction(about: str, how: Effort) -> list[str]:
    r"""What the columns mean."""
    return [
        f"Machine: {about}, 1 thread.",
        "",
        "Networks of MONAI and of transformers with random weights, before and after `to_equivariant`, trained for",
        f"{how.steps} Adam steps on {BATCH} images of noise, each of its own colour and contrast, with random labels.",
        "",
        f'- *width*: "{BLURRED}" with `downsampling="blur"`, the others with the default.',
        "- *modules*: replaced / kept / refused.",
        "- *error*: the worst `|f(gx) - f(x)|` of a sample (`|f(gx) - g f(x)|` for images), by how far the outputs of",
        "  different samples lie apart, in float32.",
        "- *forward*, *step*: median time by that of the original, forward in eval mode, and forward with backward in",
        "  training mode, timed in turn: above 1 it takes longer.",
        "- *loss*: before the first step and after the last.",
    ]


def measure(network: Network, how: Effort, console: Console) -> Section:
    r"""Convert one network in every way, train, compare and time it."""
    at = [f"error {size}x{size}" for size in network.sizes]
    head = ["group", "width", "parameters", "modules", *at, "forward", "step", "loss"]
    section = Section(network.name, head)
    inputs = [images(BATCH, size) for size in network.sizes]
    for name in how.groups:
        group = group_from_name(name)
        with console.status(f"{network.name}, {name}: training"):
            torch.manual_seed(0)
            original = network.make()
            made: Made = {ORIGINAL: (original, None)}
            for width in how.widths[:1] if network.tokens else how.widths:
                blurred: dict[str, Any] = {"width": WIDTHS[0], "downsampling": "blur"}
                settings = blurred if width == BLURRED else {"width": width}
                made[width] = to_equivariant(original, group, inputs[0], **settings)
            losses = {width: _losses(model, inputs[0], how.steps) for width, (model, _) in made.items()}
            section.breaks.append(f"{name} breaks first at {locate_break(original, inputs[0][:2], group)}")
        with console.status(f"{network.name}, {name}: timing"):
            sound = [width for width, (_, report) in made.items() if report is None or report.complete]
            forward, step = _timed({width: made[width][0] for width in sound}, inputs[0], how)
        for width, (model, report) in made.items():
            notes = section.notes if width in sound else []  # of what is refused the report says why
            errors = [_error(network, model, name, x, f"{name}, {width}", notes) for x in inputs]
            times = [_ratio(forward, width), _ratio(step, width)]
            row = [name, width, f"{parameters(model):,}", _counts(report), *errors, *times, losses[width]]
            section.rows.append(row)
            if report is not None and not report.complete:
                first, *others = report.of("refused")
                section.notes.append(f"{name}, {width}: {first}" + (f"; {len(others)} more" if others else ""))
    section.notes = list(dict.fromkeys(section.notes))
    return section


def _counts(report: Report | None) -> str:
    if report is None:
        return "–"
    return " / ".join(str(len(report.of(done))) for done in ("replaced", "kept", "refused"))


def _losses(model: nn.Module, x: Tensor, steps: int) -> str:
    try:
        losses = train(model, x, steps)
    except RuntimeError:  # a conversion that the report refuses
        return "–"
    return f"{losses[0]:.3g} → {losses[-1]:.3g}"


def _error(network: Network, model: nn.Module, name: str, x: Tensor, caller: str, notes: list[str]) -> str:
    r"""The error, and a note on where it comes from if it is more than rounding in a conversion."""
    try:
        off = error(network, model, group_from_name(name), x)
    except RuntimeError as problem:
        said = f"does not run at {x.shape[-2]}x{x.shape[-1]}: {str(problem).splitlines()[0]}"
        itself = f"the model itself {said}"
        if caller.endswith(ORIGINAL):
            notes.append(itself)
        elif itself not in notes:
            notes.append(f"{caller} {said}")
        return "–"
    if off > ROUNDING and not caller.endswith(ORIGINAL):
        notes.append(f"{caller}: lost at {locate_break(model, x[:2], group_from_name(name))}")
    return f"{off:.1g}"


def _timed(models: dict[str, nn.Module], x: Tensor, how: Effort) -> tuple[dict[str, Timing], dict[str, Timing]]:
    r"""A forward pass in eval mode, and a training step up to the gradients."""
    timings = []
    for what in (_forward, _step):
        calls: dict[str, Call] = {width: what(model, x) for width, model in models.items()}
        timings.append(in_turn(calls, seconds=how.seconds, warmup=1, rounds=how.rounds))
    return timings[0], timings[1]


def _forward(model: nn.Module, x: Tensor) -> Call:
    return torch.no_grad()(partial(tensor_of(model.eval()), x))


def _step(model: nn.Module, x: Tensor) -> Call:
    loss_of = random_loss(model.train(), x)

    def step() -> None:
        model.zero_grad()
        loss_of().backward()

    return step


def _ratio(timings: dict[str, Timing], width: str) -> str:
    if width not in timings:
        return "–"
    if width == ORIGINAL:
        return f"{timings[width].median:.0f} ms"
    return f"{timings[width].median / timings[ORIGINAL].median:.2f}"
