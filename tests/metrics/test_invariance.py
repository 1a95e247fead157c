"""Measures on the outputs: by hand, against loops, exact on weight-tied models, and honest about NaN."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metric_reference as slow
from baselines.study.models import mlp, weight_tied_mlp
from equilayers.groups import CyclicTranslation, Group
from equilayers.metrics import distribution_invariance_error, logit_invariance_error, prediction_consistency
from reference import Array
from strategies import C2, C4, D1, D2, D4, T3, TRIVIAL, name

Measure = Callable[..., Tensor]


def normalized(model: Callable[[Tensor], Tensor], x: Tensor, group: Group, **options: object) -> Tensor:
    return logit_invariance_error(model, x, group, normalized=True, **options)  # type: ignore[arg-type]


REFERENCES: dict[Measure, slow.Compare] = {
    logit_invariance_error: slow.logit_gap,
    normalized: slow.normalized_gap,
    distribution_invariance_error: slow.divergence,
    prediction_consistency: slow.same_class,
}
SPACES: dict[Group, tuple[int, ...]] = {
    C2: (1, 3, 4),
    C4: (1, 4, 4),
    D1: (1, 3, 4),
    D2: (2, 4, 3),
    D4: (1, 5, 5),
    T3: (1, 2, 6),
    CyclicTranslation(12): (1, 1, 12),
}
every = pytest.mark.parametrize("measure", REFERENCES, ids=lambda m: m.__name__)
grouped = pytest.mark.parametrize("group", SPACES, ids=name)
SWAP = CyclicTranslation(2)


def samples(group: Group, batch: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, *SPACES[group], dtype=dtype)


def plain(group: Group, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return mlp(SPACES[group], 5, (16, 16)).to(dtype)


@pytest.mark.parametrize(("group", "shape"), [(SWAP, (2,)), (C2, (1, 1, 2))], ids=["T2", "C2"])
def test_two_pixels_by_hand(group: Group, shape: tuple[int, ...]) -> None:
    weight = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    model = lambda x: x.flatten(1) @ weight.T  # noqa: E731
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64).reshape(1, *shape)
    # f(x) = (7, -3), f(gx) = (5, -1): the probabilities of class 0 are those of margins 10 and 6.
    p, q = 1 / (1 + math.exp(-10)), 1 / (1 + math.exp(-6))
    divergence = p * math.log(p / q) + (1 - p) * (math.log1p(-p) - math.log1p(-q))
    assert logit_invariance_error(model, x, group).item() == 4.0
    assert normalized(model, x, group).item() == pytest.approx(8 / 58, rel=1e-15)
    assert distribution_invariance_error(model, x, group).item() == pytest.approx(divergence, rel=1e-10)
    assert prediction_consistency(model, x, group).item() == 1.0
    both = torch.cat((x, -x))
    # x - gx = (-2, 2) makes f - f' = (2, -2) for either sign of x.
    assert logit_invariance_error(model, both, group).item() == 4.0
    assert logit_invariance_error(model, both, group, include_identity=True).item() == 2.0


@every
@grouped
@pytest.mark.parametrize("include_identity", [False, True])
def test_against_the_reference(measure: Measure, group: Group, include_identity: bool) -> None:
    model, x = plain(group), samples(group, 3)

    def one(sample: Array) -> Array:
        out: Array = model(torch.from_numpy(sample.copy())[None])[0].detach().numpy()
        return out

    expected = slow.orbit_mean(REFERENCES[measure], one, x.numpy(), group, include_identity)
    for size in (None, 1, 2, 100):
        got = measure(model, x, group, include_identity=include_identity, batch_size=size)
        assert got.item() == pytest.approx(expected, rel=1e-10)


@grouped
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_tied_models_are_exact(group: Group, dtype: torch.dtype) -> None:
    model = weight_tied_mlp(group, SPACES[group], 5, (16, 16)).to(dtype)
    for batch, batch_size in [(1, None), (33, None), (33, 8)]:
        x = samples(group, batch, dtype)
        got = [measure(model, x, group, batch_size=batch_size).item() for measure in REFERENCES]
        assert got == [0.0, 0.0, 0.0, 1.0], (batch, batch_size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@every
def test_scalar_of_the_dtype_of_the_logits(measure: Measure, dtype: torch.dtype) -> None:
    for x in (samples(C4, 2, torch.float32), samples(C4, 0, torch.float32)):
        value = measure(lambda v: v.flatten(1)[:, :3].to(dtype), x, C4)
        assert (value.dtype, value.shape, value.requires_grad) == (dtype, (), False)


class Watcher(nn.Module):
    """Dropout that notes its mode, and raises when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.modes: list[bool] = []
        self.fault = False

    def forward(self, x: Tensor) -> Tensor:
        self.modes += [self.training, self.drop.training]
        if self.fault and len(self.modes) > 2:
            raise RuntimeError("planted")
        return self.drop(x)


