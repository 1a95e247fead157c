r"""The toy signal: what max pooling, blur pooling and polyphase pooling make of 0 0 1 1 0 0 1 1 and of its shift.

Source: Zhang 2019, Fig. 2 (arXiv:1904.11486).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from baselines.common.tables import markdown_table, rich_table
from equilayers.functional import blur_pool2d, polyphase_pool2d

SIGNAL = (0.0, 0.0, 1.0, 1.0) * 2
POOLINGS = ("max", "blur, 3 taps", "blur, 4 taps", "polyphase")


@dataclass(frozen=True)
class Row:
    r"""A pooling, what it makes of the signal and of the signal shifted by one, and how far the two are apart.

    `apart` is the largest difference that is left after the best cyclic shift of one onto the other: 0 where pooling
    kept all but the place of the signal.
    """

    pooling: str
    plain: tuple[float, ...]
    shifted: tuple[float, ...]
    apart: float


def shifted(signal: tuple[float, ...] = SIGNAL) -> tuple[float, ...]:
    r"""The signal, one place to the right, around the end."""
    return signal[-1:] + signal[:-1]


def pool(pooling: str, signal: tuple[float, ...]) -> tuple[float, ...]:
    r"""Maximum over two neighbours, periodic, and every second of them by one of the POOLINGS."""
    x = torch.tensor(signal, dtype=torch.float64).view(1, 1, 1, -1)
    along = 1, 2  # the signal is an image of one row
    dense = torch.maximum(x, x.roll(-1, -1))
    y: Tensor
    if pooling == "max":
        y = F.max_pool2d(x, along)
    elif pooling == "polyphase":
        y = polyphase_pool2d(dense, along)
    else:
        # An even map takes four taps with "auto"; three are what Zhang's figure has.
        y = blur_pool2d(dense, 3 if "3" in pooling else "auto", along, "circular")
    return tuple(y.flatten().tolist())


def apart(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    r"""The largest difference after the best cyclic shift."""
    a, b = torch.tensor(first), torch.tensor(second)
    return min(float((a.roll(r) - b).abs().max()) for r in range(len(first)))


def toy_rows() -> list[Row]:
    r"""One row for each of the POOLINGS."""
    pairs = [(name, pool(name, SIGNAL), pool(name, shifted())) for name in POOLINGS]
    return [Row(name, plain, moved, apart(plain, moved)) for name, plain, moved in pairs]


def numbers(values: tuple[float, ...]) -> str:
    r"""Numbers in a line, as short as they are."""
    return " ".join(f"{value:g}" for value in values)


def cells() -> list[list[str]]:
    r"""The rows as text."""
    return [[row.pooling, numbers(row.plain), numbers(row.shifted), f"{row.apart:g}"] for row in toy_rows()]


def toy_table() -> Table:
    r"""The table for the terminal."""
    title = f"pooled by two: {numbers(SIGNAL)}, and shifted by one: {numbers(shifted())}"
    return rich_table(("pooling", "of the signal", "of the shifted", "apart"), cells(), title)


def toy_markdown() -> str:
    r"""The table as Markdown."""
    return markdown_table(("pooling by two", f"of {numbers(SIGNAL)}", f"of {numbers(shifted())}", "apart"), cells())
