"""Lifting and group linear maps: every algorithm against the loops of the reference, and its gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacrev, vmap

import reference
from equilayers._checks import ALGORITHMS
from equilayers.functional import group_linear, lift_linear
from equilayers.groups import CyclicTranslation, Group
from equilayers.nn import GroupLinear, LiftingLinear
from strategies import (
    C4,
    D1,
    D2,
    D4,
    FOURIER_GROUPS,
    SOME_GROUPS,
    T3,
    actions,
    algorithms_of,
    batches,
    filled,
    float_dtypes,
    name,
    some_spaces,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
Kernel = Callable[..., Tensor]

some = pytest.mark.parametrize("group", SOME_GROUPS, ids=name)
with_fourier = pytest.mark.parametrize("group", FOURIER_GROUPS, ids=name)
both = pytest.mark.parametrize("kernel", [lift_linear, group_linear])


def arguments(
    kernel: Kernel, group: Group, space: tuple[int, ...], batch: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Random x, weight and bias with two output features."""
    shape = (2, group.order) if kernel is group_linear else space
    sizes = ((batch, *shape), (2, *shape), (2,))
    x, weight, bias = (filled(size, dtype, seed).requires_grad_() for seed, size in enumerate(sizes))
    return x, weight, bias


def distance(y: Tensor, expected: np.ndarray) -> float:  # type: ignore[type-arg]
    """The largest error, relative to the largest entry."""
    return float(np.abs(y.detach().double().numpy() - expected).max() / np.abs(expected).max())


@both
@some
def test_every_algorithm_is_the_reference(group: Group, kernel: Kernel) -> None:
    slow = reference.lift_linear if kernel is lift_linear else reference.group_linear
    for space in [(2, *s) for s in some_spaces(group)] if kernel is lift_linear else [()]:
        x, weight, bias = (t.detach() for t in arguments(kernel, group, space))
        expected = slow(x.numpy(), weight.numpy(), bias.numpy(), group)
        plain = slow(x.numpy(), weight.numpy(), None, group)
        for algorithm in algorithms_of(group):
            for dtype, tolerance in TOLERANCE.items():
                cast = [t.to(dtype) for t in (x, weight, bias)]
                y = kernel(*cast, group, algorithm=algorithm)
                assert (y.dtype, y.shape) == (dtype, (3, 2, group.order))
                assert distance(y, expected) < tolerance, (space, algorithm)
                assert distance(kernel(*cast[:2], None, group, algorithm=algorithm), plain) < tolerance


