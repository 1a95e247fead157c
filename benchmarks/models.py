r"""Conversion of third-party models: where they lose the symmetry, the error afterwards, and the cost."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from baselines.common.files import read_json, writable_folder, write_json, write_text
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
HEAD = ["network", "converted to", "modules", "parameters", "float32", "float64", "forward", "step", "loss"]
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
    r"""What is said of one network under one group: where it breaks, a row for each width, and what is to be noted."""

    network: str
    group: str
    breaks: str = ""
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(
    seconds: float, out: Path, *, quick: bool = False, every_width: bool = False, markdown: Path | None = None
) -> None:
    r"""Print a table for each network and group as it is measured, and write them to a page, whole or not at all.

    What is measured is kept in models.json in the folder `out`: a run that was stopped goes on from there.
    """
    about = f"{machine()}, {versions()}"
    how, console = effort(seconds, quick=quick, every_width=every_width), console_of_output()
    kept = writable_folder(out, "models") / "models.json"
    if markdown is not None:
        writable_folder(markdown.parent, "models", "the folder of --markdown")
    heading = {"machine": about, "effort": asdict(how) | {"groups": list(how.groups), "widths": list(how.widths)}}
    known, sections = _sections_in(kept, heading), []
    console.print("\n".join(introduction(about, how)), markup=False, highlight=False)
    with threads(1):
        for network in networks(small=how.small):
            for name in how.groups:
                if (network.name, name) not in known:
                    known[network.name, name] = measure(network, name, how, console)
                    write_json(kept, {**heading, "sections": [asdict(section) for section in known.values()]})
                sections.append(known[network.name, name])  # in this order, whatever that of the file
                _show(sections[-1], console)
    if markdown is not None:
        write_text(markdown, "\n".join(page(sections, about, how)) + "\n")
        console.print(f"\nThe same as Markdown: {markdown}", markup=False)


def _sections_in(kept: Path, heading: dict[str, Any]) -> dict[tuple[str, str], Section]:
    r"""What an earlier run with the same settings on the same machine left."""
    if not kept.exists():
        return {}
    found = read_json(kept)
    if {key: found.get(key) for key in heading} != heading:
        return {}
    sections = [Section(**section) for section in found["sections"]]
    return {(section.network, section.group): section for section in sections}


def introduction(about: str, how: Effort) -> list[str]:
    r"""What the columns mean."""
    return [
        f"Machine: {about}, 1 thread.",
        "",
        "Networks of MONAI, transformers and torch with random weights, before and after `to_equivariant`, trained for",
        f"{how.steps} Adam steps on {BATCH} images of noise, each of its own colour and contrast, with random labels.",
        "",
        '- *converted to*: the group; "blur" with `downsampling="blur"`, the others with the default.',
        "- *modules*: replaced / kept / refused.",
        "- *float32*, *float64*: the worst `|f(gx) - f(x)|` of a sample once trained (`|f(gx) - g f(x)|` for images),",
        "  by how far the outputs of different samples lie apart; float32 at each size, float64 at the first.",
        "- *forward*, *step*: median time by that of the original, forward in eval mode, and forward with backward in",
        "  training mode, timed in turn: above 1 it takes longer.",
        "- *loss*: before the first step and after the last.",
        "",
        "In networks as small as these what a layer does beside its products counts: transforms, copies, calls.",
        "Large ones are faster than the original: [models on tokens](convert-tokens.md).",
    ]


def page(sections: list[Section], about: str, how: Effort) -> list[str]:
    r"""The lines of the page: one table, then where each network breaks, then the notes."""
    rows, breaks, notes, seen = [], [], [], set()
    for section in sections:
        first = section.network not in seen
        seen.add(section.network)
        rows += section.rows if first else section.rows[1:]  # the original once
        if first:
            breaks.append(f"- {section.network}: {section.breaks}")
        notes += [f"- {section.network}, {note}" for note in section.notes]
    lines = ["# Third-party models", "", *introduction(about, how), "", markdown_table(HEAD, rows)]
    if notes:
        lines += ["", "## Notes", "", *dict.fromkeys(notes)]
    return [*lines, "", f"## Where each breaks first, {how.groups[0]}", "", *breaks]


def _show(section: Section, console: Console) -> None:
    r"""On the terminal."""
    console.print(f"\n[bold]{escape(section.network)}[/bold] breaks under {section.group} at {escape(section.breaks)}")
    console.print(rich_table(HEAD[1:], ([escape(cell) for cell in row[1:]] for row in section.rows)))
    for line in section.notes:
        console.print(f"- {line}", markup=False, highlight=False)


def measure(network: Network, name: str, how: Effort, console: Console) -> Section:
    r"""Convert one network under one group in every way, train, compare and time it."""
    section, group = Section(network.name, name), group_from_name(name)
    inputs = [images(BATCH, size) for size in network.sizes]
    with console.status(f"{network.name}, {name}: training"):
        torch.manual_seed(0)
        original = network.make()
        made: Made = {ORIGINAL: (original, None)}
        for width in how.widths[:1] if network.tokens else how.widths:
            blurred: dict[str, Any] = {"width": WIDTHS[0], "downsampling": "blur"}
            settings = blurred if width == BLURRED else {"width": width}
            made[width] = to_equivariant(original, group, inputs[0], **settings)
        losses = {width: _losses(model, inputs[0], how.steps) for width, (model, _) in made.items()}
        found = locate_break(original, inputs[0][:2], group)
        section.breaks = "nowhere" if found is None else f"`{found.path}`, {found.why.split('. ')[0]}"
    with console.status(f"{network.name}, {name}: timing"):
        sound = [width for width, (_, report) in made.items() if report is None or report.complete]
        forward, step = _timed({width: made[width][0] for width in sound}, inputs[0], how)
    at = ", ".join(f"{size}²" for size in network.sizes)
    for width, (model, report) in made.items():
        title = _title(name, width)
        notes = section.notes if width in sound else []  # of what is refused the report says why
        errors = [_error(network, model, name, x, title, notes) for x in inputs]
        exact = _error(network, copy.deepcopy(model).double(), name, inputs[0].double(), title, [])
        times = [_ratio(forward, width), _ratio(step, width)]
        label = f"{network.name}, {at}" if width == ORIGINAL else ""
        cells = [_counts(report), f"{parameters(model):,}", ", ".join(errors), exact, *times, losses[width]]
        section.rows.append([label, title, *cells])
        if report is not None and not report.complete:
            first, *others = report.of("refused")
            section.notes.append(f"{title}: {first}" + (f"; {len(others)} more" if others else ""))
    section.notes = list(dict.fromkeys(section.notes))
    return section


def _title(group: str, width: str) -> str:
    if width == ORIGINAL:
        return width
    return {WIDTHS[0]: group, BLURRED: f"{group}, blur"}.get(width, f"{group}, {width}")


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


def _error(network: Network, model: nn.Module, name: str, x: Tensor, title: str, notes: list[str]) -> str:
    r"""The error, and a note on where it comes from if it is more than rounding in a conversion."""
    try:
        off = error(network, model, group_from_name(name), x)
    except (RuntimeError, ValueError) as problem:
        said = f"does not run at {x.shape[-2]}x{x.shape[-1]}: {str(problem).splitlines()[0]}"
        itself = f"the model itself {said}"
        if title == ORIGINAL:
            notes.append(itself)
        elif itself not in notes:
            notes.append(f"{title} {said}")
        return "–"
    if off > ROUNDING and title != ORIGINAL:
        notes.append(f"{title}: lost at {locate_break(model, x[:2], group_from_name(name))}")
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
