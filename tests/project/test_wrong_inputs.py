"""Whatever wrong input a layer, function, measure or check is given, its answer is one sentence in its own name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from equilayers import functional, metrics, testing
from equilayers.functional import vectors
from equilayers.groups import CyclicRotation
from equilayers.losses import InvarianceLoss
from equilayers.nn import (
    AngleHead,
    AvgBlurPool2d,
    BlurConv2d,
    BlurPool2d,
    GroupConv2d,
    GroupConvTranspose2d,
    GroupLinear,
    GroupUpsample,
    HarmonicBatchNorm,
    HarmonicConv2d,
    HarmonicMagnitude,
    HarmonicNonlinearity,
    InvariantAvgPool2d,
    LiftingConv2d,
    LiftingLinear,
    MaxBlurPool2d,
    OrbitPool,
    PolyphasePool2d,
    PolyphaseUnpool2d,
    VectorHead,
    VectorLiftingConv2d,
    VectorLiftingLinear,
)
from refusals import FORM

C4 = CyclicRotation(4)
V = torch.randn(2, 2, 2, 8, 8)
X, F, Z = torch.randn(2, 1, 8, 8), torch.randn(2, 2, 4, 8, 8), torch.randn(2, 2, 2, 8, 8)
CHOICE = torch.zeros(2, 2, dtype=torch.int64)
TARGET = torch.tensor([0, 1])
WEIGHT = torch.randn(64, 3)
# A good input, and the names by which a refusal may begin: its own, or that of the function or layer it is made of.
LAYERS: dict[str, tuple[Callable[[Any], Any], Tensor, str]] = {
    "LiftingLinear": (LiftingLinear(C4, (1, 8, 8), 4), X, ""),
    "GroupLinear": (GroupLinear(C4, 2, 4), torch.randn(2, 2, 4), ""),
    "LiftingConv2d": (LiftingConv2d(C4, 1, 4, 3), X, ""),
    "GroupConv2d": (GroupConv2d(C4, 2, 4, 3), F, ""),
    "OrbitPool": (OrbitPool(), F, "orbit_pool"),
    "OrbitPool(group)": (OrbitPool(group=C4), F, "orbit_pool"),
    "InvariantAvgPool2d": (InvariantAvgPool2d(), F, "invariant_avg_pool2d"),
    "BlurPool2d": (BlurPool2d(), X, ""),
    "MaxBlurPool2d": (MaxBlurPool2d(), X, ""),
    "AvgBlurPool2d": (AvgBlurPool2d(), X, ""),
    "BlurConv2d": (BlurConv2d(C4, 2, 4, 3), F, "GroupConv2d"),
    "GroupConvTranspose2d": (GroupConvTranspose2d(C4, 2, 4, 4, 2, 1), F, ""),
    "GroupUpsample": (GroupUpsample(scale_factor=2), X, ""),
    "PolyphaseUnpool2d": (
        lambda x: PolyphaseUnpool2d()(x, torch.zeros(2, 2, dtype=torch.int64)),
        X,
        "polyphase_unpool2d",
    ),
    "PolyphasePool2d": (PolyphasePool2d(), X, "polyphase_pool2d"),
    "HarmonicConv2d": (HarmonicConv2d(1, 2, 5), X, ""),
    "HarmonicNonlinearity": (HarmonicNonlinearity(2, 0), Z, ""),
    "HarmonicBatchNorm": (HarmonicBatchNorm(2, 0), Z, ""),
    "HarmonicMagnitude": (HarmonicMagnitude(), Z, "harmonic_magnitude"),
    "VectorLiftingConv2d": (VectorLiftingConv2d(C4, 2, 4, 3), V, ""),
    "VectorLiftingLinear": (VectorLiftingLinear(C4, 2, 4), V, ""),
    "VectorHead": (VectorHead(C4, 2, 4), F, ""),
    "AngleHead": (AngleHead(C4, 2, 4), F, "vector_angle"),
    "vector_norm": (vectors.vector_norm, V, ""),
    "lift_linear": (lambda x: functional.lift_linear(x, torch.ones(2, 1, 8, 8), None, C4), X, ""),
    "group_linear": (lambda x: functional.group_linear(x, torch.ones(2, 2, 4), None, C4), torch.randn(2, 2, 4), ""),
    "lift_conv2d": (lambda x: functional.lift_conv2d(x, torch.ones(2, 1, 3, 3), None, C4), X, ""),
    "group_conv2d": (lambda x: functional.group_conv2d(x, torch.ones(2, 2, 4, 3, 3), None, C4), F, ""),
    "rotate": (lambda x: functional.rotate(x, 30.0), X, ""),
    "rotate_harmonic": (lambda x: functional.rotate_harmonic(x, 30.0), Z, "rotate"),
    "polyphase_unpool2d": (lambda x: functional.polyphase_unpool2d(x, CHOICE), X, ""),
    "warp": (lambda x: metrics.warp(x, torch.zeros(2, 8, 8)), X, ""),
    "act": (lambda x: C4.act(1, x), X, "CyclicRotation(4).act"),
    "orbit": (C4.orbit, X, "CyclicRotation(4)"),
    "act_vectors": (lambda x: C4.act_vectors(1, x), V, "CyclicRotation(4).act_vectors"),
    "act_regular": (lambda x: C4.act_regular(1, x), F, "CyclicRotation(4).act_regular"),
}
WRONG: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "a tuple": lambda x: (x,),
    "numpy": lambda x: x.numpy(),
    "words": lambda x: "x",
    "int64": lambda x: x.long(),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "float64": lambda x: x.double(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "MKL-DNN": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "meta": lambda x: x.to("meta"),
    "a number": lambda x: x.sum(),
    "a vector": lambda x: x.flatten(),
    "six axes": lambda x: x.reshape(*[1] * (6 - x.ndim), *x.shape),
    "no samples": lambda x: x[:0],
    "no channels": lambda x: x[:, :0],
    "no space": lambda x: x[..., :0],
}
MODELS: dict[str, Callable[..., Any]] = {
    "logit_invariance_error": lambda m, x: metrics.logit_invariance_error(m, x, C4),
    "distribution_invariance_error": lambda m, x: metrics.distribution_invariance_error(m, x, C4),
    "prediction_consistency": lambda m, x: metrics.prediction_consistency(m, x, C4),
    "equivariance_error": lambda m, x: metrics.equivariance_error(m, x, C4, action_out=lambda g, y: y),
    "invariance_gap": lambda m, x: metrics.invariance_gap(m, x, C4),
    "rotation_error_curve": lambda m, x: metrics.rotation_error_curve(m, x, (30,)),
    "deformation_stability": lambda m, x: metrics.deformation_stability(m, x, fields=1, magnitudes=(0.1,)),
    "shift_consistency": metrics.shift_consistency,
    "shift_wobble": metrics.shift_wobble,
    "jacobian_spectral_norm": metrics.jacobian_spectral_norm,
    "jacobian_singular_values": metrics.jacobian_singular_values,
    "integrated_gradients_saliency": lambda m, x: metrics.integrated_gradients_saliency(m, x, TARGET, C4, steps=2),
    "saliency_invariance_similarity": lambda m, x: metrics.saliency_invariance_similarity(m, x, TARGET, C4),
    "InvarianceLoss": InvarianceLoss(C4),
    "assert_invariant": lambda m, x: testing.assert_invariant(m, x, C4, diagnose=False),
    "assert_equivariant": lambda m, x: testing.assert_equivariant(m, x, C4, diagnose=False),
    "invariance_error": lambda m, x: testing.invariance_error(m, x, C4),
    "locate_break": lambda m, x: testing.locate_break(m, x, C4),
    "layer_errors": lambda m, x: testing.layer_errors(m, x, C4),
    "reynolds": lambda m, x: functional.reynolds(m, C4, x),
}
OUTPUTS: dict[str, Any] = {
    "None": None,
    "()": (),
    "{}": {},
    "words": "words",
    "a number": 3,
    "a set": {1},
    "a dictionary of None": {"a": None},
    "an object": object(),
    "a tuple": lambda y: (y, y),
    "a dictionary": lambda y: {"a": y, "b": y},
    "too few": lambda y: y[:1],
    "a scalar": torch.sum,
    "complex": lambda y: y + 1j,
    "sparse": lambda y: y.to_sparse(),
    "meta": lambda y: y.to("meta"),
    "float8": lambda y: y.to(torch.float8_e4m3fn),
    "no classes": lambda y: y[:, :0],
    "NaN": lambda y: y * torch.nan,
    "infinite": lambda y: y * torch.inf,
    "numpy": lambda y: y.detach().numpy(),
    "int64": lambda y: y.long(),
}


def assert_said(call: Callable[[], object], *names: str) -> None:
    """It works, or finds fault with the model, or says one sentence that begins with one of the names."""
    try:
        call()
    except AssertionError:
        return
    except (TypeError, ValueError) as error:
        said = str(error)
    else:
        return
    found = FORM.fullmatch(said)
    assert found, said
    assert found["caller"].startswith(tuple(filter(None, names))), said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", LAYERS)
def test_wrong_tensors(what: str) -> None:
    call, good, other = LAYERS[what]
    call(good)
    for make in WRONG.values():
        assert_said(lambda: call(make(good)), what.partition("(")[0], other)  # noqa: B023


def classifier(x: Tensor) -> Tensor:
    y: Tensor = x.flatten(1) @ WEIGHT.to(x)
    return y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", MODELS)
def test_wrong_inputs_of_models(what: str) -> None:
    for make in [*WRONG.values(), lambda x: x]:
        assert_said(lambda: MODELS[what](lambda x: x.flatten(1)[:, :3], make(X)), what, "CyclicRotation(4).act")  # noqa: B023
    for model in ("a model", None):
        assert_said(lambda: MODELS[what](model, X), what)  # noqa: B023


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", MODELS)
def test_wrong_outputs_of_models(what: str) -> None:
    explains = "integrated_gradients_saliency" if what == "saliency_invariance_similarity" else ""
    for name, output in OUTPUTS.items():
        if what in ("locate_break", "layer_errors") and name in ("sparse", "meta", "float8"):
            continue
        model = (lambda x: output(classifier(x))) if callable(output) else (lambda _: output)  # noqa: B023
        assert_said(lambda: MODELS[what](model, X), what, explains)  # noqa: B023
