r"""Which algorithm is the fastest for a shape: a small cost model, measured on one core.

`python -m benchmarks calibrate` measures the constants anew. Only algorithms that keep the bitwise contract compete.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from equilayers.functional._fourier import fourier_of
from equilayers.groups import Group

# Nanoseconds for one unit of each quantity below, on an AMD EPYC (Zen 4), torch 2.13, float32. Only ratios matter.
CONSTANTS = {
    "orbit": (2.24e4, 0.0638, 0.494, 0.0209),
    "fourier": (1.72e5, 0.251, 0.964, 1.16, 0.0198),
    "fourier cyclic": (4.17e5, 0.296, 2.23, 1.81, 0.0174, 0.116),
}


class Work(NamedTuple):
    r"""What an algorithm has to do: the row of `CONSTANTS` that prices it, and how much of each item there is.

    serial: how many of the items, the first ones, do not gain from threads.
    """

    kind: str
    quantities: tuple[float, ...]
    serial: int

    def cost(self, threads: int) -> float:
        r"""Nanoseconds by the model."""
        items = [constant * quantity for constant, quantity in zip(CONSTANTS[self.kind], self.quantities, strict=True)]
        return sum(items[: self.serial]) + sum(items[self.serial :]) / threads


def work(group: Group, rows: int, entries: int, features: int) -> dict[str, Work]:
    r"""The work of each bitwise algorithm the group has, to lift `rows` samples of `entries` numbers to `features`.

    "orbit": calls, weights read, numbers moved, multiplications. "fourier": one call, weights transformed, numbers
    transformed in, numbers transformed out, multiplications (`products` per block of |G|^2), and those of the DFT.
    """
    n = group.order
    orbit = n, n * entries * features, n * rows * entries, n * rows * entries * features
    choices = {"orbit": Work("orbit", orbit, serial=1)}
    fourier = fourier_of(group)
    if fourier is not None:
        products = rows * entries * features * fourier.products / n
        shared = 1.0, entries * features, rows * entries, rows * features * n, products
        transform = n * rows * (entries + n * features / 2)
        exact = Work("fourier", shared, serial=4)
        choices["fourier"] = exact if fourier.exact else Work("fourier cyclic", (*shared, transform), serial=4)
    return choices


@functools.lru_cache(maxsize=4096)
def cheapest(group: Group, rows: int, entries: int, features: int, threads: int) -> str:
    r"""The fastest of them by the model."""
    choices = work(group, rows, entries, features)
    return min(choices, key=lambda algorithm: choices[algorithm].cost(threads))
