"""Singular values of Jacobians against dense float64 ones, and invariance told from deafness."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equilayers.groups import CyclicTranslation
from equilayers.metrics import invariance_gap, jacobian_singular_values, jacobian_spectral_norm
from equilayers.nn import GroupConv2d, InvariantAvgPool2d, LiftingConv2d, LiftingLinear, OrbitPool
from strategies import C4, filled

METHODS = ("gram", "lanczos")
each_method = pytest.mark.parametrize("method", METHODS)


def dense(model: nn.Module, x: Tensor) -> Tensor:
    """All singular values, largest first, of each sample's Jacobian: row by row, in float64."""
    precise, dtype = model.double(), x.dtype
    found = []
    for sample in x.double():
        leaf = sample[None].clone().requires_grad_()
        y = precise(leaf).flatten()
        rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0].flatten() for entry in y]
        found.append(torch.linalg.svdvals(torch.stack(rows)))
    model.to(dtype)
    return torch.stack(found)


def push(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """J v by a difference of the outputs, in float64."""
    step = 1e-6
    return (model(x + step * v) - model(x - step * v)).detach() / (2 * step)


def mlp(outputs: int, activation: nn.Module, inputs: int = 30) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 40), activation, nn.Linear(40, 40), activation, nn.Linear(40, outputs))


def cnn(outputs: int, activation: nn.Module) -> nn.Module:
    layers = [nn.Conv2d(2, 6, 3, padding=1), activation, nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), activation]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 9, outputs))


@each_method
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.GELU()], ids=str)
@pytest.mark.parametrize(("kind", "outputs"), [(mlp, 1), (mlp, 2), (mlp, 64), (cnn, 9), (cnn, 64)])
def test_the_norm_of_any_model(
    kind: Callable[..., nn.Module], outputs: int, activation: nn.Module, method: str
) -> None:
    model, x = kind(outputs, activation), filled((5, 30) if kind is mlp else (4, 2, 10, 10), torch.float32)
    found, expected = jacobian_spectral_norm(model, x, method), dense(model, x)[:, 0]
    assert found.shape == (len(x),)
    assert ((found - expected).abs() <= 1e-5 * expected).all()


@each_method
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (7, 7), (40, 90), (90, 121)])
def test_of_a_linear_map_it_is_the_norm_of_the_matrix(shape: tuple[int, int], method: str) -> None:
    layer = nn.Linear(shape[1], shape[0])
    found = jacobian_spectral_norm(layer, torch.randn(3, shape[1]), method)
    expected = torch.linalg.svdvals(layer.weight.detach().double())[0]
    assert ((found - expected).abs() <= 1e-6 * expected).all()


@each_method
@pytest.mark.parametrize("k", [1, 3, 9])
def test_triplets(k: int, method: str) -> None:
    model, x = cnn(9, nn.Tanh()).double(), torch.randn(4, 2, 10, 10, dtype=torch.float64)
    values, inputs, outputs = jacobian_singular_values(model, x, k, method, tolerance=1e-12)
    assert (values.shape, inputs.shape, outputs.shape) == ((4, k), (4, k, 2, 10, 10), (4, k, 9))
    torch.testing.assert_close(values, dense(model, x)[:, :k], rtol=1e-8, atol=1e-10)
    eye = torch.eye(k, dtype=torch.float64).expand(4, k, k)
    for vectors in (inputs.flatten(2), outputs):
        torch.testing.assert_close(vectors @ vectors.mT, eye, rtol=0, atol=1e-6)
    for i in range(k):
        pushed = push(model, x, inputs[:, i])
        torch.testing.assert_close(pushed, values[:, i, None] * outputs[:, i], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spectrum", ["flat", "close", "steep", "rank one", "zero"])
def test_hard_spectra(spectrum: str) -> None:
    n = 120
    values = {
        "flat": torch.ones(n),
        "close": torch.linspace(1, 0.9, n),
        "steep": 0.5 ** torch.arange(n),
        "rank one": torch.eye(n)[0],
        "zero": torch.zeros(n),
    }[spectrum].double()
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for _ in range(2))
    layer = nn.Linear(n, n, bias=False).double()
    layer.weight.data = left @ values.diag() @ right
    found = jacobian_spectral_norm(layer, torch.randn(2, n, dtype=torch.float64), "lanczos")
    assert ((found - values.max()).abs() <= 1e-6).all()