@every
def test_models_run_in_eval_mode_and_come_back(measure: Measure) -> None:
    watcher = Watcher()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), watcher, nn.BatchNorm1d(5)).double().train()
    model[1].eval()
    watcher.drop.eval()
    watcher.fault = False
    before = [module.training for module in model.modules()]
    x = samples(C4)
    assert measure(model, x, C4) == measure(model, x, C4)  # no dropout noise, no batch statistics
    assert not any(watcher.modes)
    assert model[3].num_batches_tracked == 0
    watcher.fault = True
    with pytest.raises(RuntimeError, match="planted"):
        measure(model, x, C4)
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


@every
@pytest.mark.parametrize("batch_size", [None, 1])
def test_nan_and_nothing_are_neither_a_crash_nor_invariance(measure: Measure, batch_size: int | None) -> None:
    x = samples(C4)
    x[3, 0, 1, 2] = math.nan
    assert measure(plain(C4), x, C4, batch_size=batch_size).isnan()
    tied = weight_tied_mlp(C4, SPACES[C4], 5, (16, 16)).double()
    assert measure(tied, x, C4).isnan()
    assert measure(plain(C4), samples(C4, 0), C4, batch_size=batch_size).isnan()  # no samples


def divergence(f: list[float], fg: list[float]) -> float:
    """DI of a model that returns f for one input and fg for the other of its orbit."""
    table = torch.tensor([f, fg], dtype=torch.float64)
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    return distribution_invariance_error(lambda v: table[v[:, 0].long()], x, SWAP).item()


def test_divergence_at_its_corners() -> None:
    assert divergence([1.0, -2.0, 0.5], [1.0, -2.0, 0.5]) == 0.0
    assert divergence([1e4, 0.0], [0.0, 1e4]) == 1e4
    # 0 · log(0 / q) = 0: a class that x excludes, as masked logits do.
    assert divergence([0.0, -math.inf], [0.0, 1.0]) == pytest.approx(math.log(1 + math.e), rel=1e-14)
    assert divergence([0.0, 1.0, -math.inf], [0.0, 1.0, -math.inf]) == 0.0
    assert divergence([0.0, 1.0], [0.0, -math.inf]) == math.inf
    # Nearly equal logits: the terms cancel to less than their rounding errors, and never below zero.
    f = torch.randn(200, 9, dtype=torch.float64)
    for size in (1e-15, 1e-12, 1e-8):
        near = torch.stack((f, f + size * torch.randn_like(f)), 1)
        assert min(divergence(a.tolist(), b.tolist()) for a, b in near) >= 0, size


def test_outputs_that_are_huge_or_zero() -> None:
    x = 1e4 * samples(C4, dtype=torch.float32)
    assert all(measure(plain(C4, torch.float32), x, C4).isfinite() for measure in REFERENCES)
    assert normalized(lambda x: 0 * x.flatten(1), samples(C4), C4).item() == 0.0


@every
@pytest.mark.parametrize(
    ("error", "change"),
    [
        *((ValueError, {"model": model}) for model in (torch.sum, torch.flatten, lambda x: x, lambda x: [1.0])),
        (ValueError, {"model": lambda x: x.flatten(1)[:1]}),
        (TypeError, {"x": torch.ones(3, 1, 4, 4, dtype=torch.int64)}),
        (TypeError, {"x": [[1.0, 2.0]]}),
        (ValueError, {"x": torch.ones(4)}),
        (ValueError, {"group": TRIVIAL}),
        *((TypeError, {"group": group}) for group in (4, None)),
        *((ValueError, {"batch_size": size}) for size in (0, -1)),
        *((TypeError, {"batch_size": size}) for size in (2.5, True)),
    ],
)
def test_errors(measure: Measure, error: type[Exception], change: dict[str, object]) -> None:
    arguments: dict[str, object] = {"model": lambda x: x.flatten(1), "x": torch.ones(3, 1, 4, 4), "group": C4, **change}
    caller = "logit_invariance_error" if measure is normalized else measure.__name__
    with pytest.raises(error, match=rf"^{caller}: expected .+, got .+\. .+\.$"):
        measure(**arguments)


def test_error_of_a_space_the_group_does_not_act_on() -> None:
    with pytest.raises(ValueError, match=r"expected .+, got .+\. .+\.$"):
        logit_invariance_error(lambda x: x.flatten(1), torch.ones(3, 1, 4, 5), "T3")
