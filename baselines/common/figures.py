r"""Empty figures, saving them, and their colours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.common.files import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"


def figure(width: float, height: float, dpi: float | None = 110) -> Figure:
    r"""An empty figure that is drawn without a screen, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure((width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Figure, path: Path, **how: Any) -> None:
    r"""Write a figure as a PNG file, whole; further arguments are those of `savefig`."""
    write(path, partial(made.savefig, format="png", **how))