def test_a_missed_tolerance_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from equilayers.metrics import _singular_values as _singular

    monkeypatch.setattr(_singular, "ROUNDS", 1)
    layer = nn.Linear(200, 200, bias=False)
    layer.weight.data = torch.linspace(1, 0.99, 200).diag()
    with pytest.warns(UserWarning, match="tolerance 1e-09 was not reached for 2 of 2 samples"):
        jacobian_spectral_norm(layer, torch.randn(2, 200), "lanczos", tolerance=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = jacobian_spectral_norm(layer, torch.randn(2, 200), "gram")
    torch.testing.assert_close(exact, torch.ones(2), rtol=1e-6, atol=0)  # the largest entry of the diagonal


@each_method
def test_pieces_make_no_difference_and_the_model_is_left_alone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from equilayers.metrics import _jacobian

    model = nn.Sequential(mlp(9, nn.ReLU()), nn.Dropout(0.5))
    model.train()
    x = torch.randn(7, 30, requires_grad=True)
    whole = jacobian_spectral_norm(model, x, method)
    torch.testing.assert_close(jacobian_spectral_norm(model, x, method, batch_size=3), whole)
    monkeypatch.setattr(_jacobian, "HELD_BYTES", 1)
    torch.testing.assert_close(jacobian_spectral_norm(model, x, method), whole)
    with torch.no_grad():
        torch.testing.assert_close(jacobian_spectral_norm(model, x, method), whole)
    with torch.inference_mode():
        torch.testing.assert_close(jacobian_spectral_norm(model, x.detach().clone(), method), whole)
    assert model.training
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert not whole.requires_grad


@each_method
def test_our_own_layers(method: str) -> None:
    layers = [LiftingConv2d(C4, 1, 3, 3, padding=1, algorithm="fourier"), nn.Tanh()]
    layers += [GroupConv2d(C4, 3, 4, 3, padding=1, algorithm="fourier"), InvariantAvgPool2d(), OrbitPool("mean")]
    for model in (nn.Sequential(*layers), nn.Sequential(LiftingLinear(C4, (1, 8, 8), 5), OrbitPool())):
        x = torch.randn(3, 1, 8, 8)
        torch.testing.assert_close(jacobian_spectral_norm(model, x, method), dense(model, x)[:, 0].float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = mlp(9, nn.ReLU()).to(dtype)
    found = jacobian_spectral_norm(model, torch.randn(2, 30).to(dtype))
    assert found.dtype == dtype
    assert torch.isfinite(found).all()


def test_refusals() -> None:
    x = torch.randn(3, 30)
    with pytest.raises(ValueError, match=r"jacobian_spectral_norm: expected method in"):
        jacobian_spectral_norm(mlp(2, nn.ReLU()), x, "power")
    with pytest.raises(ValueError, match="expected k <= 2, the rank of the Jacobian at most, got 3"):
        jacobian_singular_values(mlp(2, nn.ReLU()), x, 3)
    with pytest.raises(ValueError, match="differentiable steps"):
        jacobian_spectral_norm(lambda x: x.argmax(1, keepdim=True).float(), x)
    with pytest.raises(ValueError, match=r"model outputs of shape \(1, ...\), got \(30,\)"):
        jacobian_spectral_norm(lambda x: x.sum(0), x)
    with pytest.raises(TypeError, match="expected x to be floating-point"):
        jacobian_spectral_norm(mlp(2, nn.ReLU()), x.long())
    with pytest.raises(ValueError, match="tolerance between 0 and 1"):
        jacobian_spectral_norm(mlp(2, nn.ReLU()), x, tolerance=0)
    with pytest.raises(ValueError, match="two samples or more"):
        invariance_gap(lambda x: x, x[:1], CyclicTranslation(2))


def test_invariance_is_told_from_deafness() -> None:
    group, x = CyclicTranslation(4), torch.randn(64, 3, 8)
    tied = nn.Sequential(LiftingLinear(group, (3, 8), 6), OrbitPool(), nn.Linear(6, 5))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5))
    deaf = nn.Sequential(nn.Flatten(), nn.Linear(24, 5))
    deaf[1].weight.data.mul_(1e-6)
    invariant, ordinary, dull = (invariance_gap(model, x, group) for model in (tied, plain, deaf))
    assert (invariant.moved, invariant.ratio) == (0, 0)
    assert 0.8 < ordinary.ratio < 1.25
    assert dull.ratio > 0.8
    constant = invariance_gap(lambda x: torch.ones(len(x), 3), x, group)
    assert constant.spread == 0
    assert constant.ratio.isnan()
    assert [gap.trivial for gap in (invariant, ordinary, dull, constant)] == [False, False, True, True]


def test_the_gap_of_a_linear_model_by_hand() -> None:
    """f(x) = x_0 under T2, which exchanges x_0 and x_1."""
    x = torch.tensor([[3.0, 1.0], [-1.0, 2.0]])
    gap = invariance_gap(lambda x: x[:, :1], x, CyclicTranslation(2), directions=4000)
    apart = 2.0  # of outputs 3 and -1 from their mean 1
    assert math.isclose(gap.moved, math.sqrt((4 + 9) / 2) / apart, rel_tol=1e-6)
    # A direction of length l moves x_0 by l cos(angle), in the square mean by l / sqrt(2): l^2 is 8 and 18.
    assert math.isclose(gap.noisy, math.sqrt((4 + 9) / 2) / apart, rel_tol=0.03)
    assert math.isclose(gap.spread, apart / math.sqrt(5), rel_tol=1e-6)
