r"""A cost model, measured on one core, that picks the fastest algorithm for a shape.

`python -m benchmarks calibrate` measures the constants anew. Only algorithms that keep the bitwise contract compete.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from equilayers._matmul import has_avx512
from equilayers._torch_compat import constant_when_compiled
from equilayers.functional._fourier.basis import MAX_ORDER, irrep_basis
from equilayers.functional._fourier.rotations import rotations_fourier
from equilayers.functional._fourier.transforms import fourier_of
from equilayers.functional._steerable_basis import basis
from equilayers.groups import Dihedral, Group, Rotations, interpolates

# Nanoseconds for one unit of each quantity below, torch 2.13, float32, by what the processor can do: with AVX-512 a
# multiplication costs a third and memory as much as ever. Only ratios matter.
ALGORITHMS = ("auto", "bitwise", "orbit", "dense", "fourier")  # of every weight-tied layer
BLOCK_ROWS = 160  # patches that a matrix product should have at least
COMPILED_ROWS = 256  # samples of a batch, where a compiler does not tell
TOKENS = 0.02, 0.8, 0.05  # nanoseconds of a multiplication, of a number transformed, and of each sum in it
CONSTANTS = {
    # AMD EPYC; convolutions on the processor below, held to AVX2; their training steps priced as forward passes are
    "AVX2": {
        "orbit": (2.24e4, 0.0638, 0.494, 0.0209),
        "fourier": (1.72e5, 0.251, 0.964, 1.16, 0.0198),
        "fourier cyclic": (4.17e5, 0.296, 2.23, 1.81, 0.0174, 0.116),
        "dense convolution": (4.44e4, 1.04, 0.125, 0.0201),
        "orbit convolution": (6.07e4, 0.658, 0.0218),
        "fourier convolution": (9.38e3, 5.51, 1.23, 1.94, 0.491, 0.0193),
        "steered convolution": (4.95e5, 0, 2.83, 0, 0.00607),
        "steered training step": (7.7e5, 2.45, 3.41, 0, 0),
        "dense training step": (4.44e4, 1.04, 0.125, 0.0201),
        "orbit training step": (6.07e4, 0.658, 0.0218),
        "fourier training step": (9.38e3, 5.51, 1.23, 1.94, 0.491, 0.0193),
    },
    "AVX512": {  # AMD EPYC (Zen 5)
        "orbit": (1.23e4, 0.0494, 0.363, 0.0238),
        "fourier": (1.12e5, 0.207, 0.993, 1.61, 0.0151),
        "fourier cyclic": (3.22e5, 0.476, 3.31, 1.99, 0.0251, 0),
        "dense convolution": (3.88e4, 1.15, 0.217, 0.0119),
        "orbit convolution": (5.32e4, 0.538, 0.0138),
        "fourier convolution": (1.01e4, 5.52, 1.27, 0.943, 0.522, 0.00725),
        "steered convolution": (4.66e5, 0, 2.33, 0, 0.0099),
        "steered training step": (2.17e6, 5.87, 8.87, 0.0596, 0.0099),
        "dense training step": (1.08e5, 3.76, 1.3, 0.0316),
        "orbit training step": (1.49e5, 2.06, 0.0376),
        "fourier training step": (2.6e4, 17.5, 3.6, 4.72, 1.25, 0.0187),
    },
}


def constants() -> dict[str, tuple[float, ...]]:
    r"""The constants of a processor like this one."""
    return CONSTANTS["AVX512" if has_avx512() else "AVX2"]


class Sizes(NamedTuple):
    r"""The sizes of a convolution.

    pixels_in, pixels_out: of all samples. channels: of the input, in one channel group. features: of the output, in
    all. taps: of the filter. lifting: whether images come in, without a fiber. kept: whether the transformed weight is
    kept between calls, because no gradient is wanted.
    """

    pixels_in: int
    pixels_out: int
    channels: int
    features: int
    taps: int
    groups: int
    lifting: bool
    kept: bool


class Work(NamedTuple):
    r"""The work of an algorithm: the row of `CONSTANTS` that prices it, and the quantity of each item.

    serial: how many of the items, the first ones, do not gain from threads.
    """

    kind: str
    quantities: tuple[float, ...]
    serial: int

    def cost(self, threads: int) -> float:
        r"""Nanoseconds by the model."""
        items = [each * quantity for each, quantity in zip(constants()[self.kind], self.quantities, strict=True)]
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


def cheapest_tokens(group: Group, channels: int, features: int) -> str:
    r"""The faster way of a group linear map at many positions: "tokens", the transform, or "dense", the matrix."""
    if group.order > MAX_ORDER:
        return "dense"
    return "tokens" if _gains(group, channels, features) else "dense"


@constant_when_compiled
def _gains(group: Group, channels: int, features: int) -> bool:
    r"""Whether the multiplications that the transform saves cost more than its additions, both per position."""
    return _gain(group, channels, features) > 0


@functools.lru_cache(maxsize=4096)
def _gain(group: Group, channels: int, features: int) -> float:
    r"""Nanoseconds that the transform saves at a position."""
    each_product, each_number, each_sum = TOKENS
    n = group.order
    saved = (n**2 - irrep_basis(group).products) * channels * features * each_product
    return saved - n * (channels + features) * (each_number + n * each_sum)


@constant_when_compiled
def cheapest_compiled(group: Group, entries: int, features: int) -> str:
    r"""The fastest of them in a graph that serves any number of samples: for a batch of usual size, on one thread."""
    return cheapest(group, COMPILED_ROWS, entries, features, 1)


def convolution_work(group: Group, s: Sizes) -> dict[str, Work]:
    r"""The work of each algorithm of a convolution.

    "dense": calls, entries of the expanded filter, numbers in and out, multiplications. "orbit": calls, numbers rotated
    in and out, multiplications. "fourier": operations on a block of patches, weights transformed, numbers of the
    patches, numbers out, entries of the operators read for every block, multiplications.
    """
    n = group.order
    fiber = 1 if s.lifting else n
    numbers_in, numbers_out = s.pixels_in * s.channels * s.groups * fiber, s.pixels_out * s.features * n
    products = numbers_out * s.channels * fiber * s.taps
    expanded = 0 if s.kept else s.features * n * s.channels * fiber * s.taps
    what = "convolution" if s.kept else "training step"
    dense = 1.0, expanded, numbers_in + numbers_out, products
    choices = {
        "dense": Work(f"dense {what}", dense, serial=1),
        "orbit": Work(f"orbit {what}", (n, n * numbers_in + numbers_out, products), serial=1),
    }
    if interpolates(group):
        return {"dense": choices["dense"]} | ({} if s.lifting else {"fourier": _steered_work(group, s, what)})
    fourier = fourier_of(group)
    if fourier is not None:
        orbits = -(-s.taps // n) + (s.taps > 1) if s.lifting else s.taps
        patches = s.pixels_out * n * orbits * s.channels * s.groups
        weights = 0 if s.kept else s.features * s.channels * orbits * n
        blocks = patches * s.features / s.groups * fourier.products / n
        frames = n + n // 2 if isinstance(group, Dihedral) else n  # of free pixels, and of those on the mirrors
        steps = max(frames, s.pixels_out / BLOCK_ROWS)
        operators = steps * s.features * s.channels * orbits * fourier.products
        operations = steps * s.groups * fourier.products
        quantities = operations, weights, patches, numbers_out, operators, blocks
        choices["fourier"] = Work(f"fourier {what}", quantities, serial=5)
    return choices


def _steered_work(group: Rotations, s: Sizes, what: str) -> Work:
    r"""Of "fourier" for a group that interpolates: calls, weights transformed, coefficients, numbers out, products."""
    n, coefficients = group.order, basis(math.isqrt(s.taps)).shape[1]
    made = s.pixels_out * n * coefficients * s.channels * s.groups
    products = rotations_fourier(group).products
    weights = 0 if s.kept else s.features * s.channels * coefficients * n
    quantities = 1.0, weights, made, s.pixels_out * s.features * n, made * s.features / s.groups * products / n
    return Work(f"steered {what}", quantities, serial=4)


@functools.lru_cache(maxsize=4096)
def cheapest_convolution(group: Group, sizes: Sizes, exact: bool, threads: int) -> str:
    r"""The fastest algorithm of a convolution by the model; where `exact`, of those that keep the bitwise contract."""
    choices = convolution_work(group, sizes)
    allowed = [algorithm for algorithm in choices if algorithm != "dense" or not exact]
    return min(allowed, key=lambda algorithm: choices[algorithm].cost(threads))
