"""The measures as torchmetrics classes: the functions again, over batches, instances and processes."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

import equilayers.metrics
from baselines.study.models import mlp, weight_tied_mlp
from equilayers.groups import CyclicRotation
from equilayers.metrics import (
    DistributionInvarianceError,
    JacobianSpectralNorm,
    LogitInvarianceError,
    PredictionConsistency,
    SaliencyInvarianceSimilarity,
    distribution_invariance_error,
    jacobian_spectral_norm,
    logit_invariance_error,
    prediction_consistency,
    saliency_invariance_similarity,
)
from pages import ROOT

C4 = CyclicRotation(4)
KINDS = ["logit", "normalized", "distribution", "consistency", "similarity"]
kinds = pytest.mark.parametrize("kind", KINDS)


def model_and_data() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return mlp((1, 6, 6), 3, (8,)).double(), torch.randn(17, 1, 6, 6, dtype=torch.float64), torch.arange(17) % 3


def metric_of(kind: str, **options: Any) -> Metric:
    match kind:
        case "logit":
            return LogitInvarianceError(C4, **options)
        case "normalized":
            return LogitInvarianceError(C4, normalized=True, **options)
        case "distribution":
            return DistributionInvarianceError(C4, **options)
        case "consistency":
            return PredictionConsistency(C4, **options)
    return SaliencyInvarianceSimilarity(C4, **options)


def measured(kind: str, model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> float:
    match kind:
        case "logit":
            return logit_invariance_error(model, x, C4, **options).item()
        case "normalized":
            return logit_invariance_error(model, x, C4, normalized=True, **options).item()
        case "distribution":
            return distribution_invariance_error(model, x, C4, **options).item()
        case "consistency":
            return prediction_consistency(model, x, C4, **options).item()
    return saliency_invariance_similarity(model, x, y, C4, **options).item()


def update(metric: Metric, kind: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    metric.update(model, x, y) if kind == "similarity" else metric.update(model, x)


@kinds
@pytest.mark.parametrize("options", [{}, {"include_identity": True, "batch_size": 2}], ids=["plain", "options"])
def test_uneven_batches_give_the_value_of_all_the_data(kind: str, options: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)  # a metric is computed in it
    model, x, y = model_and_data()
    metric = metric_of(kind, **options)
    for part, classes in zip(x.split([1, 9, 7]), y.split([1, 9, 7]), strict=True):
        update(metric, kind, model, part, classes)
    value = metric.compute()
    assert (value.dtype, value.shape) == (torch.float64, ())
    assert value.item() == pytest.approx(measured(kind, model, x, y, **options), rel=1e-12)
    metric.reset()
    update(metric, kind, model, x[:3], y[:3])
    assert metric.compute().item() == pytest.approx(measured(kind, model, x[:3], y[:3], **options), rel=1e-12)


@kinds
def test_a_step_gives_the_value_of_its_batch(kind: str) -> None:
    model, x, y = model_and_data()
    metric = metric_of(kind)
    for part, classes in zip(x.split([5, 12]), y.split([5, 12]), strict=True):
        value = metric(model, part, classes) if kind == "similarity" else metric(model, part)
        assert value.item() == pytest.approx(measured(kind, model, part, classes), rel=1e-6)
    assert metric.compute().item() == pytest.approx(measured(kind, model, x, y), rel=1e-6)


@kinds
def test_copies_merge_and_survive_pickling(kind: str) -> None:
    model, x, y = model_and_data()
    first = metric_of(kind)
    update(first, kind, model, x[:5], y[:5])
    second = pickle.loads(pickle.dumps(first))
    third = copy.deepcopy(first)
    assert second.compute() == copy.deepcopy(first).compute()
    second.reset()
    update(second, kind, model, x[5:], y[5:])
    update(third, kind, model, x[5:], y[5:])
    first.merge_state(second)
    assert first.compute() == third.compute()
    assert first.compute().item() == pytest.approx(measured(kind, model, x, y), rel=1e-6)


def test_nan_and_directions() -> None:
    model, x, _ = model_and_data()
    metric = LogitInvarianceError(C4)
    metric.update(model, x)
    metric.update(model, x * torch.nan)
    assert metric.compute().isnan()
    assert [metric_of(kind).higher_is_better for kind in KINDS] == [False, False, False, True, True]


def test_saliency_of_the_user() -> None:
    def gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]

    model, x, y = model_and_data()
    metric = SaliencyInvarianceSimilarity(C4, saliency=gradient)
    metric.update(model, x, y)
    assert metric.compute().item() == pytest.approx(measured("similarity", model, x, y, saliency=gradient), rel=1e-6)


def collection() -> MetricCollection:
    return MetricCollection({kind: metric_of(kind) for kind in KINDS[:4]})


def test_collection() -> None:
    model, x, y = model_and_data()
    metrics = collection()
    for part in x.split([4, 13]):
        metrics.update(model, part)
    assert {kind: value.item() for kind, value in metrics.compute().items()} == pytest.approx(
        {kind: measured(kind, model, x, y) for kind in KINDS[:4]}, rel=1e-6
    )
    everything = MetricCollection({kind: metric_of(kind) for kind in KINDS})
    everything.update(model=model, x=x, target=y)
    assert everything.compute()["similarity"].item() == pytest.approx(measured("similarity", model, x, y), rel=1e-6)


def test_collection_does_not_mix_measures_that_began_alike() -> None:
    # torchmetrics lets metrics share a state when theirs are equal after the first update: all are 0 here.
    model, x, y = model_and_data()
    tied = weight_tied_mlp(C4, (1, 6, 6), 3, (8,)).double()
    metrics = collection()
    metrics.update(tied, x)
    metrics.update(model, x)
    halves = {kind: (measured(kind, tied, x, y) + measured(kind, model, x, y)) / 2 for kind in KINDS[:4]}
    assert {kind: value.item() for kind, value in metrics.compute().items()} == pytest.approx(halves, rel=1e-6)


def work(rank: int, folder: str) -> None:
    """One of two processes: its share of the samples, and the value it sees in the end."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, x, y = model_and_data()
    share = slice(0, 5) if rank == 0 else slice(5, None)
    values = {}
    for kind in KINDS:
        metric = metric_of(kind)
        update(metric, kind, model, x[share], y[share])
        values[kind] = metric.compute().item()
    norm = JacobianSpectralNorm()
    norm.update(model, x[share])
    values["spectral norm"] = norm.compute().item()
    torch.save(values, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_number_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    model, x, y = model_and_data()
    expected = {kind: measured(kind, model, x, y) for kind in KINDS}
    norms = jacobian_spectral_norm(model, x)
    expected["spectral norm"] = norms.mean().item()
    assert norms[:5].mean().item() != pytest.approx(expected["spectral norm"], rel=1e-3), "a share is not all"
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"method": "lanczos", "batch_size": 3, "seed": 1}], ids=["auto", "lanczos"])
def test_spectral_norms_of_uneven_batches_merged_copied_and_pickled(options: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    model, x, _ = model_and_data()
    first, second = JacobianSpectralNorm(**options), JacobianSpectralNorm(**options)
    for part in x.split([1, 9, 7]):
        first.update(model, part)
    expected = jacobian_spectral_norm(model, x).mean().item()
    assert first.compute().item() == pytest.approx(expected, rel=1e-6)
    assert pickle.loads(pickle.dumps(first)).compute() == copy.deepcopy(first).compute() == first.compute()
    second.update(model, x[:5])
    value = second(model, x[5:])
    assert value.item() == pytest.approx(jacobian_spectral_norm(model, x[5:]).mean().item(), rel=1e-6)
    assert second.compute().item() == pytest.approx(expected, rel=1e-6)
    second.merge_state(first)
    assert second.compute().item() == pytest.approx(expected, rel=1e-6)
    second.reset()
    second.update(model, x[:2])
    assert second.compute().item() == pytest.approx(jacobian_spectral_norm(model, x[:2]).mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match="expected method"):
        JacobianSpectralNorm(method="x").update(model, x)


@pytest.mark.parametrize("name", ["NoSuchName", "_classes_", "logit"])
def test_other_names_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'equilayers.metrics' has no attribute '{name}'"):
        getattr(equilayers.metrics, name)


def test_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name in [name for name in sys.modules if name.startswith("equilayers.metrics._torchmetrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(equilayers.metrics, "_torchmetrics", raising=False)
    with pytest.raises(ImportError, match=r"expected torchmetrics .+pip install 'equilayers\[metrics\]'"):
        equilayers.metrics.LogitInvarianceError  # noqa: B018
    model, x, _ = model_and_data()
    assert equilayers.metrics.logit_invariance_error(model, x, C4) > 0


def test_extras_are_imported_when_they_are_asked_for() -> None:
    script = (
        "import sys, equilayers.metrics as m, equilayers.losses\n"
        "assert not {'torchmetrics', 'captum'} & set(sys.modules)\n"
        "m.LogitInvarianceError\n"
        "assert 'torchmetrics' in sys.modules and 'captum' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_when_it_is_made_or_used(kind: str) -> None:
    model, x, y = model_and_data()
    with pytest.raises(TypeError, match=r"expected .+, got .+\. .+\.$"):
        update(metric_of(kind), kind, model, x.long(), y)
    with pytest.raises(ValueError, match=r"expected .+, got .+\. .+\.$"):
        update(metric_of(kind, batch_size=0), kind, model, x, y)
