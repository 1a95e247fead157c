"""A check of invariance passes only what is invariant, and only where something was shown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equilayers.nn import InvariantAvgPool2d, LiftingConv2d, OrbitPool
from equilayers.testing import assert_equivariant, assert_invariant, invariance_error
from planted import X, invariant, one_buffer, plain
from strategies import C4

Model = Callable[[Tensor], Any]


def assert_fails(model: Model, **settings: Any) -> None:
    with pytest.raises(AssertionError):
        assert_invariant(model, X, C4, **settings)


def test_outputs_in_one_buffer() -> None:
    assert_fails(one_buffer())
    assert_fails(one_buffer(), bitwise=True)
    assert invariance_error(one_buffer(), X, C4) > 0.1


def test_models_that_write_to_their_input() -> None:
    def model(x: Tensor) -> Tensor:
        x /= 255
        return invariant(x)

    x = X.clone()
    assert_invariant(model, x, C4, bitwise=True)
    assert torch.equal(x, X)


class Strided(nn.Sequential):
    """A small plain network."""

    def __init__(self) -> None:
        layers = [
            module
            for i in range(6)
            for module in (nn.Conv2d(1 if i == 0 else 8, 8, 3, 2 if i == 2 else 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def tied() -> nn.Module:
    lift = LiftingConv2d(C4, 1, 8, 3, padding=1, algorithm="bitwise")
    return nn.Sequential(lift, nn.ReLU(), OrbitPool(), InvariantAvgPool2d(), nn.Linear(8, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_excuse(dtype: torch.dtype) -> None:
    assert_invariant(tied().to(dtype), X, C4)
    assert_fails(Strided().eval().to(dtype))


VACUOUS: dict[str, tuple[Model, Tensor, str]] = {
    "constant": (lambda x: torch.ones(len(x), 3), X, "same for every"),
    "a bias alone": (nn.Sequential(nn.Flatten(), nn.Linear(64, 3).requires_grad_(False)), 0 * X, "inputs are the same"),
    "infinite": (lambda x: torch.full((len(x), 3), torch.inf), X, "finite"),
    "NaN": (lambda x: torch.full((len(x), 3), torch.nan), X, ""),
    "x of zeros": (plain, torch.zeros(4, 1, 8, 8), "inputs are the same"),
    "x that does not move": (plain, torch.ones(4, 1, 8, 8) * X[:, :, :1, :1], "inputs are the same"),
}


@pytest.mark.parametrize("case", VACUOUS)
def test_nothing_shown_is_not_passed(case: str) -> None:
    model, x, words = VACUOUS[case]
    with pytest.raises(
        (AssertionError, ValueError), match=rf"nothing (is|was) shown[\s\S]*{words}|nan in the place of nan"
    ):
        assert_invariant(model, x, C4)
    image_model = (lambda x: x * 0 + 1) if case == "constant" else (lambda x: model(x)[:, :, None, None] + 0 * x)
    with pytest.raises((AssertionError, ValueError)):
        assert_equivariant(image_model, x, C4)


def spread(x: Tensor) -> Tensor:
    """How far samples differ, pixel by pixel: the same when all of them are rotated alike."""
    return (x - x.mean(0)).square().sum((1, 2, 3))[:, None]


def normalised(x: Tensor) -> Tensor:
    """Batch normalisation of pixels in training mode, and an invariant pool."""
    return ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()).square().sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("model", [spread, normalised])
def test_samples_that_influence_each_other(model: Model) -> None:
    with pytest.raises(AssertionError, match="the samples of a batch influence each other"):
        assert_invariant(model, X, C4)


@dataclass
class Out:
    """What networks of transformers return."""

    scores: Tensor
    hidden: Tensor


CONTAINERS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda y: {"a": y, "b": y * 2},
    "tuple": lambda y: (y, y * 2),
    "list": lambda y: [y, {"deep": y}],
    "dataclass": lambda y: Out(y, 2 * y),
    "numpy": lambda y: y.numpy(),
    "dict of numpy": lambda y: {"a": y.numpy()},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_outputs_of_every_form(container: str) -> None:
    wrap = CONTAINERS[container]
    assert_invariant(lambda x: wrap(invariant(x)), X, C4, bitwise=True)
    assert_fails(lambda x: wrap(plain(x)))


def test_the_leaf_that_breaks_is_named() -> None:
    with pytest.raises(AssertionError, match="deep"):
        assert_invariant(lambda x: {"good": invariant(x), "more": {"deep": plain(x)}}, X, C4)
    with pytest.raises(AssertionError, match=r"hidden"):
        assert_invariant(lambda x: Out(invariant(x), plain(x)), X, C4)


def test_vectors_that_rotate_with_the_image() -> None:
    rows = torch.linspace(-1, 1, 8)

    def centre(x: Tensor) -> Tensor:
        """The centre of mass, (B, 2) as (x to the right, y upwards)."""
        mass = x.square().sum(1)
        return torch.stack([(mass * rows).sum((1, 2)), -(mass * rows[:, None]).sum((1, 2))], 1)

    assert_equivariant(centre, X, C4, output="vector")
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: centre(x).flip(1), X, C4, output="vector")
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: plain(x)[:, :2], X, C4, output="vector")


def test_absolute_tolerance() -> None:
    def nearly(x: Tensor) -> Tensor:
        return 100 * invariant(x) + 1e-2 * plain(x).tanh()

    assert_invariant(nearly, X, C4, atol=0.05)
    for settings in ({}, {"atol": 1e-4}):
        assert_fails(nearly, **settings)


@pytest.mark.parametrize("masked", [-1e9, float(np.finfo(np.float32).min)])
def test_masked_logits_hide_nothing(masked: float) -> None:
    def with_mask(logits: Tensor) -> Tensor:
        return torch.cat((logits, torch.full((len(logits), 1), masked)), 1)

    assert_fails(lambda x: with_mask(plain(x)))
    assert_invariant(lambda x: with_mask(invariant(x)), X, C4)


def test_exceptions_of_the_model_say_what_was_tried() -> None:
    class EngineError(Exception):
        pass

    def model(x: Tensor) -> Tensor:
        if x[0, 0, 0, 0] != X[0, 0, 0, 0]:
            raise EngineError("bad shape")
        return plain(x)

    with pytest.raises(RuntimeError, match=r"assert_invariant: .*g = 1.*bad shape") as caught:
        assert_invariant(model, X, C4)
    assert isinstance(caught.value.__cause__, EngineError)


def test_traced_and_frozen_modules_are_judged() -> None:
    torch.manual_seed(0)
    assert_fails(torch.jit.freeze(torch.jit.trace(Strided().eval(), X)))
