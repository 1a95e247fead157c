"""Convolutions by patterns of taps: values and gradients of the expanded filter's, in blocks of any size.

numba does them, and where it is not installed torch: the same sums, and the same products in blocks of the same size.
"""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from equilayers.functional._conv import group_conv2d
from equilayers.functional._convolution import numba_sums, pattern_kernel, plans
from equilayers.functional._convolution.geometry import ConvSettings, conv_spec
from equilayers.functional._convolution.numba_sums import serves
from equilayers.functional._convolution.pattern_kernel import Block, PatternKernel, coefficients
from equilayers.functional._convolution.patterns import Term, basis_of
from equilayers.functional._convolution.programs import Step
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


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_kernel, "serves", lambda *tensors: False)


def in_blocks(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    for name in ("BLOCK", "BLAS_BLOCK"):
        monkeypatch.setattr(pattern_kernel, name, Block(1, positions, 12_000_000))


def kernel_of(group: Group, case: tuple[int, ...]) -> PatternKernel:
    kernel, stride, padding, dilation, size = case
    settings = ConvSettings(False, group, (kernel, kernel), stride, padding, dilation)
    return PatternKernel(conv_spec("test", settings), fast_fourier_of(group), (size, size))  # type: ignore[arg-type]


def given_of(group: Group, case: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    kernel, *_, size = case
    shapes = (3, 2, group.order, size, size), (3, 2, group.order, kernel, kernel), (3,)
    return [filled(shape, dtype, seed).requires_grad_() for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("group", GROUPS, ids=repr)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in strips"])
@pytest.mark.parametrize("way", ["numba", "torch"])
def test_values_and_gradients(
    group: Group, case: tuple[int, ...], whole: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stride, padding, dilation, size = case
    if not whole:
        in_blocks(monkeypatch, 2 * size)
    if way == "torch":
        by_torch(monkeypatch)
    x, w, b = given = given_of(group, case, torch.float64)
    expected = group_conv2d(x, w, b, group, stride=stride, padding=padding, dilation=dilation, algorithm="dense")
    found = Correlate.apply(x, w, b, kernel_of(group, case))
    torch.testing.assert_close(found, expected)
    upstream = filled(tuple(expected.shape), torch.float64, 5)
    slopes = [torch.autograd.grad(y, given, upstream) for y in (found, expected)]
    torch.testing.assert_close(*slopes)


MEMORY = {
    "as it comes": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "with gaps": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "spread": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("group", GROUPS, ids=repr)
@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_numba_adds_as_torch_does(
    group: Group, memory: Callable[[Tensor], Tensor], dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, where no sum over blocks comes in; the weight's gradient is one, and its products add theirs."""
    if threads > 1 and dtype == torch.float32:
        with_threads(monkeypatch, threads)
    for case in CASES:
        in_blocks(monkeypatch, 2 * case[-1])
        kernel, (x, w, b) = kernel_of(group, case), given_of(group, case, dtype)
        assert serves(x.detach(), w.detach())
        results = []
        for way in ("numba", "torch"):
            with monkeypatch.context() as patch:
                if way == "torch":
                    by_torch(patch)
                y = Correlate.apply(memory(x), w, b, kernel)
                upstream = memory(filled(tuple(y.shape), dtype, 5))
                results.append([y, *torch.autograd.grad(y, (x, w, b), upstream)])
        for found, expected in zip(results[0][:2], results[1][:2], strict=True):
            assert torch.equal(found, expected)
        torch.testing.assert_close(results[0][2:], results[1][2:], rtol=1e-4, atol=1e-4)


def with_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    assert numba_sums.has_team(), "torch's threads are not those of GNU's OpenMP"
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)


@pytest.mark.parametrize("lost", ["can_call_blas", "has_team"])
def test_without_torch_s_blas_or_its_threads(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where it is not found, and on two threads."""
    group, case = CyclicRotation(4), CASES[0]
    given = given_of(group, case, torch.float32)
    expected = Correlate.apply(*given, kernel_of(group, case))
    slopes = torch.autograd.grad(expected, given, torch.ones_like(expected))
    monkeypatch.setattr(numba_sums, lost, lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = Correlate.apply(*given, kernel_of(group, case))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, given, torch.ones_like(found)), slopes)


def test_a_broken_numba_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    group, case = CyclicRotation(4), CASES[0]
    given = given_of(group, case, torch.float32)
    expected = Correlate.apply(*given, kernel_of(group, case))

    def broken(name: str) -> None:
        raise ImportError("numpy is too new")

    numba_sums.loops.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(numba_sums.importlib, "import_module", broken)
            with pytest.warns(UserWarning, match=r"numba is installed but not imported \(numpy is too new\)"):
                found = Correlate.apply(*given, kernel_of(group, case))
            assert torch.equal(found, Correlate.apply(*given, kernel_of(group, case)))
        torch.testing.assert_close(found, expected)
    finally:
        numba_sums.loops.cache_clear()


def test_modes_see_the_products() -> None:
    """Where somebody watches, torch does all of it: five products of a third of the columns each, 3x3 under C4."""
    group, case = CyclicRotation(4), CASES[0]
    x, w, b = (given.detach() for given in given_of(group, case, torch.float32))
    with FlopCounterMode(display=False) as counter:
        Correlate.apply(x, w, b, kernel_of(group, case))
    made = 2 * w.numel() * group.order * case[0] ** 2  # the operators
    assert counter.get_total_flops() - made == 2 * 5 * len(x) * case[-1] ** 2 * case[0] ** 2 * len(w) * w.shape[1]


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
        test_values_and_gradients(group, CASES[0], True, "numba", monkeypatch)


def test_a_wrong_sum_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sign of one step of a table turned over."""
    right = plans.table

    def wrong(steps: Iterable[Step]) -> np.ndarray:
        made = right(steps)
        made[-1, 0] = -made[-1, 0] or 1
        return made

    monkeypatch.setattr(plans, "table", wrong)
    for plan in (plans.convolution_plan, plans.slope_plan):
        plan.cache_clear()
    try:
        with pytest.raises(AssertionError):
            test_values_and_gradients(CyclicRotation(4), CASES[0], True, "numba", monkeypatch)
    finally:
        for plan in (plans.convolution_plan, plans.slope_plan):
            plan.cache_clear()
