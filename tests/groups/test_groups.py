"""The groups are groups, and they move arrays as the conventions say, bit by bit."""

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import reference
from equilayers import groups
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group, PermutationGroup
from equilayers.nn import LiftingLinear
from strategies import (
    ALL_GROUPS,
    C2,
    C4,
    D4,
    PERMUTATIONS,
    QUATERNIONS,
    ROTATIONS,
    S3,
    SOME_GROUPS,
    T3,
    TRANSLATIONS,
    actions,
    dtypes,
    filled,
    name,
    some_spaces,
)

every = pytest.mark.parametrize("group", ALL_GROUPS, ids=name)
some = pytest.mark.parametrize("group", SOME_GROUPS, ids=name)


def group_faults(table: NDArray[np.int64]) -> list[str]:
    """What keeps a table from being the Cayley table of a group with identity 0."""
    n = np.arange(len(table))
    if table.shape != (len(n), len(n)) or not np.isin(table, n).all():
        return ["closure"]
    latin = all((np.sort(table, axis) == (n if axis else n[:, None])).all() for axis in (0, 1))
    identity = (table[0] == n).all() and (table[:, 0] == n).all()
    associative = (table[table[:, :, None], n] == table[n[:, None, None], table]).all()
    laws = {"Latin square": latin, "identity": identity, "associativity": associative}
    return [name for name, holds in laws.items() if not holds]


@every
def test_axioms_and_products_over_all_elements(group: Group) -> None:
    table = group.cayley_table
    assert group.order == len(table) == reference.order(group)
    assert group_faults(table) == []
    for g in range(group.order):
        inverse = group.inverse(g)
        assert group.compose(g, inverse) == group.compose(inverse, g) == 0
        assert [group.compose(g, h) for h in range(group.order)] == table[g].tolist()
        assert table[g].tolist() == [reference.compose(group, g, h) for h in range(group.order)]
        assert type(group.compose(g, g)) is type(inverse) is int


def test_group_faults_finds_each_broken_axiom() -> None:
    c4 = C4.cayley_table
    broken = c4.copy()
    broken[1, 1] = 4
    assert group_faults(broken) == ["closure"]
    assert group_faults(np.roll(c4, 1, axis=0)) == ["identity"]  # the product g + h - 1
    broken = c4.copy()
    broken[1, 1] = 3
    assert "Latin square" in group_faults(broken)
    # A Latin square with an identity, and no group: the smallest such has order 5.
    loop = np.array([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]])
    assert group_faults(loop) == ["associativity"]


