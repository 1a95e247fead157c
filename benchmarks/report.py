r"""Cost of invariance: ratios of medians against torch's Conv2d of the same width, as tables and as a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from baselines.common.figures import figure, save
from baselines.common.files import writable_folder
from baselines.common.tables import head_lines, row_line
from benchmarks.conv import ESCNN, PLAIN, Case, measure, ratio
from benchmarks.timing import Timing, machine
from equilayers.groups import group_from_name

WIDTHS = (16, 32, 64, 128, 256, 512)  # channels
ESCNN_WIDTH = 256  # above, escnn takes minutes to make one layer
GROUPS = ("C2", "D1", "C4", "D2", "D4")
NAMES = (PLAIN, "dense", "fourier", "auto", ESCNN)
HEAD = "Conv2d, ms", *NAMES[1:]
Point = tuple[int, dict[str, Timing]]


def lines(seconds: float, out: Path) -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured; `cost.png` is drawn into the folder `out` at the end."""
    folder = writable_folder(out)
    yield f"Machine: {machine()}, 1 thread, 3x3, batch 8. Times as fast as torch's Conv2d of the same width.\n"
    curves: dict[str, list[Point]] = {}
    for training in (False, True):
        what = "training step" if training else "forward"
        for group in ("C4", "D4"):
            yield "\n" + head_lines([f"{group}, 9x9 maps, {what}: channels", *HEAD])
            curve = curves.setdefault(f"{group}, {what}", [])
            for width in WIDTHS:
                case = Case(group, width // group_from_name(group).order, 9, training=training)
                curve.append((width, measure(case, seconds, NAMES if width <= ESCNN_WIDTH else NAMES[:-1])))
                yield _row(*curve[-1])
        yield "\n" + head_lines([f"256 channels, 18x18 maps, {what}: |G|", *HEAD])
        curve = curves.setdefault(f"|G|, {what}", [])
        for group in GROUPS:
            order = group_from_name(group).order
            case = Case(group, 256 // order, 18, training=training)
            curve.append((order, measure(case, seconds, NAMES)))
            yield _row(*curve[-1], note=f" ({group})")
    path = folder / "cost.png"
    _draw(curves, path)
    yield f"\nThe same as a drawing: {path}"


def _row(x: int, timings: dict[str, Timing], note: str = "") -> str:
    cells = (ratio(timings, PLAIN, name) for name in NAMES[1:])
    return row_line([f"{x}{note}", f"{timings[PLAIN].median:.2f}", *cells])


def _draw(curves: dict[str, list[Point]], path: Path) -> None:
    made = figure(13, 8, None)
    axes = made.subplots(2, 3, sharey=True)
    for place, (title, curve) in zip(axes.flat, curves.items(), strict=True):
        for name in NAMES[1:]:
            points = [(x, timings[PLAIN].median / timings[name].median) for x, timings in curve if name in timings]
            place.plot(*zip(*points, strict=True), "o-" if name == "auto" else ".--", label=name)
        place.axhline(1, color="black", linewidth=1)
        place.set_xscale("log", base=2)
        place.set_title(title)
        place.set_xlabel("order of the group" if title.startswith("|G|") else "channels")
        place.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("times as fast as torch's Conv2d")
    axes[0, 0].legend()
    made.suptitle("A weight-tied 3x3 convolution against torch's Conv2d of the same width: cheaper above the line")
    save(made, path, dpi=120)
