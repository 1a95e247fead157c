"""The measures as torchmetrics classes: the functions again, over batches, instances and processes."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

import equilayers.metrics as m
from baselines.study.models import mlp, weight_tied_mlp
from metric_reference import gradient
from strategies import C2, C4, D2

FAULT = r"expected .+, got .+\. .+\.$"


def mean_norm(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return m.jacobian_spectral_norm(model, x, **options).mean()


MADE: dict[str, tuple[type[Metric], Any, dict[str, Any]]] = {
    "logit": (m.LogitInvarianceError, m.logit_invariance_error, {"group": C4}),
    "normalized": (m.LogitInvarianceError, m.logit_invariance_error, {"group": C4, "normalized": True}),
    "distribution": (m.DistributionInvarianceError, m.distribution_invariance_error, {"group": C4}),
    "consistency": (m.PredictionConsistency, m.prediction_consistency, {"group": C4}),
    "similarity": (m.SaliencyInvarianceSimilarity, m.saliency_invariance_similarity, {"group": C4}),
    "own saliency": (
        m.SaliencyInvarianceSimilarity,
        m.saliency_invariance_similarity,
        {"group": C4, "saliency": gradient, "include_identity": True},
    ),
    "options": (
        m.LogitInvarianceError,
        m.logit_invariance_error,
        {"group": C4, "include_identity": True, "batch_size": 2},
    ),
    "norm": (m.JacobianSpectralNorm, mean_norm, {}),
    "lanczos": (m.JacobianSpectralNorm, mean_norm, {"method": "lanczos", "batch_size": 3, "seed": 1}),
    "error": (m.EquivarianceError, m.equivariance_error, {"group": C2, "include_identity": True}),
    "worst": (m.EquivarianceError, m.equivariance_error, {"group": C4, "reduction": "max"}),
    "deformation": (
        m.DeformationStability,
        m.deformation_stability,
        {"magnitudes": (0.1, 0.3), "fields": 3, "seed": 4, "cutoff": 2},
    ),
    "shifts": (m.ShiftConsistency, m.shift_consistency, {"pairs": 2, "seed": 5}),
    "all shifts": (m.ShiftConsistency, m.shift_consistency, {"exhaustive": True, "max_shift": 1}),
    "wobble": (m.ShiftWobble, m.shift_wobble, {"shifts": 2, "batch_size": 2}),
    "largest": (m.ShiftWobble, m.shift_wobble, {"shifts": 2, "reduction": "max"}),
}
SHIFTED = ("shifts", "all shifts", "wobble", "largest")
INEXACT = {"norm": 1e-6, "lanczos": 1e-6, "deformation": 1e-10}
HIGHER = {m.PredictionConsistency, m.SaliencyInvarianceSimilarity, m.ShiftConsistency}
kinds = pytest.mark.parametrize("kind", MADE)


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)  # a metric is computed in it


def data(kind: str = "logit") -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 2, 3, padding=1) if MADE[kind][0] is m.EquivarianceError else mlp((1, 6, 6), 3, (8,))
    return model.double(), torch.randn(17, 1, 6, 6, dtype=torch.float64), torch.arange(17) % 3


def made(kind: str, **more: Any) -> Metric:
    return MADE[kind][0](**MADE[kind][2], **more)


def given(kind: str, *args: Any) -> tuple[Any, ...]:
    """The arguments of `update`: with the classes where the measure looks at them."""
    return args if MADE[kind][0] is m.SaliencyInvarianceSimilarity else args[:2]


def measured(kind: str, *args: Any) -> Any:
    return MADE[kind][1](*given(kind, *args), **MADE[kind][2])


def assert_close(kind: str, got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=INEXACT.get(kind, 1e-12), atol=1e-14)


@kinds
def test_uneven_batches_give_the_value_of_all_the_data(kind: str) -> None:
    model, x, y = data(kind)
    metric, stepped, values = made(kind), made(kind), []
    for part, classes in zip(x.split([1, 9, 7]), y.split([1, 9, 7]), strict=True):
        metric.update(*given(kind, model, part, classes))
        values.append(stepped(*given(kind, model, part, classes)))
        if kind not in SHIFTED:
            assert_close(kind, values[-1], measured(kind, model, part, classes))
    for got in (metric.compute(), stepped.compute(), pickle.loads(pickle.dumps(metric)).compute()):
        assert_close(kind, got, measured(kind, model, x, y))
    if kind == "largest":
        assert max(values) == metric.compute()
    elif kind in SHIFTED:  # a step has the value of its own samples, whose shifts go on from the last ones
        assert_close(kind, sum(n * value for n, value in zip((1, 9, 7), values, strict=True)) / 17, metric.compute())
    metric.reset()
    metric.update(*given(kind, model, x[:3], y[:3]))
    assert_close(kind, metric.compute(), measured(kind, model, x[:3], y[:3]))


@kinds
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_copies_merge_and_know_nan_and_nothing(kind: str) -> None:
    model, x, y = data(kind)
    first = made(kind)
    assert first.higher_is_better == (None if MADE[kind][0] is m.JacobianSpectralNorm else MADE[kind][0] in HIGHER)
    assert torch.cat([value.flatten() for value in _values(first.compute())]).isnan().all()
    first.update(*given(kind, model, x[:5], y[:5]))
    same, second = copy.deepcopy(first), copy.deepcopy(first)
    same.merge_state(first)
    if kind != "deformation":  # quartiles of the same values twice are others
        assert_close(kind, same.compute(), copy.deepcopy(first).compute())  # a merge keeps what was computed
    second.reset()
    second.update(*given(kind, model, x[5:], y[5:]))
    first.merge_state(second)
    if kind not in SHIFTED:
        assert_close(kind, first.compute(), measured(kind, model, x, y))
    if kind not in ("norm", "lanczos", "own saliency"):  # whose gradients need not know of a NaN
        first.update(*given(kind, model, x[:0], y[:0]))
        assert not any(value.isnan().any() for value in _values(first.compute()))
        first.update(*given(kind, model, x * torch.nan, y))
        assert any(value.isnan().any() for value in _values(first.compute()))


def _values(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


ALIKE: dict[str, dict[str, Metric]] = {
    "kinds": {kind: made(kind) for kind in ("logit", "normalized", "distribution", "consistency")},
    "settings": {str(s): m.ShiftWobble(max_shift=s, exhaustive=True) for s in (1, 2)},
    "groups": {repr(g): m.LogitInvarianceError(g) for g in (C4, D2)},  # zeros and counts agree
}


@pytest.mark.parametrize("case", ALIKE)
def test_a_collection_does_not_mix_measures_that_began_alike(case: str) -> None:
    """Torchmetrics lets metrics share a state when theirs are equal after the first update: all are exact here."""
    model, x, _ = data()
    tied = lambda v: v.flatten(1).sort(1).values[:, :3]  # noqa: E731
    together = MetricCollection(copy.deepcopy(ALIKE[case]))
    together.update(tied, x)
    together.update(model, x)
    for name, value in together.compute().items():
        alone = copy.deepcopy(ALIKE[case][name])
        alone.update(tied, x)
        alone.update(model, x)
        assert_close("", value, alone.compute())
    assert len({value.item() for value in together.compute().values()}) == len(together)


def test_a_collection_hands_on_the_classes() -> None:
    model, x, y = data()
    everything = MetricCollection({kind: made(kind) for kind in ("logit", "similarity")})
    everything.update(model=model, x=x, target=y)
    for kind, value in everything.compute().items():
        assert_close(kind, value, measured(kind, model, x, y))


def work(index: int, folder: str) -> None:
    """One of two processes: its share of the samples, and the values it sees in the end."""
    rank = index + 1
    values: dict[str, Any] = {"captum": "captum" in sys.modules}
    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for kind in ("logit", "consistency", "own saliency", "norm", "worst", "deformation"):
        model, x, y = data(kind)
        metric, share = made(kind), slice(0, 5) if rank == 0 else slice(5, None)
        metric.update(*given(kind, model, x[share], y[share]))
        values[kind] = metric.compute()
    torch.save(values, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_number_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    other = torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=1, join=False)
    work(-1, str(tmp_path))
    other.join()
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert not (values.pop("captum") and rank == 1), "the classes do not import captum"
        for kind, value in values.items():
            assert_close(kind, value, measured(kind, *data(kind)))


@pytest.mark.parametrize("name", ["NoSuchName", "_classes_", "logit"])
def test_other_names_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'equilayers.metrics' has no attribute '{name}'"):
        getattr(m, name)


def test_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "equilayers.metrics._torchmetrics")
    monkeypatch.delattr(m, "_torchmetrics", raising=False)
    with pytest.raises(ImportError, match=r"expected torchmetrics .+pip install 'equilayers\[metrics\]'"):
        m.LogitInvarianceError  # noqa: B018
    x = torch.randn(2, 1, 6, 6)
    assert m.logit_invariance_error(lambda v: v.flatten(1)[:, :3], x, C4) > 0


@pytest.mark.parametrize("kind", [kind for kind in MADE if "batch_size" not in MADE[kind][2]])
def test_errors_when_it_is_used(kind: str) -> None:
    model, x, y = data(kind)
    with pytest.raises(TypeError, match=FAULT):
        made(kind).update(*given(kind, model, x.long(), y))
    with pytest.raises(ValueError, match=FAULT):
        made(kind, batch_size=0).update(*given(kind, model, x, y))


def test_errors_name_the_class() -> None:
    model, x, _ = data()
    for error, name, options in (
        (ValueError, "ShiftConsistency", {"pairs": 0}),
        (ValueError, "ShiftWobble", {"reduction": "sum"}),
        (TypeError, "EquivarianceError", {"group": 4}),
        (ValueError, "DeformationStability", {"magnitudes": (2,)}),
        (ValueError, "ShiftWobble", {"crop_size": 9}),
        (TypeError, "LogitInvarianceError", {"group": 4}),
    ):
        with pytest.raises(error, match=f"^{name}: {FAULT}"):
            getattr(m, name)(**options).update(model, x)
    with pytest.raises(ValueError, match="expected method"):
        m.JacobianSpectralNorm(method="x").update(model, x)


def test_weight_tied_models_are_exact() -> None:
    _, x, _ = data()
    metric = m.LogitInvarianceError("C4")
    metric.update(weight_tied_mlp(C4, (1, 6, 6), 3, (8,)).double(), x)
    assert metric.compute() == 0