@given(actions(max_size=9), batches(), float_dtypes(), st.data())
def test_lifting_on_any_space(
    action: tuple[Group, tuple[int, ...]], batch: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    group, space = action
    x, weight, bias = (t.detach() for t in arguments(lift_linear, group, space, batch, dtype))
    algorithm = data.draw(st.sampled_from(algorithms_of(group)), label="algorithm")
    expected = reference.lift_linear(x.double().numpy(), weight.double().numpy(), bias.double().numpy(), group)
    assert distance(lift_linear(x, weight, bias, group, algorithm=algorithm), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("group", [C4, D4, D1, D2], ids=name)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
def test_orbits_that_are_not_free(group: Group, size: int) -> None:
    x, weight, bias = arguments(lift_linear, group, (size, size), batch=2)
    expected = reference.lift_linear(*(t.detach().numpy() for t in (x, weight, bias)), group)
    for algorithm in ALGORITHMS:
        assert distance(lift_linear(x, weight, bias, group, algorithm=algorithm), expected) < 1e-12


@both
@some
def test_gradients_are_those_of_the_orbit_algorithm(group: Group, kernel: Kernel) -> None:
    for space in some_spaces(group):
        inputs = arguments(kernel, group, space)
        cotangent = filled((3, 2, group.order), torch.float64, seed=7)
        expected = torch.autograd.grad(kernel(*inputs, group, algorithm="orbit"), inputs, cotangent)
        for algorithm in algorithms_of(group):
            gradients = torch.autograd.grad(kernel(*inputs, group, algorithm=algorithm), inputs, cotangent)
            for gradient, other in zip(gradients, expected, strict=True):
                torch.testing.assert_close(gradient, other, atol=1e-12, rtol=1e-12)


@both
@with_fourier
def test_gradcheck_and_gradgradcheck(group: Group, kernel: Kernel) -> None:
    inputs = arguments(kernel, group, some_spaces(group)[0], batch=2)
    run = lambda x, w, b: kernel(x, w, b, group, algorithm="fourier")  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@both
@with_fourier
def test_vmap_and_jacrev(group: Group, kernel: Kernel) -> None:
    x, weight, bias = arguments(kernel, group, some_spaces(group)[1])
    for algorithm in algorithms_of(group):
        run = lambda x, w=weight, a=algorithm: kernel(x, w, bias, group, algorithm=a)  # noqa: E731
        one = lambda x, run=run: run(x[None])[0]  # noqa: E731
        y = run(x)
        torch.testing.assert_close(vmap(one)(x), y, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(vmap(run)(x.expand(2, *x.shape)), y.expand(2, *y.shape), atol=1e-12, rtol=1e-12)
        many = vmap(lambda w, run=run: run(x, w))(torch.stack([weight, 2 * weight]))
        torch.testing.assert_close(many, torch.stack([run(x), run(x, 2 * weight)]), atol=1e-12, rtol=1e-12)
        jacobian = jacrev(one)(x[0])
        expected = torch.autograd.functional.jacobian(one, x[0])
        torch.testing.assert_close(jacobian, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("group", [C4, D4, T3], ids=name)
def test_initial_output_deviation_is_that_of_torch(group: Group) -> None:
    x, f = torch.randn(2000, 3, 12, 12), torch.randn(2000, 24, group.order)
    for layer, given_ in ((LiftingLinear(group, (3, 12, 12), 200), x), (GroupLinear(group, 24, 400), f)):
        plain = torch.nn.Linear(given_[0].numel(), layer.out_features)
        deviation = plain(given_.flatten(1)).std()
        for h in range(group.order):
            assert abs(layer(given_)[..., h].std() / deviation - 1) < 0.05
        with torch.no_grad():
            layer.weight *= 1.1
        assert abs(layer(given_).std() / deviation - 1) > 0.05


@pytest.mark.parametrize("group", [g for g in SOME_GROUPS if g.order == 1], ids=name)
@pytest.mark.parametrize("bias", [True, False])
def test_trivial_group_is_torch_linear(group: Group, bias: bool) -> None:
    space = some_spaces(group)[0]
    layers = LiftingLinear(group, space, 7, bias), GroupLinear(group, 5, 7, bias)
    for layer, x in zip(layers, (torch.randn(4, *space), torch.randn(4, 5, 1)), strict=True):
        torch.manual_seed(1)
        plain = torch.nn.Linear(x[0].numel(), 7, bias)
        torch.manual_seed(1)
        layer.reset_parameters()
        assert torch.equal(layer.weight.flatten(1), plain.weight)
        assert (layer.bias is None) if not bias else torch.equal(layer.bias, plain.bias)
        for algorithm in ALGORITHMS:
            layer.algorithm = algorithm
            assert torch.equal(layer(x), plain(x.flatten(1)).unsqueeze(-1))


@both
@some
def test_empty_batch(group: Group, kernel: Kernel) -> None:
    for algorithm in algorithms_of(group):
        inputs = arguments(kernel, group, some_spaces(group)[0], batch=0, dtype=torch.float32)
        y = kernel(*inputs, group, algorithm=algorithm)
        assert y.shape == (0, 2, group.order)
        gradients = torch.autograd.grad(y.sum(), inputs)
        for gradient, tensor in zip(gradients, inputs, strict=True):
            assert gradient.shape == tensor.shape
            assert not gradient.any()


@both
@some
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_sample_spoils_itself_alone(group: Group, kernel: Kernel, bad: float) -> None:
    x, weight, bias = (t.detach() for t in arguments(kernel, group, some_spaces(group)[0], batch=5))
    for algorithm in algorithms_of(group):
        clean = kernel(x, weight, bias, group, algorithm=algorithm)
        spoiled = x.clone()
        spoiled[2].view(-1)[0] = bad
        y = kernel(spoiled, weight, bias, group, algorithm=algorithm)
        assert not torch.isfinite(y[2]).any()
        others = [0, 1, 3, 4]
        assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("n", [3, 6, 7, 12])
def test_colliding_hashes_cost_rounding_and_never_values(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every hash equal, each sample looks periodic; only the periods it has indeed may be used."""
    group = CyclicTranslation(n)
    x, weight = torch.randn(5, 2, 2 * n), torch.randn(4, 2, 2 * n)
    x[0] = 1.0
    expected = lift_linear(x, weight, None, group, algorithm="orbit")
    zeros = lambda count, dtype, device: torch.zeros(count, dtype=dtype, device=device)  # noqa: E731
    monkeypatch.setattr("equilayers.functional._fourier.canonical.odd_integers", zeros)
    torch.testing.assert_close(lift_linear(x, weight, None, group, algorithm="fourier"), expected)
