r"""What each algorithm of a weight-tied layer costs, and the choice of the cheapest for `algorithm="auto"`.

The work of an algorithm is counted: operations, numbers moved, multiplications. Three prices of a kind of device make
nanoseconds of it, a roofline; `equilayers calibrate` measures more of them, one for each count of each algorithm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from equilayers._checks import Pair
from equilayers._torch_compat import constant_when_compiled
from equilayers.functional._convolution.numba_sums import can_call_blas, has_numba
from equilayers.functional._convolution.pattern_kernel import BLAS_BLOCK, BLOCK
from equilayers.functional._convolution.patterns import basis_of, has_basis
from equilayers.functional._convolution.torch_sums import steps_and_numbers
from equilayers.functional._fourier.basis import MAX_ORDER, irrep_basis
from equilayers.functional._fourier.irreps import Fourier
from equilayers.functional._fourier.rotations import rotations_fourier
from equilayers.functional._fourier.transforms import fast_fourier_of, fourier_of
from equilayers.functional._machine import Machine, Prices, nanoseconds, prices
from equilayers.functional._steerable_basis import basis
from equilayers.groups import Dihedral, Group, Rotations, interpolates

BLOCK_ROWS = 160  # patches that a matrix product should have at least
COMPILED_ROWS = 256  # samples of a batch, where a compiler does not tell
MANY_ROWS = 2**20  # tokens, where a compiler does not tell: the work of a position decides
ONE_THREAD = Machine()
USUAL_WIDTH = 16  # of a map, pixels
BACKWARD = 3  # a training step is a forward pass and two products of its size


class Sizes(NamedTuple):
    r"""The sizes of a convolution.

    pixels_in, pixels_out: of all samples. channels: of the input, in one channel group. features: of the output, in
    all. kernel: (height, width). lifting: whether images come in, without a fiber. kept: whether the transformed weight
    is kept between calls, because no gradient is wanted.
    """

    pixels_in: int
    pixels_out: int
    channels: int
    features: int
    kernel: Pair
    groups: int
    lifting: bool
    kept: bool

    @property
    def taps(self) -> int:
        r"""Of the filter."""
        return math.prod(self.kernel)


class LinearSizes(NamedTuple):
    r"""The sizes of a linear map: of `rows` samples or positions.

    entries: of an input, all planes. features: of the output. lifting: whether a space comes in, without a fiber. kept:
    as of `Sizes`. chain: whether it is one of many token-wise layers, between which the coefficients stay.
    """

    rows: int
    entries: int
    features: int
    lifting: bool
    kept: bool
    chain: bool = False


class Work(NamedTuple):
    r"""The work of an algorithm: operations of torch, numbers that are read or written, multiplications.

    kind: the row of a calibration that prices it, and beside them what a call costs whatever its size. numbers: of each
    way in which they are moved. repeats: how often the whole is done, forward and backward.
    """

    kind: str
    operations: float
    numbers: tuple[float, ...]
    multiplications: float
    repeats: int = 1

    @property
    def quantities(self) -> tuple[float, ...]:
        r"""All counts, in the order in which a calibration prices them."""
        return tuple(self.repeats * q for q in (1, self.operations, *self.numbers, self.multiplications))


@dataclass(frozen=True)
class Choice:
    r"""What a layer runs for an input, and why.

    algorithm: "dense", "orbit", "fourier", "tokens" (the group Fourier transform of every position, at rounding level)
    or "plain" (nothing is tied). costs: nanoseconds of each algorithm by the model; empty where it is not asked.
    """

    algorithm: str
    why: str
    costs: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.algorithm}: {self.why}"


def costs_of(choices: Mapping[str, Work], machine: Machine = ONE_THREAD) -> dict[str, float]:
    r"""Nanoseconds of each algorithm there: by the calibration if it prices all of them, otherwise by the roofline."""
    table = calibrated(choices, machine) or {}
    works = choices.items()
    return {name: nanoseconds(machine, work.quantities, table.get(work.kind)) for name, work in works}


def roofline_costs(choices: Mapping[str, Work], machine: Machine) -> dict[str, float]:
    r"""The same by the roofline alone."""
    return {name: nanoseconds(machine, work.quantities, None) for name, work in choices.items()}


def calibrated(choices: Mapping[str, Work], machine: Machine) -> Prices | None:
    r"""The constants of a calibration, if there is one there that prices all of these."""
    table = prices(machine) or {}
    known = all(len(table.get(work.kind, ())) == len(work.quantities) for work in choices.values())
    return table if known else None


@functools.lru_cache(maxsize=4096)
def cheapest_linear(group: Group, sizes: LinearSizes, exact: bool, machine: Machine = ONE_THREAD) -> str:
    r"""The fastest algorithm of a linear map by the model; where `exact`, of those that keep the bitwise contract."""
    return _cheapest(linear_work(group, sizes), exact, machine)


@functools.lru_cache(maxsize=4096)
def cheapest_convolution(group: Group, sizes: Sizes, exact: bool, machine: Machine = ONE_THREAD) -> str:
    r"""The fastest algorithm of a convolution by the model; where `exact`, of those that keep the bitwise contract."""
    return _cheapest(convolution_work(group, sizes, exact), exact, machine)


def _cheapest(choices: dict[str, Work], exact: bool, machine: Machine) -> str:
    costs = costs_of(choices, machine)
    return min((name for name in costs if not exact or name in ("orbit", "fourier")), key=costs.__getitem__)


def cheapest_tokens(group: Group, sizes: LinearSizes, machine: Machine = ONE_THREAD) -> str:
    r"""The faster way of a group linear map at many positions: "tokens", the transform, or "dense", the matrix."""
    return "tokens" if _gains(group, tuple(sizes), tuple(machine)) else "dense"


@constant_when_compiled
def _gains(group: Group, sizes: tuple[Any, ...], machine: tuple[Any, ...]) -> bool:
    return _transform_gains(group, LinearSizes._make(sizes), Machine._make(machine))


@functools.lru_cache(maxsize=4096)
def _transform_gains(group: Group, sizes: LinearSizes, machine: Machine) -> bool:
    costs = costs_of(token_work(group, sizes), machine)
    return "tokens" in costs and costs["tokens"] < costs["dense"]


def token_work(group: Group, sizes: LinearSizes) -> dict[str, Work]:
    r"""The work of "dense" and "tokens"."""
    choices = linear_work(group, sizes)
    return {name: choices[name] for name in ("dense", "tokens") if name in choices}


@constant_when_compiled
def cheapest_compiled(group: Group, sizes: tuple[int, int, bool], exact: bool) -> str:
    r"""The fastest of them in a graph that serves any number of samples: for a batch of usual size, on one thread.

    sizes: entries, features, lifting, as of `LinearSizes`.
    """
    entries, features, lifting = sizes
    return cheapest_linear(group, LinearSizes(COMPILED_ROWS, entries, features, lifting, False), exact)


def linear_work(group: Group, s: LinearSizes) -> dict[str, Work]:
    r"""The work of each algorithm of a linear map. Numbers: made of the weight, moved in and out, read of operators."""
    n = group.order
    moved_in, moved_out = s.rows * s.entries, s.rows * s.features * n
    matrix, products = s.entries * s.features * n, s.rows * s.entries * s.features * n
    made, repeats, suffix = (0, 1, "") if s.kept else (1, BACKWARD, " training")
    what = f"{'lifting' if s.lifting else 'group'} linear{suffix}"
    operations = 2 + made * (2 * n if s.lifting else 14)  # the weight is expanded
    dense = Work(f"dense {what}", operations, (4 * made * matrix, moved_in + moved_out, matrix), products, repeats)
    if not s.lifting:
        dense = dense._replace(numbers=(4 * made * matrix, 3 * moved_in + 3 * moved_out, matrix))
    orbit = Work(f"orbit {what}", 6 + 4 * n, (2 * n * moved_in, 3 * moved_out, matrix), products, repeats)
    choices = {"dense": dense, "orbit": orbit}
    fourier = fourier_of(group)
    if fourier is not None:
        blocks = s.entries * s.features * fourier.products / n
        operations = 8 + 2 * n + 2 * fourier.products + 6 * made
        numbers = 10 * made * s.entries * s.features, 5 * moved_in, 5 * moved_out, blocks
        kind = f"{'fourier' if fourier.exact else 'cyclic'} {what}"
        choices["fourier"] = Work(kind, operations, numbers, s.rows * blocks, repeats)
        if not fourier.exact:
            transform = n * (moved_in + moved_out / 2)
            choices["fourier"] = Work(kind, operations, (*numbers, transform / 4), s.rows * blocks, repeats)
    if not s.lifting and n <= MAX_ORDER:
        choices["tokens"] = _token_work(group, s, what, repeats)
    return choices


def _token_work(group: Group, s: LinearSizes, what: str, repeats: int) -> Work:
    r"""Of the transform at every position."""
    n, irreps = group.order, irrep_basis(group)
    channels = s.entries // n
    moved_in, moved_out = s.rows * s.entries, s.rows * s.features * n
    operators = channels * s.features * irreps.products
    made = 0 if s.kept else 6 * channels * s.features * n
    operations = 6 + 2 * irreps.products + (0 if s.kept else 16)
    numbers: tuple[float, ...] = made, 6 * moved_in, 7 * moved_out, n * (moved_in + moved_out) / 4, operators
    if s.chain:  # of its layers only the nonlinearities are transformed: by the times of encoder layers
        numbers = made, 4.5 * moved_in, 4.5 * moved_out, n * (moved_in + moved_out) / 16, operators
    return Work(f"tokens {what}", operations, numbers, s.rows * operators, repeats)


def convolution_work(group: Group, s: Sizes, exact: bool = False) -> dict[str, Work]:
    r"""The work of each algorithm of a convolution, of "fourier" the way that keeps the last bit where `exact`.

    Numbers of "dense": of the expanded filter, in and out. Of "orbit": in and out. Of "fourier": made of the weight, of
    the patches, out, and of the operators read for every block of patches.
    """
    n = group.order
    fiber = 1 if s.lifting else n
    numbers_in, numbers_out = s.pixels_in * s.channels * s.groups * fiber, s.pixels_out * s.features * n
    products = numbers_out * s.channels * fiber * s.taps
    made, repeats, suffix = (0, 1, "") if s.kept else (1, BACKWARD, " training")
    what = f"{'lifting' if s.lifting else 'group'} convolution{suffix}"
    expanded = s.features * n * s.channels * fiber * s.taps
    dense = Work(f"dense {what}", 8, (4 * made * expanded, numbers_in + numbers_out, expanded), products, repeats)
    if interpolates(group):
        return {"dense": dense} | ({} if s.lifting else {"fourier": _steered_work(group, s, what)})
    moved = 3 * n * numbers_in, 3 * numbers_out, expanded  # the filter is read for every element
    choices = {"dense": dense, "orbit": Work(f"orbit {what}", 8 * n, moved, products, repeats)}
    fourier, fast = fourier_of(group), fast_fourier_of(group)
    if not exact and not s.lifting and fast is not None and has_basis(group):
        choices["fourier"] = _pattern_work(group, fast, s, what)
    elif fourier is not None and fast is not None:
        orbits = -(-s.taps // n) + (s.taps > 1) if s.lifting else s.taps
        patches = s.pixels_out * n * orbits * s.channels * s.groups
        weights = made * s.features * s.channels * orbits * n
        frames = n + n // 2 if isinstance(group, Dihedral) else n  # of free pixels, and of those on the mirrors
        steps = max(frames, s.pixels_out / BLOCK_ROWS)
        operators = steps * s.features * s.channels * orbits * fast.products
        operations = 10 + steps * s.groups * (4 + 2 * fast.products)
        blocks = patches * s.features / s.groups * fast.products / n
        numbers = 20 * weights, 5 * patches, 4 * numbers_out, operators
        choices["fourier"] = Work(f"fourier {what}", operations, numbers, blocks, repeats)
    if s.taps == 1 and s.groups == 1 and not s.lifting and s.pixels_in == s.pixels_out:
        sizes = LinearSizes(s.pixels_in, s.channels * n, s.features, False, s.kept)
        choices["tokens"] = _token_work(group, sizes, what, repeats)
    return choices


def _pattern_work(group: Group, fast: Fourier, s: Sizes, what: str) -> Work:
    r"""Of `PatternKernel`: a program of sums, a product for each irrep, and sums that write the outputs.

    What a block reads and writes stays in the caches: half the price.
    """
    n, channels = group.order, s.channels * s.groups
    operators = s.features * s.channels * s.taps * fast.products
    if has_numba():
        return _compiled_pattern_work(group, s, operators, what)
    sums, numbers = steps_and_numbers(basis_of(group, s.kernel), s.kernel)
    blocks = max(1.0, s.pixels_out / BLOCK.positions_of(4 * n * s.taps * s.channels))
    made = 0 if s.kept else 8 * s.features * s.channels * s.taps * n
    moved = s.pixels_out * numbers / 2 * channels, 2 * s.pixels_in * n * channels, 5 * s.pixels_out * s.features * n
    operations = 10 + blocks * s.groups * (2 * sums + 4 * fast.products + 6 * n)  # on views of many axes
    products, repeats = s.pixels_out * operators, 1 if s.kept else BACKWARD
    return Work(f"patterns {what}", operations, (made, *moved, blocks * operators), products, repeats)


def _compiled_pattern_work(group: Group, s: Sizes, operators: int, what: str) -> Work:
    r"""The same where numba does it; operators: how many numbers they have.

    By the times of 180 random layers on an Intel Xeon (family 6, model 167), one thread: 5 and 95 % of them were 0.82
    and 1.16 times what this says.
    """
    n, channels = group.order, s.channels * s.groups
    block = BLAS_BLOCK if can_call_blas() else BLOCK
    blocks = max(1.0, s.pixels_out / block.positions_of(4 * n * s.taps * s.channels))
    sums, _ = steps_and_numbers(basis_of(group, s.kernel), s.kernel)
    lines = 100 * sums * s.groups * s.pixels_out / USUAL_WIDTH  # what a sum of lines costs beside its numbers
    calls = 0 if can_call_blas() else 10 * blocks * s.groups
    operations = (10 if s.kept else 38) * s.groups + calls
    made = 0 if s.kept else 13 * s.features * s.channels * s.taps * n
    patches = 1.5 * s.pixels_out * n * s.taps * channels
    moved = patches, s.pixels_in * n * channels, (3 if s.kept else 7) * s.pixels_out * s.features * n
    repeats = 1 if s.kept else BACKWARD
    numbers = made, *moved, 2 * blocks * operators, lines
    return Work(f"compiled patterns {what}", operations, numbers, s.pixels_out * operators, repeats)


def _steered_work(group: Rotations, s: Sizes, what: str) -> Work:
    r"""Of "fourier" for a group that interpolates; numbers: made of the weight, of the coefficients, out."""
    n, coefficients = group.order, basis(s.kernel[0]).shape[1]
    made = s.pixels_out * n * coefficients * s.channels * s.groups
    products = rotations_fourier(group).products
    weights = 0 if s.kept else s.features * s.channels * coefficients * n
    numbers = 10 * weights, 6 * made, 4 * s.pixels_out * s.features * n, n * made / 4
    repeats = 1 if s.kept else BACKWARD
    return Work(f"steered {what}", 20 + 12 * n, numbers, made * s.features / s.groups * products / n, repeats)


def forget_choices() -> None:
    r"""Choose anew from now on, for a calibration is new."""
    for remembered in (cheapest_linear, cheapest_convolution, _transform_gains):
        remembered.cache_clear()
    _FORGOTTEN.append(None)


def times_forgotten() -> int:
    r"""How often choices were forgotten: what was chosen before is chosen anew."""
    return len(_FORGOTTEN)


_FORGOTTEN: list[None] = []
