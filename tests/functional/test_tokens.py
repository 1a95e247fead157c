"""Group linear maps at positions on every algorithm, 1x1 convolutions, and the irreps of any finite group."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import token_reference as slow
from equilayers.functional import group_conv2d, group_linear
from equilayers.functional._fourier.basis import _verify, irrep_basis
from equilayers.functional.tokens import TokenSpace, TokenWeight, token_linear
from equilayers.groups import CyclicRotation, CyclicTranslation, Group, PermutationGroup
from equilayers.nn import GroupLinear
from strategies import (
    A4,
    C2,
    C4,
    D1,
    D2,
    D4,
    OCTAHEDRAL,
    PRODUCTS,
    QUATERNIONS,
    S3,
    S4,
    T3,
    TURNING,
    filled,
    name,
    some_spaces,
)

T5, T36 = CyclicTranslation(5), CyclicTranslation(36)
S5 = PermutationGroup([[1, 2, 3, 4, 0], [1, 0, 2, 3, 4]])
GROUPS = [*TURNING, T3, S3, OCTAHEDRAL, QUATERNIONS]
ALGORITHMS = ("auto", "bitwise", "orbit", "dense", "fourier")
EXACT_TRANSFORMS = (*TURNING, T3)


def arguments(group: Group, space: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (2, 3, group.order, *space), (5, 3, group.order), (5,)
    f, weight, bias = (filled(size, dtype, i) for i, size in enumerate(sizes))
    return f, weight, bias


def spaces(group: Group) -> list[tuple[int, ...]]:
    """Two that the group moves, and tokens that it does not."""
    return [*some_spaces(group), (group.space_ndim + 6,)]


def acted(group: Group, g: int, f: Tensor) -> Tensor:
    """The feature moved, by its fiber alone where the group does not act on its positions."""
    try:
        return group.act_regular(g, f)
    except ValueError:
        return f[:, :, group.cayley_table[group.inverse(g)].tolist()]


@pytest.mark.parametrize("group", GROUPS, ids=name)
def test_group_linear_at_positions(group: Group, threads: int) -> None:
    """Values, gradients against those of the expanded matrix, the law bit by bit where it is promised."""
    for space in spaces(group):
        f, weight, bias = arguments(group, space, torch.float64)
        inputs = [x.clone().requires_grad_() for x in (f, weight, bias)]
        expected = torch.from_numpy(slow.token_linear(f.numpy(), weight.numpy(), bias.numpy(), group))
        dense = torch.autograd.grad(group_linear(*inputs, group, algorithm="dense").square().sum(), inputs)
        for algorithm in ALGORITHMS:
            y = group_linear(*inputs, group, algorithm=algorithm)
            torch.testing.assert_close(y.detach(), expected, atol=1e-12, rtol=1e-12)
            for ours, theirs in zip(torch.autograd.grad(y.square().sum(), inputs), dense, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)
            exactness = GroupLinear(group, 3, 5, algorithm=algorithm).exactness
            exact = algorithm in ("bitwise", "orbit") or (algorithm == "fourier" and group in EXACT_TRANSFORMS)
            assert exactness == ("bitwise" if exact else "rounding")
            for dtype in (torch.float32, torch.float64):
                own = [x.to(dtype) for x in (f, weight, bias)]
                run = lambda x, own=own, a=algorithm: group_linear(x, *own[1:], group, algorithm=a)  # noqa: E731
                y = run(own[0])
                close = 0 if exact else 32 * torch.finfo(dtype).eps * float(y.abs().max())
                for g in range(group.order) if threads == 1 else [1]:
                    moved, back = run(acted(group, g, own[0])), acted(group, g, y)
                    assert float((moved - back).abs().max()) <= close, (algorithm, space, dtype, g)


def test_unmoved_positions_would_be_found() -> None:
    f, weight, _ = arguments(C4, (3, 3), torch.float64)
    y, run = group_linear(f, weight, None, C4), lambda f: group_linear(f, weight, None, C4)
    assert torch.equal(run(C4.act_regular(1, f)), C4.act_regular(1, y))
    assert not torch.equal(run(C4.act(1, f)), C4.act_regular(1, y))
    assert not torch.equal(run(C4.act_regular(1, f)), acted(C4, 1, y.flatten(3)).unflatten(3, (3, 3)))


@pytest.mark.parametrize("group", [C4, D4, S3], ids=name)
def test_memory_of_features(group: Group) -> None:
    """Channels innermost, the fiber next, read without a copy; the same values from any other order."""
    f, weight, bias = arguments(group, (6,) if group == S3 else (3, 3), torch.float64)
    for algorithm in ("auto", "fourier", "dense"):
        y = group_linear(f, weight, bias, group, algorithm=algorithm)
        tokens = f.movedim((1, 2), (-1, -2)).contiguous().movedim((-1, -2), (1, 2))
        torch.testing.assert_close(group_linear(tokens, weight, bias, group, algorithm=algorithm), y)
    space = TokenSpace(group, True)
    y = token_linear(f, TokenWeight(weight, bias), space, None)
    assert y.movedim((1, 2), (-1, -2)).is_contiguous()


@pytest.mark.parametrize("group", [C2, C4, D1, D2, D4, T3, S3, A4], ids=name)
def test_derivatives(group: Group) -> None:
    sizes = (1, 1, group.order, 2), (2, 1, group.order), (2,)
    inputs = tuple(filled(size, torch.float64, i).requires_grad_() for i, size in enumerate(sizes))
    run = lambda f, w, b: token_linear(f, TokenWeight(w, b), TokenSpace(group, True), None)  # noqa: E731
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("group", [C4, D4, T3, OCTAHEDRAL], ids=name)
def test_norms_in_coefficients(group: Group, centred: bool) -> None:
    """The same as in the regular basis, with two derivatives; the input is not kept for them."""
    f = filled((2, 3, group.order, 4), torch.float64).requires_grad_()
    spectral, regular = TokenSpace(group, True), TokenSpace(group, False)

    def normed(f: Tensor, space: TokenSpace = spectral) -> Tensor:
        x = space.normalised(space.enter(f), 1e-5, centred=centred)
        return space.leave(space.affine(x, TokenWeight(x, centred=centred)), f)

    torch.testing.assert_close(normed(f), normed(f, regular))
    assert gradcheck(normed, f, fast_mode=True)
    assert gradgradcheck(normed, f, fast_mode=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = spectral.enter(f)
        spectral.normalised(x, 1e-5, centred=centred)
    assert all(t.data_ptr() != x.data_ptr() for t in kept)


@pytest.mark.parametrize("group", TURNING, ids=name)
def test_pointwise_convolution(group: Group) -> None:
    """Of one pixel, as of tokens where it is so fast, the same as through the expanded filter."""
    for fields in (2, 48):
        f = filled((1, fields, group.order, 3, 3), torch.float64)
        weight, bias = (filled(size, torch.float64) for size in ((fields, fields, group.order), (fields,)))
        kernel = weight[..., None, None]
        for more in ({}, {"stride": 2}, {"padding": 1}):
            expected = group_conv2d(f, kernel, bias, group, algorithm="dense", **more)
            y = group_conv2d(f, kernel, bias, group, algorithm="auto", **more)
            torch.testing.assert_close(y, expected, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(group_linear(f, weight, bias, group), group_conv2d(f, kernel, bias, group))


# Copies and width of each irrep: real ones occur as often as they are wide, complex ones half, quaternionic a quarter.
IRREPS: dict[Group, list[tuple[int, int]]] = {
    C4: [(1, 1), (1, 1), (1, 2)],
    D4: [(1, 1)] * 4 + [(2, 2)],
    T5: [(1, 1), (1, 2), (1, 2)],
    S3: [(1, 1), (1, 1), (2, 2)],
    QUATERNIONS: [(1, 1)] * 4 + [(1, 4)],
    A4: [(1, 1), (1, 2), (3, 3)],
    S4: [(1, 1), (1, 1), (2, 2), (3, 3), (3, 3)],
    OCTAHEDRAL: [(1, 1), (1, 1), (2, 2), (3, 3), (3, 3)],
    S5: [(1, 1), (1, 1), (4, 4), (4, 4), (5, 5), (5, 5), (6, 6)],
}


@pytest.mark.parametrize("group", IRREPS, ids=name)
def test_irreps_are_those_of_the_character_table(group: Group) -> None:
    basis = irrep_basis(group)
    assert (basis.blocks[0].copies, basis.blocks[0].width) == (1, 1)
    np.testing.assert_allclose(np.abs(basis.matrix[0]), group.order**-0.5, atol=1e-15)
    assert sorted((b.copies, b.width) for b in basis.blocks) == sorted(IRREPS[group])
    assert basis.products == sum(3 * b.copies if b.pair else b.copies * b.width**2 for b in basis.blocks)


@pytest.mark.parametrize("group", [*IRREPS, *TURNING, *PRODUCTS, T3, T36], ids=name)
def test_bases_block_diagonalise_every_right_translation(group: Group) -> None:
    """Orthogonal, to a few roundings of float64: `Q R_u Q^T` has the image of u in the blocks and zeros elsewhere."""
    basis, table = irrep_basis(group), group.cayley_table
    assert sum(b.copies * b.width for b in basis.blocks) == group.order
    np.testing.assert_allclose(basis.matrix @ basis.matrix.T, np.eye(group.order), atol=1e-14)
    for u in range(group.order):
        expected = np.zeros((group.order, group.order))
        for b, images in zip(basis.blocks, basis.images, strict=True):
            expected[b.slice, b.slice] = np.kron(images[:, :, u], np.eye(b.copies))
        np.testing.assert_allclose(basis.matrix @ basis.matrix[:, table[:, u]].T, expected, atol=2e-14)
    _verify(basis, table)


def test_a_wrong_cayley_table_is_caught() -> None:
    for group in (C4, S3, QUATERNIONS, CyclicRotation(2)):
        wrong = group.cayley_table.copy()
        wrong[[0, 1]] = wrong[[1, 0]]
        with pytest.raises(RuntimeError, match="irrep_basis: expected a basis to 1e-09, found an error of"):
            _verify(irrep_basis(group), wrong)
    with pytest.raises(ValueError, match="irrep_basis: expected a group of at most 1024 elements, got 1500"):
        irrep_basis(CyclicTranslation(1500))
