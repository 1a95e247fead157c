r"""Figures that are drawn without a screen."""

from __future__ import annotations

from typing import Any


def figure(width: float, height: float) -> Any:
    r"""An empty matplotlib figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure((width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made
