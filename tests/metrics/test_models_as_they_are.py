"""Models of users that reuse buffers, write to their input, or return something unusual: measures tell the truth."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equilayers.losses import InvarianceLoss
from equilayers.metrics import (
    deformation_stability,
    distribution_invariance_error,
    equivariance_error,
    invariance_gap,
    jacobian_spectral_norm,
    logit_invariance_error,
    prediction_consistency,
    rotation_error_curve,
    saliency_invariance_similarity,
    shift_consistency,
    shift_wobble,
)
from planted import X, invariant, one_buffer, plain
from strategies import C4, filled

Model = Callable[[Tensor], Any]
Measure = Callable[[Model, Tensor], Any]


def in_place(x: Tensor) -> Tensor:
    """The invariant model, which scales its input in place."""
    x /= 255
    return 255 * invariant(x)


def in_place_leaf(x: Tensor) -> Tensor:
    """The plain model, likewise."""
    return plain(x.mul_(0.5))


MEASURES: dict[str, Measure] = {
    "LI": lambda model, x: logit_invariance_error(model, x, C4),
    "DI": lambda model, x: distribution_invariance_error(model, x, C4),
    "consistency": lambda model, x: prediction_consistency(model, x, C4),
    "gap": lambda model, x: torch.stack([v for v in invariance_gap(model, x, C4) if isinstance(v, Tensor)]),
    "equivariance": lambda model, x: equivariance_error(model, x, C4, action_out=lambda g, f: f),
    "shift consistency": lambda model, x: shift_consistency(model, x, pairs=4),
    "shift wobble": shift_wobble,
    "rotation curve": lambda model, x: rotation_error_curve(model, x).error,
    "deformation": lambda model, x: deformation_stability(model, x, fields=2).distance,
    "loss": InvarianceLoss(C4),
    "random loss": InvarianceLoss(C4, elements="random"),
    "SI": lambda model, x: saliency_invariance_similarity(model, x, torch.zeros(4, dtype=torch.int64), C4),
    "Jacobian": jacobian_spectral_norm,
}
DIFFERENTIABLE = ("loss", "random loss", "SI", "Jacobian")  # they go through the outputs' graph


def measured(name: str, model: Model, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return torch.as_tensor(MEASURES[name](model, x))


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in DIFFERENTIABLE])
def test_outputs_in_one_buffer(name: str) -> None:
    torch.testing.assert_close(measured(name, one_buffer(), X), measured(name, plain, X), rtol=0, atol=0)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("writes", "alone"), [(in_place, invariant), (in_place_leaf, lambda x: plain(0.5 * x))])
def test_models_that_write_to_their_input(name: str, writes: Model, alone: Model) -> None:
    x = X.clone()
    torch.testing.assert_close(measured(name, writes, x), measured(name, alone, X), rtol=1e-4, atol=1e-6)
    assert torch.equal(x, X), "the user's x was changed"


SIGMOID: dict[str, Model] = {"(B, 1)": lambda x: plain(x)[:, :1], "(B,)": lambda x: plain(x)[:, 0]}


@pytest.mark.parametrize("form", SIGMOID)
def test_one_logit_is_two_classes(form: str) -> None:
    def two_classes(x: Tensor) -> Tensor:
        one = plain(x)[:, :1]
        return torch.cat((torch.zeros_like(one), one), 1)

    for name in ("DI", "consistency", "shift consistency", "shift wobble"):
        found, wanted = measured(name, SIGMOID[form], X), measured(name, two_classes, X)
        assert float(wanted.flatten()[0]) > 0
        torch.testing.assert_close(found, wanted)
    loss = InvarianceLoss(C4, form="distribution")
    torch.testing.assert_close(loss(SIGMOID[form], X), loss(two_classes, X))
    torch.testing.assert_close(measured("LI", SIGMOID[form], X), measured("LI", lambda x: plain(x)[:, :1], X))


@pytest.mark.parametrize("outputs", [3, 64, 65, 100])
def test_a_jacobian_that_cannot_be_had_is_refused(outputs: int) -> None:
    weight = filled((outputs, 64), torch.float32)

    def cut(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.flatten(1) @ weight.T

    def head(x: Tensor) -> Tensor:
        return cut(x) @ torch.eye(outputs, requires_grad=True)

    for model in (cut, head):
        with pytest.raises(ValueError, match=r"jacobian_spectral_norm: expected .* gradient"):
            jacobian_spectral_norm(model, X)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.bool, torch.int32])
def test_targets_of_every_integer_type(dtype: torch.dtype) -> None:
    target = torch.tensor([0, 1, 1, 0])
    wanted = saliency_invariance_similarity(plain, X, target, C4)
    assert torch.equal(saliency_invariance_similarity(plain, X, target.to(dtype), C4), wanted)


def test_saliency_in_inference_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    target = torch.tensor([0, 1, 2, 0])
    wanted = saliency_invariance_similarity(model, X, target, C4)
    with torch.inference_mode():
        found = saliency_invariance_similarity(model, X, target, C4)
        sigma = jacobian_spectral_norm(model, X)
    assert torch.equal(found, wanted)
    assert torch.equal(sigma, jacobian_spectral_norm(model, X))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integer_outputs_give_a_float(dtype: torch.dtype) -> None:
    def votes(x: Tensor) -> Tensor:
        return plain(x).mul(4).round().clamp(0, 200).to(dtype)

    for name in ("LI", "DI", "consistency", "gap", "equivariance", "shift consistency", "deformation"):
        found, wanted = measured(name, votes, X), measured(name, lambda x: votes(x).float(), X)
        assert found.is_floating_point(), name
        torch.testing.assert_close(found, wanted)
    normalized = logit_invariance_error(votes, X, C4, normalized=True)
    assert normalized.is_floating_point()
    assert normalized >= 0


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in ("SI",)])
@pytest.mark.parametrize("output", [None, {}, (), "text"], ids=["None", "{}", "()", "str"])
def test_what_is_no_output_is_refused_by_name(name: str, output: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^\w+: expected .*, got .*\. [A-Z]"):
        measured(name, lambda _: output, X)
