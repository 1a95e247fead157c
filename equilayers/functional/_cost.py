r"""Which algorithm is the fastest for a shape: a small cost model, measured on one core.

`python -m benchmarks calibrate` measures the constants anew. Only algorithms that keep the bitwise contract compete.
"""

from __future__ import annotations

# Nanoseconds for one unit of each quantity below, on an AMD EPYC (Zen 4), torch 2.13, float32. Only ratios matter.
ORBIT = (2.24e4, 0.0638, 0.494, 0.0209)
EXACT = (1.72e5, 0.251, 0.964, 1.16, 0.0198)
CYCLIC = (4.17e5, 0.296, 2.23, 1.81, 0.0174, 0.116)


def orbit_quantities(rows: int, entries: int, features: int, order: int) -> tuple[float, ...]:
    r"""Of "orbit": calls, weights read, numbers moved, multiplications."""
    return order, order * entries * features, order * rows * entries, order * rows * entries * features


def fourier_quantities(
    rows: int, entries: int, features: int, order: int, products: int, cyclic: bool
) -> tuple[float, ...]:
    r"""Of "fourier": one call, weights transformed, numbers transformed in and out, multiplications (and the DFT's)."""
    planes = entries / order
    shared = (1.0, entries * features, rows * entries, rows * features * order, rows * planes * features * products)
    return (*shared, order * rows * (entries + features * order / 2)) if cyclic else shared


def cheapest(rows: int, entries: int, features: int, order: int, products: int, cyclic: bool) -> str:
    r"""The faster of "orbit" and "fourier" for a batch of `rows` samples of `entries` numbers lifted to `features`.

    products: multiplications per block of the Fourier transform, of order^2; see `_fourier`.
    """
    orbit = _cost(ORBIT, orbit_quantities(rows, entries, features, order))
    constants = CYCLIC if cyclic else EXACT
    fourier = _cost(constants, fourier_quantities(rows, entries, features, order, products, cyclic))
    return "fourier" if fourier < orbit else "orbit"


def _cost(constants: tuple[float, ...], quantities: tuple[float, ...]) -> float:
    return sum(constant * quantity for constant, quantity in zip(constants, quantities, strict=True))