@settings(max_examples=4 * settings.default.max_examples)
@given(actions(), st.lists(st.integers(1, 3), max_size=3), dtypes(), st.data())
def test_action_is_the_reference_action(
    action: tuple[Group, tuple[int, ...]], leading: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    group, space = action
    x = filled((*leading, *space), dtype)
    g = data.draw(st.integers(0, group.order - 1), label="g")
    moved = group.act(g, x)
    assert (moved.shape, moved.dtype, moved.device) == (x.shape, dtype, x.device)
    index = torch.as_tensor(reference.sources(group, g, space[-2] if len(space) > 1 else 1, space[-1]))
    assert torch.equal(moved, x.flatten(-len(space))[..., index].view(moved.shape))


@some
def test_left_action_over_all_pairs(group: Group) -> None:
    for space in some_spaces(group):
        x = torch.arange(2 * np.prod(space)).view(2, *space)
        f = torch.arange(2 * group.order * np.prod(space)).view(1, 2, group.order, *space)
        for g in range(group.order):
            for h in range(group.order):
                gh = group.compose(g, h)
                assert torch.equal(group.act(gh, x), group.act(g, group.act(h, x)))
                assert torch.equal(group.act_regular(gh, f), group.act_regular(g, group.act_regular(h, f)))


@some
def test_regular_action_is_the_reference_action(group: Group) -> None:
    for space in [(), *(s for s in some_spaces(group) if len(s) == 2)]:
        f = torch.arange(2 * 3 * group.order * int(np.prod(space))).view(2, 3, group.order, *space)
        for g in range(group.order):
            assert np.array_equal(group.act_regular(g, f), reference.act_regular(group, g, f.numpy()))


@some
def test_identity_returns_the_same_object_and_orbit_stacks_all(group: Group) -> None:
    x = torch.randn(2, *some_spaces(group)[0])
    f = torch.randn(2, 3, group.order)
    assert group.act(0, x) is x
    assert group.act_regular(0, f) is f
    orbit = group.orbit(x)
    assert orbit.shape == (group.order, *x.shape)
    assert all(torch.equal(orbit[g], group.act(g, x)) for g in range(group.order))


@some
def test_gradient_of_the_action_is_the_inverse_action(group: Group) -> None:
    space = some_spaces(group)[0]
    x = torch.randn(2, *space, requires_grad=True)
    f = torch.randn(2, 3, group.order, requires_grad=True)
    for g in range(group.order):
        for v, act in ((x, group.act), (f, group.act_regular)):
            cotangent = torch.randn_like(v)
            (gradient,) = torch.autograd.grad(act(g, v), v, cotangent)
            assert torch.equal(gradient, act(group.inverse(g), cotangent))


CONVENTIONS: list[tuple[Group, Callable[[int, Tensor], Tensor]]] = [
    *((CyclicRotation(n), lambda g, x, n=n: torch.rot90(x, 4 * g // n, (-2, -1))) for n in (1, 2, 4)),
    *(
        (Dihedral(n), lambda g, x, n=n: torch.rot90(torch.flip(x, [-1]) if g >= n else x, g % n * 4 // n, (-2, -1)))
        for n in (1, 2, 4)
    ),
    (T3, lambda g, x: torch.roll(x, g * 4, -1)),
    (CyclicTranslation(4, dim=-2), lambda g, x: torch.roll(x, g * 3, -2)),
    (DirectProduct(T3, CyclicTranslation(4, dim=-2)), lambda g, x: torch.roll(x, (g // 4 * 4, g % 4 * 3), (-1, -2))),
]


@pytest.mark.parametrize(("group", "act"), CONVENTIONS, ids=lambda v: name(v) if isinstance(v, Group) else "")
def test_conventions_of_the_design(group: Group, act: Callable[[int, Tensor], Tensor]) -> None:
    x = torch.randn(2, 12, 12)
    for g in range(group.order):
        assert torch.equal(group.act(g, x), act(g, x))


@pytest.mark.parametrize("group", PERMUTATIONS, ids=name)
def test_permutations_send_entry_i_to_place_p_i(group: PermutationGroup) -> None:
    elements = reference.elements_of(group)
    assert len(set(elements)) == group.order
    assert group.degree == len(elements[0])
    x = torch.randn(2, 3, group.degree)
    for g, p in enumerate(elements):
        assert torch.equal(group.act(g, x)[..., list(p)], x)
    assert torch.equal(PermutationGroup([[1, 2, 0]]).act(1, torch.arange(3)), torch.roll(torch.arange(3), 1))


@every
def test_value_semantics(group: Group) -> None:
    for twin in (pickle.loads(pickle.dumps(group)), eval(repr(group), vars(groups).copy())):
        assert twin == group
        assert hash(twin) == hash(group)
        assert type(twin) is type(group)
        assert np.array_equal(twin.cayley_table, group.cayley_table)
    with pytest.raises(FrozenInstanceError):
        group.n = 5  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="read-only"):
        group.cayley_table[0, 0] = 1


def test_different_groups_differ() -> None:
    distinct = [*ROTATIONS, *TRANSLATIONS, *PERMUTATIONS, DirectProduct(C2, CyclicTranslation(2))]
    assert len(set(distinct)) == len(distinct)
    involutions = lambda group: sum(group.compose(g, g) == 0 for g in range(group.order)) - 1  # noqa: E731
    assert (involutions(QUATERNIONS), involutions(D4)) == (1, 5)  # both of order 8
    assert PermutationGroup([(1, 0, 2), (1, 2, 0)]) == S3 != PermutationGroup([[1, 2, 0], [1, 0, 2]])


def test_inverses_of_a_large_group_need_no_cayley_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """S7 has 25 million products; a lifting layer needs the 5040 inverses alone."""
    s7 = PermutationGroup([[1, 2, 3, 4, 5, 6, 0], [1, 0, 2, 3, 4, 5, 6]])
    monkeypatch.setattr(PermutationGroup, "_table", lambda _: pytest.fail("the Cayley table was built"))
    x = torch.arange(7.0)
    for g in (1, 77, 5039):
        assert torch.equal(s7.act(s7.inverse(g), s7.act(g, x)), x)
    assert LiftingLinear(s7, (7,), 2)(x[None]).shape == (1, 2, 5040)
