"""What tests draw beyond the strategies of the library, and the fixed lists that they walk through."""

import itertools

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group, PermutationGroup
from equilayers.testing.strategies import _tensors as drawn
from equilayers.testing.strategies._spaces import needs

MAX_ORDER = 36


def regular(table: list[list[int]], right: bool = False) -> PermutationGroup:
    """A group given by its multiplication table, acting on itself from the left, or from the right by the inverse."""
    size = range(len(table))
    if not right:
        return PermutationGroup([[table[g][h] for h in size] for g in size])
    inverse = [table[g].index(0) for g in size]
    return PermutationGroup([[table[h][inverse[g]] for h in size] for g in size])


def _symmetric_table(n: int) -> list[list[int]]:
    elements = list(itertools.permutations(range(n)))
    return [[elements.index(tuple(p[i] for i in q)) for q in elements] for p in elements]


S3, A4, S4, QUATERNIONS = drawn.PERMUTATIONS
# Rotations of the cube, as they permute its faces +x, -x, +y, -y, +z, -z.
OCTAHEDRAL = PermutationGroup([[2, 3, 1, 0, 4, 5], [0, 1, 4, 5, 3, 2]])
TRIVIAL = PermutationGroup([[0, 1, 2]])
S3_TWO_SIDED = DirectProduct(regular(_symmetric_table(3)), regular(_symmetric_table(3), right=True))

ROTATIONS: list[Group] = [kind(n) for kind in (CyclicRotation, Dihedral) for n in (1, 2, 4)]
C2, C4, T3 = CyclicRotation(2), CyclicRotation(4), CyclicTranslation(3)
D1, D2, D4 = Dihedral(1), Dihedral(2), Dihedral(4)
TURNING: list[Group] = [C2, C4, D1, D2, D4]
TRANSLATIONS: list[Group] = [CyclicTranslation(n, dim) for n in range(1, 37) for dim in (-1, -2)]
PRODUCTS: list[Group] = [
    DirectProduct(CyclicTranslation(3), CyclicTranslation(4, dim=-2)),
    DirectProduct(CyclicTranslation(2, dim=-2), CyclicTranslation(5)),
    DirectProduct(CyclicRotation(2), CyclicTranslation(2)),
    DirectProduct(DirectProduct(CyclicRotation(2), CyclicTranslation(2)), CyclicTranslation(2, dim=-2)),
    DirectProduct(Dihedral(1), CyclicTranslation(7, dim=-2)),
    S3_TWO_SIDED,
]
PERMUTATIONS: list[Group] = [S3, S4, A4, QUATERNIONS, TRIVIAL, PermutationGroup([[1, 2, 0, 4, 3]])]
ALL_GROUPS: list[Group] = [*ROTATIONS, *TRANSLATIONS, *PRODUCTS, *PERMUTATIONS]
SOME_GROUPS: list[Group] = [
    *ROTATIONS,
    *(CyclicTranslation(n) for n in (1, 2, 3, 4, 5, 6, 12)),
    CyclicTranslation(3, dim=-2),
    *PRODUCTS[:3],
    *PERMUTATIONS,
]
# What the group Fourier transform knows: one group for each transform, and cyclic ones of odd and even order.
FOURIER_GROUPS: list[Group] = [
    *(CyclicRotation(n) for n in (2, 4)),
    *(Dihedral(n) for n in (1, 2, 4)),
    *(CyclicTranslation(n) for n in (2, 3, 4, 5, 6)),
]


def name(group: Group) -> str:
    """A short name for a test."""
    return repr(group) if len(repr(group)) < 60 else f"{type(group).__name__} of order {group.order}"


each_group = pytest.mark.parametrize("group", TURNING, ids=name)


def algorithms_of(group: Group) -> list[str]:
    """The algorithms that the linear maps have for the group."""
    fourier = group.order == 1 or isinstance(group, CyclicRotation | Dihedral | CyclicTranslation)
    return ["auto", "orbit", "dense", *(["fourier"] if fourier else [])]


def some_spaces(group: Group) -> list[tuple[int, ...]]:
    """Two small spaces of the group, where it can be one odd and one even."""
    want = needs("some_spaces", group)
    if want.exact is not None:
        return [(want.exact,)]
    sizes = [(want.height * 3, want.width * 3), (want.height * 4, want.width * (4 if want.square else 2))]
    return [size[-want.ndim :] for size in sizes]


def rotations() -> st.SearchStrategy[Group]:
    return drawn.groups(CyclicRotation, Dihedral)


def groups() -> st.SearchStrategy[Group]:
    """Those of the library, larger ones too, and the fixed lists."""
    return st.one_of(drawn.groups(max_order=MAX_ORDER), st.sampled_from([*PRODUCTS, *PERMUTATIONS]))


@st.composite
def actions(draw: st.DrawFn, max_size: int = 64) -> tuple[Group, tuple[int, ...]]:
    """A group and a space it acts on."""
    group = draw(groups())
    return group, draw(drawn.spaces(group, max_size))


def batches() -> st.SearchStrategy[int]:
    return st.sampled_from([1, 2, 3, 5, 7])


def float_dtypes() -> st.SearchStrategy[torch.dtype]:
    return st.sampled_from([torch.float32, torch.float64])


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """Dtypes of every kind an action must move: floats down to half, integers, truth values, complex numbers."""
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    return st.sampled_from([*kinds, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64])


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random entries of any dtype."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, dtype=wide, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
