r"""Groups, their elements, and what they act on, as hypothesis draws them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

from equilayers._checks import check_int, refuse
from equilayers.groups import (
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    DirectProduct,
    Group,
    PermutationGroup,
    as_group,
)
from equilayers.testing.strategies._spaces import Needs, needs

FEW = st.integers(1, 3)
# Symmetric and alternating groups, and the quaternions 1, i, -1, -i, j, k, -j, -k, times i and times j from the left.
PERMUTATIONS = (
    PermutationGroup([[1, 0, 2], [1, 2, 0]]),
    PermutationGroup([[1, 2, 0, 3], [1, 0, 3, 2]]),
    PermutationGroup([[1, 0, 2, 3], [1, 2, 3, 0]]),
    PermutationGroup([[1, 2, 3, 0, 5, 6, 7, 4], [4, 7, 6, 5, 2, 1, 0, 3]]),
)


Makers = list[tuple[int, Callable[[], Group]]]  # orders, and how such a group is made


def _turns(most: int) -> Makers:  # noqa: ARG001 - of 1, 2 and 4 elements
    return [(n, partial(CyclicRotation, n)) for n in (1, 2, 4)]


def _mirrors(most: int) -> Makers:  # noqa: ARG001 - of 2, 4 and 8 elements
    return [(2 * n, partial(Dihedral, n)) for n in (1, 2, 4)]


def _shifts(most: int) -> Makers:
    return [(n, partial(CyclicTranslation, n, dim)) for n in range(1, most + 1) for dim in (-1, -2)]


def _products(most: int) -> Makers:
    r"""Of shifts along both axes, and of a half turn or a mirror with shifts."""
    made: Makers = [(4, lambda: DirectProduct(CyclicRotation(2), CyclicTranslation(2)))]
    made.append((6, lambda: DirectProduct(Dihedral(1), CyclicTranslation(3, dim=-2))))
    return made + [
        (n * m, partial(_shifts_both_ways, n, m)) for n in range(1, most + 1) for m in range(1, most // n + 1)
    ]


def _shifts_both_ways(n: int, m: int) -> Group:
    return DirectProduct(CyclicTranslation(n), CyclicTranslation(m, dim=-2))


def _permutations(most: int) -> Makers:  # noqa: ARG001
    known = [PermutationGroup([[0, 1, 2]]), *PERMUTATIONS]
    return [(group.order, partial(PermutationGroup, group.generators)) for group in known]


KINDS: dict[type[Group], Callable[[int], Makers]] = {
    CyclicRotation: _turns,
    Dihedral: _mirrors,
    CyclicTranslation: _shifts,
    DirectProduct: _products,
    PermutationGroup: _permutations,
}


def groups(*kinds: type[Group], min_order: int = 1, max_order: int = 12) -> st.SearchStrategy[Group]:
    r"""Groups, the smaller the simpler.

    Args:
        kinds: classes of `equilayers.groups`; all of them if none is named. `groups(CyclicRotation, Dihedral)` draws
            turns and mirrors. Products are of shifts along both axes, of half turns and of mirrors with shifts;
            permutation groups are known ones, and cyclic ones of a random permutation.
        min_order: the least number of elements.
        max_order: the most.

    Raises:
        TypeError: a kind that is no class of `equilayers.groups`.
        ValueError: no group of the kinds has so many elements.
    """
    caller = "groups"
    check_int(caller, "max_order", max_order, check_int(caller, "min_order", min_order, 1))
    strategies: list[st.SearchStrategy[Group]] = []
    for kind in kinds or tuple(KINDS):
        if kind not in KINDS:
            known = ", ".join(each.__name__ for each in KINDS)
            refuse(caller, f"kinds among {known}", repr(kind), "Pass one or more of these classes.", TypeError)
        found = [(order, make) for order, make in KINDS[kind](max_order) if min_order <= order <= max_order]
        if found:
            found.sort(key=lambda pair: pair[0])
            strategies.append(st.sampled_from([make for _, make in found]).map(lambda make: make()))
        if kind is PermutationGroup and min_order <= 3 and max_order >= 12:  # most random permutations are allowed then
            strategies.append(_cyclic().filter(lambda group: min_order <= group.order <= max_order))
    if not strategies:
        got = f"{min_order}..{max_order} for {', '.join(kind.__name__ for kind in kinds)}"
        refuse(caller, "min_order..max_order to hold the order of a group", got, "Widen the range.")
    return st.one_of(strategies)


@st.composite
def _cyclic(draw: st.DrawFn) -> Group:
    return PermutationGroup([draw(st.permutations(range(draw(st.integers(1, 7)))))])


def elements(group: Group) -> st.SearchStrategy[int]:
    r"""Elements of the group, the identity first."""
    return st.integers(0, as_group("elements", group).order - 1)


def spaces(group: Group, max_size: int = 16, *, ndim: int | None = None) -> st.SearchStrategy[tuple[int, ...]]:
    r"""Shapes (H, W) that the group acts on, or (W,) where that is enough for it.

    Args:
        group: the symmetry.
        max_size: of an axis in pixels, unless the group needs more.
        ndim: 2 for (H, W) alone, 1 for (W,) alone.

    Raises:
        TypeError: group is none of `equilayers.groups`.
        ValueError: max_size below 1, or an ndim that the group does not act on.
    """
    caller = "spaces"
    want = needs(caller, as_group(caller, group))
    check_int(caller, "max_size", max_size, 1)
    if ndim is not None:
        check_int(caller, f"ndim for {group!r}", ndim, want.ndim, 2)
    return _spaces(want, max_size, ndim)


@st.composite
def _spaces(draw: st.DrawFn, want: Needs, max_size: int, ndim: int | None) -> tuple[int, ...]:
    def side(unit: int) -> int:
        return unit * draw(st.integers(1, max(1, max_size // unit)))

    if want.square:
        length = side(math.lcm(want.height, want.width))
        return length, length
    width = side(want.width) if want.exact is None else want.exact
    flat = ndim == 1 or (ndim is None and want.ndim == 1 and draw(st.booleans()))
    return (width,) if flat else (side(want.height), width)


def images(
    group: Group,
    *,
    batch: int | None = None,
    channels: int | None = None,
    size: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    max_size: int = 16,
) -> st.SearchStrategy[Tensor]:
    r"""Images (B, C, H, W) that the group acts on: zeros, then small whole numbers, then normal ones.

    Args:
        group: the symmetry.
        batch: number of images; 1 to 3 if None.
        channels: of each; 1 to 3 if None.
        size: (H, W), or what else the group acts on; drawn if None.
        dtype: floating-point.
        max_size: of H and W where they are drawn, unless the group needs more.

    Raises:
        TypeError: group is no group, or none of `equilayers.groups` where size is None.
        ValueError: a size that the group does not act on.
    """
    return _arrays("images", group, (), batch, channels, size, dtype, max_size)


def features(
    group: Group,
    *,
    batch: int | None = None,
    channels: int | None = None,
    size: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    max_size: int = 16,
) -> st.SearchStrategy[Tensor]:
    r"""Regular features (B, C, |G|, H, W) of the group, or (B, C, |G|) for `size=()`; values as of `images`.

    Args:
        group: the symmetry.
        batch: number of samples; 1 to 3 if None.
        channels: fields of each; 1 to 3 if None.
        size: (H, W), or (); drawn if None.
        dtype: floating-point.
        max_size: of H and W where they are drawn, unless the group needs more.

    Raises:
        TypeError, ValueError: as `images`.
    """
    fiber = (as_group("features", group).order,)
    return _arrays("features", group, fiber, batch, channels, size, dtype, max_size)


def vectors(
    group: Group,
    *,
    batch: int | None = None,
    channels: int | None = None,
    size: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    max_size: int = 16,
) -> st.SearchStrategy[Tensor]:
    r"""Fields of vectors (B, C, 2, H, W) that the group moves, or vectors (B, C, 2) for `size=()`; as of `images`.

    Args:
        group: rotations and mirrors, or shifts.
        batch: number of samples; 1 to 3 if None.
        channels: fields of each; 1 to 3 if None.
        size: (H, W), or (); drawn if None.
        dtype: floating-point.
        max_size: of H and W where they are drawn, unless the group needs more.

    Raises:
        TypeError, ValueError: as `images`; ValueError also for a group that does not act on the plane.
    """
    as_group("vectors", group).vector_matrix(0)
    return _arrays("vectors", group, (2,), batch, channels, size, dtype, max_size)


def _arrays(
    caller: str,
    group: Group,
    fiber: tuple[int, ...],
    batch: int | None,
    channels: int | None,
    size: tuple[int, ...] | None,
    dtype: torch.dtype,
    max_size: int,
) -> st.SearchStrategy[Tensor]:
    group = as_group(caller, group)
    if size is not None and (size or not fiber):
        group.check_space(tuple(size), caller)
    counts = [
        FEW if n is None else st.just(check_int(caller, name, n, 0))
        for name, n in (("batch", batch), ("channels", channels))
    ]
    space = spaces(group, max_size, ndim=2) if size is None else st.just(tuple(size))
    return st.tuples(*counts, space).flatmap(lambda drawn: tensors((*drawn[:2], *fiber, *drawn[2]), dtype))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, *, tied: bool = True) -> Tensor:
    r"""Zeros, whole numbers up to 1, 2 or 3, or normal ones, from a seed: drawn at once however large, and shrunk.

    Normal ones alone where they must not be `tied`.
    """
    size = draw(st.integers(0, 6)) if tied else 4
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if size <= 3:
        return torch.randint(-size, size + 1, shape, generator=generator, device="cpu").to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
