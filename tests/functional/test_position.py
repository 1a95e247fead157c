"""Positions: embeddings, rotary tables, biases, extra tokens; laws bit by bit, values against loops over entries."""

import cmath
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import reference as slow
from equilayers.functional import (
    position_embedding,
    prepend_tokens,
    relative_position_bias,
    relative_position_orbits,
    rotary_embedding,
    rotary_tables,
    rotate_pairs,
)
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from refusals import assert_refused
from strategies import OCTAHEDRAL, S3, filled, name

Pair = tuple[int, int]
Matrix = tuple[Pair, Pair]

C1, C2, C4, D1, D2, D4 = *map(CyclicRotation, (1, 2, 4)), *map(Dihedral, (1, 2, 4))
T3 = CyclicTranslation(3)
PLANE = [C1, C2, C4, D1, D2, D4]
ANY = [*PLANE, T3, S3, OCTAHEDRAL]
DTYPES = (torch.float32, torch.float64)

in_the_plane = pytest.mark.parametrize("group", PLANE, ids=name)
each_group = pytest.mark.parametrize("group", ANY, ids=name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def sizes(group: Group) -> list[tuple[int, ...]]:
    """Odd and even, and of two lengths where there is no quarter turn."""
    if group in (S3, OCTAHEDRAL):
        return [(group.degree,)]
    if group == T3:
        return [(9,), (4, 6)]
    return [(5, 5), (4, 4)] if group in (C4, D4) else [(5, 4), (4, 4), (1, 3)]


def matrix(group: Group, h: int) -> Matrix:
    """What h does to vectors (right, down): mirror first, then counter-clockwise turns."""
    columns = [(-1 if h >= group.n else 1, 0), (0, 1)]
    for _ in range(h % group.n * 4 // group.n):
        columns = [(y, -x) for x, y in columns]
    return columns[0], columns[1]


def middle(size: Pair) -> list[tuple[float, float]]:
    """Positions (right, down) from the middle."""
    return [(j - (size[1] - 1) / 2, i - (size[0] - 1) / 2) for i, j in itertools.product(*map(range, size))]


@each_group
@each_dtype
def test_position_embedding(group: Group, dtype: torch.dtype) -> None:
    for size in sizes(group):
        w = filled((3, *size), dtype)
        e = position_embedding(w, group)
        assert (e.dtype, e.shape) == (dtype, (3, group.order, *size))
        assert e.movedim((0, 1), (-1, -2)).is_contiguous()
        for h in range(group.order):
            assert np.array_equal(e[:, h].numpy(), slow.act(group, h, w.numpy()))
            assert torch.equal(group.act_regular(h, e[None])[0], e)
        assert group.order == 1 or not torch.equal(e[:, 0], e[:, 1])


@in_the_plane
@each_dtype
def test_rotary_tables(group: Group, dtype: torch.dtype) -> None:
    quarter = group in (C4, D4)
    for size, features in itertools.product(sizes(group), (2, 6, 8)):
        cos, sin = rotary_tables(group, features, size, 50.0, dtype=dtype)
        pairs = features // 2
        for h, i, (n, p) in itertools.product(range(group.order), range(pairs), enumerate(middle(size))):
            direction = ((math.sqrt(0.5),) * 2 if quarter else (0, 1)) if i % 2 else (1, 0)
            f = 50.0 ** -(i // 2 / math.ceil(pairs / 2))
            along, across = matrix(group, h)
            omega = [f * (direction[0] * a + direction[1] * b) for a, b in zip(along, across, strict=True)]
            turn = cmath.exp(1j * (omega[0] * p[0] + omega[1] * p[1]))
            at = (h, *divmod(n, size[1]), i)
            assert abs(complex(cos[at], sin[at]) - turn) < 8 * torch.finfo(dtype).eps
        for g, table in itertools.product(range(group.order), (cos, sin)):
            assert table.dtype == dtype
            assert torch.equal(group.act_regular(g, table.movedim(-1, 0)[None])[0].movedim(0, -1), table)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Of tokens (B, N, |G|, heads, d): summed over fiber and channels."""
    return torch.einsum("bsgad,btgad->bast", q, k)


@in_the_plane
def test_rotary_scores_depend_on_offsets_alone(group: Group) -> None:
    size = sizes(group)[0]
    q, k = (filled((1, 1, group.order, 2, 6), torch.float64, seed).expand(1, 20 + 5, -1, -1, -1) for seed in (0, 1))
    q, k = (x[:, : math.prod(size)] for x in (q, k))
    found = scores(*(rotary_embedding(x, group, size) for x in (q, k)))
    of_offset: dict[tuple[float, float], list[Tensor]] = {}
    for (s, p), (t, r) in itertools.product(enumerate(middle(size)), repeat=2):
        of_offset.setdefault((p[0] - r[0], p[1] - r[1]), []).append(found[..., s, t])
    for same in of_offset.values():
        torch.testing.assert_close(torch.stack(same), same[0].expand(len(same), 1, 2), atol=1e-12, rtol=0)
    assert torch.stack([same[0] for same in of_offset.values()]).std() > 0.1


@in_the_plane
@each_dtype
def test_rotary_embedding_commutes(group: Group, dtype: torch.dtype) -> None:
    for size, extra in itertools.product(sizes(group), (0, 2)):
        tokens = lambda f: f.flatten(3).permute(0, 3, 2, 1).unflatten(3, (2, 6))  # noqa: E731
        f, k = (filled((2, 12, group.order, *size), dtype, seed) for seed in (0, 1))
        free = filled((2, extra, group.order, 2, 6), dtype)
        y = rotary_embedding(torch.cat([free, tokens(f)], 1), group, size)
        assert torch.equal(y[:, :extra], free)
        back = lambda y: y[:, extra:].flatten(3).permute(0, 3, 2, 1).unflatten(3, size)  # noqa: B023, E731
        reference = scores(y[:, extra:], rotary_embedding(tokens(k), group, size))
        for g in range(group.order):
            moved = rotary_embedding(torch.cat([free, tokens(group.act_regular(g, f))], 1), group, size)
            assert torch.equal(back(moved), group.act_regular(g, back(y)))
            other = rotary_embedding(tokens(group.act_regular(g, k)), group, size)
            at = torch.from_numpy(group.permutations(size)[g].copy())
            close = {"atol": 100 * torch.finfo(dtype).eps, "rtol": 0}
            torch.testing.assert_close(scores(moved[:, extra:], other), reference[..., at, :][..., at], **close)
        turned = rotary_embedding(tokens(f)[:, :, :, 0], group, size)
        assert torch.equal(turned, rotary_embedding(tokens(f), group, size)[:, :, :, 0])


def test_rotate_pairs() -> None:
    x, angle = filled((2, 3, 8), torch.float64), filled((3, 4), torch.float64)
    y = rotate_pairs(x, angle.cos(), angle.sin())
    for b, n, i in itertools.product(range(2), range(3), range(4)):
        turned = complex(x[b, n, i], x[b, n, i + 4]) * cmath.exp(1j * float(angle[n, i]))
        assert abs(complex(y[b, n, i], y[b, n, i + 4]) - turned) < 1e-14
    for half in (torch.float16, torch.bfloat16):
        low = rotate_pairs(x.to(half), angle.cos(), angle.sin())
        assert low.dtype == half
        torch.testing.assert_close(low.double(), y, atol=8 * torch.finfo(half).eps, rtol=0)
        assert rotary_embedding(x.to(half).view(2, 3, 1, 8), C1, (1, 3)).dtype == half


def test_rotary_tables_are_the_callers_own() -> None:
    """Written to, they spoil nobody's; and what a mode of torch made serves outside of it."""
    x = torch.randn(1, 9, 4, 1, 6)
    with torch.inference_mode():
        y = rotary_embedding(x, C4, 3, 7.0)
    table, _ = rotary_tables(C4, 6, 3, 7.0)
    table.zero_()
    leaf = x.clone().requires_grad_()
    again = rotary_embedding(leaf, C4, 3, 7.0)
    again.sum().backward()
    assert torch.equal(again, y)
    z = torch.func.vmap(torch.func.grad(lambda v: rotary_embedding(v[None], C4, 3, 8.0).sum()))(x)
    assert z.shape == x.shape
    assert rotary_embedding(leaf, C4, 3, 8.0).requires_grad


@in_the_plane
def test_relative_position_bias(group: Group) -> None:
    for size in sizes(group):
        places = [*itertools.product(*map(range, size))]
        orbits = relative_position_orbits(group, size)
        seen: dict[frozenset[Pair], set[int]] = {}
        for (s, p), (t, r) in itertools.product(enumerate(places), repeat=2):
            offset = r[1] - p[1], r[0] - p[0]
            turns = (np.array(matrix(group, h)).T for h in range(group.order))
            orbit = frozenset(tuple((turn @ offset).tolist()) for turn in turns)
            seen.setdefault(orbit, set()).add(int(orbits[s, t]))
        assert all(len(numbers) == 1 for numbers in seen.values())
        assert set.union(*seen.values()) == set(range(len(seen)))
        weight = filled((len(seen), 3), torch.float32)
        bias = relative_position_bias(weight, group, size)
        assert torch.equal(bias, weight[orbits].permute(2, 0, 1))
        for g in range(group.order):
            at = torch.from_numpy(group.permutations(size)[g].copy())
            assert torch.equal(bias[:, at][:, :, at], bias)


@each_group
@each_dtype
def test_prepend_tokens(group: Group, dtype: torch.dtype) -> None:
    for size in sizes(group):
        f, weight = filled((2, 3, group.order, *size), dtype), filled((2, 3), dtype, 1)
        y = prepend_tokens(f, weight)
        assert y.shape == (2, 3, group.order, 2 + math.prod(size))
        assert y.permute(0, 3, 2, 1).is_contiguous()
        assert all(torch.equal(y[b, :, h, :2], weight.T) for b in range(2) for h in range(group.order))
        assert torch.equal(y[..., 2:].unflatten(3, size), f)
        for g in range(group.order):
            moved = prepend_tokens(group.act_regular(g, f), weight)
            assert torch.equal(moved[..., :2], y[..., :2])
            assert torch.equal(moved[..., 2:].unflatten(3, size), group.act_regular(g, y[..., 2:].unflatten(3, size)))


DIFFERENTIABLE: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "position embedding": (lambda w: position_embedding(w, D4), [(2, 3, 3)]),
    "position embedding of a vector": (lambda w: position_embedding(w, S3), [(2, 3)]),
    "rotary embedding": (lambda x: rotary_embedding(x, C4, 2), [(1, 5, 4, 1, 4)]),
    "pairs": (rotate_pairs, [(2, 2, 4), (2, 2), (2, 2)]),
    "bias": (lambda w: relative_position_bias(w, C4, 2), [(3, 2)]),
    "tokens": (prepend_tokens, [(1, 2, 3, 2), (2, 2)]),
}


@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_derivatives(case: str) -> None:
    function, shapes = DIFFERENTIABLE[case]
    inputs = tuple(filled(shape, torch.float64, i).requires_grad_() for i, shape in enumerate(shapes))
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


X, CUBE = torch.zeros(1, 4, 4, 1, 6), torch.zeros(1, 3, 4, 2, 2)
REFUSED: list[tuple[Callable[[], object], type[Exception], str, tuple[str, ...]]] = [
    (lambda: position_embedding(X.int(), C4), TypeError, "position_embedding", ("weight", "floating-point")),
    (lambda: position_embedding(X[0, 0, 0, 0], C4), ValueError, "position_embedding", ("(C, *size)",)),
    (lambda: position_embedding(torch.zeros(3, 4, 5), C4), ValueError, "position_embedding", ("H == W",)),
    (lambda: position_embedding(torch.zeros(3, 4, 4), "C8"), ValueError, "position_embedding", ("exact group",)),
    (lambda: rotary_tables(C4, 7, 4), ValueError, "rotary_tables", ("head_features to be even", "got 7.", "6 or 8")),
    (lambda: rotary_tables(C4, 0, 4), ValueError, "rotary_tables", ("head_features >= 2",)),
    (lambda: rotary_tables(C4, 6.0, 4), TypeError, "rotary_tables", ("head_features to be an int",)),  # type: ignore[arg-type]
    (lambda: rotary_tables(C4, 6, 4, 0), ValueError, "rotary_tables", ("theta to be positive",)),
    (lambda: rotary_tables(C4, 6, 4, math.inf), ValueError, "rotary_tables", ("theta to be positive and finite",)),
    (lambda: rotary_tables(C4, 6, 4, "9"), TypeError, "rotary_tables", ("theta to be a number",)),  # type: ignore[arg-type]
    (lambda: rotary_tables("C8", 6, 4), ValueError, "rotary_tables", ("exact rotations", "C1, C2, C4, D1, D2 or D4")),
    (lambda: rotary_tables(T3, 6, 6), ValueError, "rotary_tables", ("exact rotations", "CyclicTranslation(3")),
    (lambda: rotary_tables(C4, 6, (4, 5)), ValueError, "rotary_tables", ("H == W",)),
    (lambda: rotate_pairs(X[..., :5], X, X), ValueError, "rotate_pairs", ("d even", "(1, 4, 4, 1, 5)")),
    (lambda: rotate_pairs(X, X, X), ValueError, "rotate_pairs", ("broadcast to (1, 4, 4, 1, 3)", "rotary_tables")),
    (lambda: rotate_pairs(X, X[..., :3], X[..., :1]), ValueError, "rotate_pairs", ("cos and sin",)),
    (lambda: rotate_pairs(X.long(), X, X), TypeError, "rotate_pairs", ("x to be floating-point",)),
    (lambda: rotary_embedding(X, C4, 3), ValueError, "rotary_embedding", ("N >= 9", "(1, 4, 4, 1, 6)")),
    (lambda: rotary_embedding(X, C2, 2), ValueError, "rotary_embedding", ("(B, N, 2, ..., d)",)),
    (lambda: rotary_embedding(X[..., :5], C4, 2), ValueError, "rotary_embedding", ("d even",)),
    (lambda: relative_position_orbits(C4, (2, 3)), ValueError, "relative_position_orbits", ("H == W",)),
    (lambda: relative_position_bias(X[0, 0, :, 0], C4, 2), ValueError, "relative_position_bias", ("(3, heads)",)),
    (lambda: prepend_tokens(CUBE[..., 0, 0], CUBE[0, :, 0, 0]), ValueError, "prepend_tokens", ("(B, C, |G|, *S)",)),
    (lambda: prepend_tokens(CUBE[..., :0], CUBE[0, :, 0, 0]), ValueError, "prepend_tokens", ("one token",)),
    (lambda: prepend_tokens(CUBE, torch.zeros(1, 4)), ValueError, "prepend_tokens", ("(T, 3)", "(1, 4)")),
    (lambda: prepend_tokens(CUBE, torch.zeros(1, 3).double()), TypeError, "prepend_tokens", ("torch.float64",)),
]


@pytest.mark.parametrize(("call", "error", "caller", "words"), REFUSED)
def test_refusals(call: Callable[[], object], error: type[Exception], caller: str, words: tuple[str, ...]) -> None:
    assert_refused(call, error, caller, *words)
