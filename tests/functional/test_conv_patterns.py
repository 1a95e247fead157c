"""Convolutions by patterns of taps: values and gradients of the expanded filter's, in blocks of any size."""

import itertools

import pytest
import torch

from equilayers.functional._conv import group_conv2d
from equilayers.functional._convolution import pattern_kernel
from equilayers.functional._convolution.geometry import ConvSettings, conv_spec
from equilayers.functional._convolution.pattern_kernel import PatternKernel, coefficients
from equilayers.functional._convolution.patterns import Term, basis_of
from equilayers.functional._fourier.autograd import Correlate
from equilayers.functional._fourier.transforms import fast_fourier_of
from equilayers.groups import CyclicRotation, Dihedral, Group
from strategies import filled

GROUPS = [CyclicRotation(2), CyclicRotation(4), Dihedral(1), Dihedral(2), Dihedral(4)]
# kernel, stride, padding, dilation, size: odd and even kernels, crops, gaps, more padding than the kernel reaches
CASES = [
    (3, 1, 1, 1, 7),
    (1, 1, 0, 1, 4),
    (5, 1, 2, 1, 6),
    (2, 1, 0, 1, 5),
    (3, 2, 1, 1, 7),
    (3, 1, 2, 2, 9),
    (3, 1, 4, 1, 5),
]


@pytest.mark.parametrize("group", GROUPS, ids=repr)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in strips"])
def test_values_and_gradients(
    group: Group, case: tuple[int, ...], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, stride, padding, dilation, size = case
    if not whole:
        monkeypatch.setattr(pattern_kernel, "BLOCK_BYTES", 1)
        monkeypatch.setattr(pattern_kernel, "BLOCK_POSITIONS", 2 * size)
    shapes = (3, 2, group.order, size, size), (3, 2, group.order, kernel, kernel), (3,)
    given = [filled(shape, torch.float64, seed).requires_grad_() for seed, shape in enumerate(shapes)]
    settings = ConvSettings(False, group, (kernel, kernel), stride, padding, dilation)
    x, w, b = given
    expected = group_conv2d(x, w, b, group, stride=stride, padding=padding, dilation=dilation, algorithm="dense")
    made = PatternKernel(conv_spec("test", settings), fast_fourier_of(group), (size, size))  # type: ignore[arg-type]
    found = Correlate.apply(x, w, b, made)
    torch.testing.assert_close(found, expected)
    upstream = filled(tuple(expected.shape), torch.float64, 5)
    slopes = [torch.autograd.grad(y, given, upstream) for y in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_the_basis_is_orthogonal_and_complete(group: Group) -> None:
    """Each coefficient of a unit patch is over its square, so that `A A^T` is diagonal, and each number has a term."""
    for kernel in ((1, 1), (2, 2), (3, 3), (5, 5)):
        table = coefficients(group, kernel, torch.device("cpu"), torch.float64)
        assert table.shape[0] == table.shape[1] == group.order * kernel[0] * kernel[1]
        squares = table @ table.mT
        torch.testing.assert_close(squares, squares.diagonal().diag())
        assert squares.diagonal().min() > 0


def test_few_sums() -> None:
    """Under D4, 3x3: of 72 terms those that couple two planes of dimension two, or two axes, are one sum more."""
    rows = itertools.chain(*basis_of(Dihedral(4), (3, 3)).blocks)
    terms: list[Term] = [term for row in rows for term in row]
    assert len(terms) == 4 * 9 + 2 * 18
    assert sum(term.right is not None for term in terms) == 2 * 8 + 16


def test_a_wrong_sign_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    group = CyclicRotation(4)
    wrong = PatternKernel.operators
    monkeypatch.setattr(PatternKernel, "operators", lambda *a: [-m for m in wrong(*a)])
    with pytest.raises(AssertionError):
        test_values_and_gradients(group, CASES[0], True, monkeypatch)
