r"""Patches in a basis adapted to the group, with few sums.

The group acts on fiber and taps of a patch together, (u, t) -> (h u, h t), and a group convolution is one product per
irrep of this action. Its basis is built in two steps. Fiber and taps are each split into irreps: the fiber on whole
maps, before there are any patches; the taps into *patterns*, even or odd along either axis, sums and differences of
maps shifted against each other. Then the two are coupled: with a one-dimensional irrep by naming alone, of two
two-dimensional ones by one more sum.

The irreps are those of `_fourier.transforms`: of rotations by quarter turns r and the mirror m, the signs A1 (1, 1),
A2 (1, -1), B1 (-1, 1), B2 (-1, -1), and the plane E, on which r is `[[0, -1], [1, 0]]` and m is `diag(1, -1)`: of
directions it is (up, left).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from equilayers._checks import Pair
from equilayers.functional._convolution.geometry import swaps_axes
from equilayers.groups import Dihedral, Group


class Along(NamedTuple):
    r"""Two taps of one axis, added, or if `odd` subtracted; one tap where both are the same."""

    first: int
    last: int
    odd: bool = False

    @property
    def single(self) -> bool:
        r"""Whether it is one tap."""
        return self.first == self.last


class Pattern(NamedTuple):
    r"""Up to four taps of the map in a plane of the workspace: `sum over x and y of signs · map(y, x)`."""

    plane: int
    x: Along
    y: Along


class Term(NamedTuple):
    r"""A coefficient of the patches: a pattern, or the sum, or if `minus` the difference, of two."""

    left: Pattern
    right: Pattern | None = None
    minus: bool = False

    def negated(self) -> Term:
        r"""The term with the other sign; it must be a difference."""
        if self.right is not None:
            return Term(self.right, self.left, minus=True)
        (plane, x, y) = self.left
        return Term(Pattern(plane, x, Along(y.last, y.first, y.odd)))


class Butterfly(NamedTuple):
    r"""`planes[out] = planes[a] ± planes[b]`."""

    minus: bool
    out: int
    a: int
    b: int


@dataclass(frozen=True, eq=False)  # each is made once: to compare all terms would take longer than to make it
class Basis:
    r"""The basis for one group and kernel.

    planes: how many maps the workspace has room for, the planes of the fiber first. fiber: the transform of the fiber,
    in order. blocks: for each block of the group's transform its rows, and the terms of each. pair: whether the last
    block is a complex pair, whose product takes the sum of its two rows as well.
    """

    planes: int
    fiber: tuple[Butterfly, ...]
    blocks: tuple[tuple[tuple[Term, ...], ...], ...]
    pair: bool = False


PLUS, MINUS = False, True
SIGNS = {"A1": (0, 0), "A2": (0, 1), "B1": (1, 0), "B2": (1, 1)}
NAMES = {signs: name for name, signs in SIGNS.items()}
# (sums and differences, planes of one-dimensional irreps, pairs of planes of the copies of E)
C4 = (
    ((PLUS, 4, 0, 2), (PLUS, 5, 1, 3), (MINUS, 2, 0, 2), (MINUS, 3, 1, 3), (PLUS, 0, 4, 5), (MINUS, 1, 4, 5)),
    {"A1": 0, "B1": 1},
    ((2, 3),),
)
D4 = (
    (
        *((PLUS, 8, 0, 2), (PLUS, 9, 1, 3), (PLUS, 10, 4, 6), (PLUS, 11, 5, 7)),
        *((MINUS, 2, 0, 2), (MINUS, 3, 1, 3), (MINUS, 6, 4, 6), (MINUS, 7, 5, 7)),
        *((PLUS, 0, 8, 9), (PLUS, 4, 10, 11), (MINUS, 1, 8, 9), (MINUS, 5, 10, 11)),
        *((PLUS, 8, 0, 4), (PLUS, 9, 1, 5), (PLUS, 10, 2, 6), (PLUS, 11, 3, 7)),
        *((MINUS, 12, 0, 4), (MINUS, 13, 1, 5), (MINUS, 14, 2, 6), (MINUS, 15, 7, 3)),
    ),
    {"A1": 8, "A2": 12, "B1": 9, "B2": 13},
    ((10, 11), (15, 14)),
)
HALF = ((PLUS, 2, 0, 1), (MINUS, 1, 0, 1)), (2, 1)
D2 = (
    (
        *((PLUS, 4, 0, 1), (PLUS, 5, 2, 3), (MINUS, 1, 0, 1), (MINUS, 3, 2, 3)),
        *((PLUS, 0, 4, 5), (MINUS, 2, 4, 5), (PLUS, 4, 1, 3), (MINUS, 3, 1, 3)),
    ),
    (0, 2, 4, 3),
)


def has_basis(group: Group) -> bool:
    r"""Whether there is one: for C2, C4, D1, D2 and D4."""
    return group.exactness == "bitwise" and group.order > 1


@functools.cache
def basis_of(group: Group, kernel: Pair) -> Basis:
    r"""The basis of patches of this kernel."""
    if not swaps_axes(group):
        return _of_signs(group, kernel)
    mirrored = isinstance(group, Dihedral)
    steps, scalars, vectors = D4 if mirrored else C4
    rows = _coupled(scalars, vectors, kernel[0])
    signs = [rows[name] for name in SIGNS] if mirrored else [rows["A1"] + rows["A2"], rows["B1"] + rows["B2"]]
    made = _basis(group, steps, [*([row] for row in signs), [rows["E1"], rows["E2"]]])
    return replace(made, pair=not mirrored)


def _basis(group: Group, steps: Iterable[tuple[bool, int, int, int]], blocks: list[list[list[Term]]]) -> Basis:
    fiber = tuple(itertools.starmap(Butterfly, steps))
    return Basis(2 * group.order, fiber, tuple(tuple(tuple(row) for row in block) for block in blocks))


def _of_signs(group: Group, kernel: Pair) -> Basis:
    r"""For half turns and mirrors, whose irreps are signs: a pattern only decides to which of them a map belongs."""
    half = group.order == 2
    steps, planes = HALF if half else D2
    only_x = half and isinstance(group, Dihedral)  # the mirror leaves y alone
    rows: list[list[Term]] = [[] for _ in planes]
    lines = [Along(i, i) for i in range(kernel[0])] if only_x else itertools.chain(*_along(kernel[0]))
    for x, y in itertools.product(itertools.chain(*_along(kernel[1])), lines):
        turned, mirrored = int(x.odd != y.odd), int(x.odd)
        sign = mirrored if only_x else turned if half else 2 * turned + mirrored
        for number, plane in enumerate(planes):
            rows[number ^ sign].append(Term(Pattern(plane, x, y)))
    return _basis(group, steps, [[row] for row in rows])


def _along(taps: int) -> tuple[list[Along], list[Along]]:
    r"""The even and the odd functions of the taps of an axis."""
    pairs = [(i, taps - 1 - i) for i in range((taps + 1) // 2)]
    return [Along(i, j) for i, j in pairs], [Along(i, j, odd=True) for i, j in pairs[: taps // 2]]


def _scalars(plane: int, taps: int) -> dict[str, list[Term]]:
    r"""The terms of one map that quarter turns and mirrors multiply by signs."""
    even, odd = _along(taps)
    found: dict[str, list[Term]] = {name: [] for name in SIGNS}
    for line, same, other in (even, "A1", "B1"), (odd, "B2", "A2"):
        found[same] += [Term(Pattern(plane, a, a)) for a in line]
        for a, b in itertools.combinations(line, 2):
            one, two = Pattern(plane, a, b), Pattern(plane, b, a)
            found[same].append(Term(one, two))
            found[other].append(Term(one, two, minus=True))
    return found


def _vectors(plane: int, taps: int) -> list[tuple[Pattern, Pattern]]:
    r"""The pairs of patterns (odd along y, odd along x) of one map that form a plane E."""
    even, odd = _along(taps)
    return [(Pattern(plane, a, b), Pattern(plane, b, a)) for a, b in itertools.product(even, odd)]


def _coupled(scalars: dict[str, int], vectors: tuple[Pair, ...], taps: int) -> dict[str, list[Term]]:
    r"""The terms of every irrep, of maps that are signs and maps that are pairs in E, with the patterns of taps."""
    rows: dict[str, list[Term]] = {name: [] for name in (*SIGNS, "E1", "E2")}
    for name, plane in scalars.items():
        for other, terms in _scalars(plane, taps).items():
            rows[NAMES[_times(name, other)]] += terms
        for up, left in _vectors(plane, taps):
            _add(rows, name, Term(up), Term(left))
    for first, second in vectors:
        ones, twos = _scalars(first, taps), _scalars(second, taps)
        for name in SIGNS:
            for one, two in zip(ones[name], twos[name], strict=True):
                _add(rows, name, one, two)
        for (up, left), (other_up, other_left) in zip(_vectors(first, taps), _vectors(second, taps), strict=True):
            rows["A1"].append(Term(up, other_left))
            rows["B1"].append(Term(up, other_left, minus=True))
            rows["B2"].append(Term(left, other_up))
            rows["A2"].append(Term(left, other_up, minus=True))
    return rows


def _times(a: str, b: str) -> tuple[int, int]:
    (r, m), (s, n) = SIGNS[a], SIGNS[b]
    return r ^ s, m ^ n


def _add(rows: dict[str, list[Term]], name: str, v: Term, w: Term) -> None:
    r"""The product of a sign and a vector (v, w) of E, which is a vector of E."""
    made = {
        "A1": lambda: (v, w),
        "A2": lambda: (w, v.negated()),
        "B1": lambda: (v.negated(), w),
        "B2": lambda: (w, v),
    }[name]()
    for row, term in zip(("E1", "E2"), made, strict=True):
        rows[row].append(term)
