"""Layers under the modes and transforms of torch, and with subclasses of tensors: right values, and no cache misled."""

import contextlib
import functools
import gc
import importlib
import importlib.util
import itertools
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import equilayers
from equilayers._tables import TABLES, Tables, table
from equilayers.functional import cost
from equilayers.functional._weight_cache import WeightCache
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group, PermutationGroup
from equilayers.nn import (
    AvgBlurPool2d,
    BlurPool2d,
    GroupConv2d,
    GroupLinear,
    HarmonicConv2d,
    InvariantAvgPool2d,
    LiftingConv2d,
    LiftingLinear,
    MaxBlurPool2d,
    OrbitPool,
    PolyphasePool2d,
)
from strategies import filled

C4, D4, C8 = CyclicRotation(4), Dihedral(4), CyclicRotation(8, "bilinear")
T5, S3 = CyclicTranslation(5), PermutationGroup([[1, 2, 0], [1, 0, 2]])
Shape = tuple[int, ...]
Case = tuple[Callable[[], nn.Module], Shape]


def tied(algorithm: str) -> dict[str, Case]:
    linear: dict[str, Case] = {
        "LiftingLinear C4": (lambda: LiftingLinear(C4, (2, 5, 5), 3, algorithm=algorithm), (2, 2, 5, 5)),
        "LiftingLinear T5": (lambda: LiftingLinear(T5, (2, 5), 3, algorithm=algorithm), (2, 2, 5)),
        "GroupLinear D4": (lambda: GroupLinear(D4, 2, 3, algorithm=algorithm), (2, 2, 8)),
        "GroupLinear D4 on maps": (lambda: GroupLinear(D4, 2, 3, algorithm=algorithm), (2, 2, 8, 2, 3)),
        "GroupLinear T5": (lambda: GroupLinear(T5, 2, 3, algorithm=algorithm), (2, 2, 5)),
    }
    maps: dict[str, Case] = {
        "LiftingConv2d D4": (lambda: LiftingConv2d(D4, 2, 3, 3, algorithm=algorithm), (2, 2, 5, 4)),
        "GroupConv2d C4": (lambda: GroupConv2d(C4, 2, 3, 3, padding=1, algorithm=algorithm), (2, 2, 4, 4, 4)),
    }
    if algorithm in ("bitwise", "orbit"):
        return linear | maps
    return linear | maps | {"GroupConv2d C8": (lambda: GroupConv2d(C8, 2, 3, 3, algorithm=algorithm), (2, 2, 8, 4, 4))}


CASES: dict[str, Case] = {
    f"{kind}, {algorithm}": case
    for algorithm in ("fourier", "dense", "bitwise", "orbit", "auto")
    for kind, case in tied(algorithm).items()
}
for reduction in ("max", "mean", "logsumexp", "norm"):
    CASES[f"OrbitPool {reduction}"] = (lambda reduction=reduction: OrbitPool(reduction)), (2, 2, 4, 3, 3)
CASES |= {
    "InvariantAvgPool2d": (InvariantAvgPool2d, (2, 2, 4, 5)),
    "BlurPool2d": (BlurPool2d, (2, 2, 6, 5)),
    "BlurPool2d, circular": (lambda: BlurPool2d(stride=3, padding_mode="circular"), (2, 2, 2, 2)),
    "MaxBlurPool2d": (lambda: MaxBlurPool2d(3), (2, 2, 6, 6)),
    "AvgBlurPool2d": (AvgBlurPool2d, (2, 2, 6, 6)),
    "PolyphasePool2d": (PolyphasePool2d, (2, 2, 6, 6)),
    "HarmonicConv2d": (lambda: HarmonicConv2d(2, 2, 3), (2, 2, 5, 5)),
}
each = pytest.mark.parametrize("case", CASES)


def layer_and_input(case: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    make, shape = CASES[case]
    torch.manual_seed(0)
    layer = make()
    return layer if dtype == torch.float32 else layer.to(dtype), filled(shape, dtype)


def gradient(layer: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    layer(x).sin().sum().backward()
    assert x.grad is not None
    return x.grad.as_subclass(Tensor)


def plain_tensors(value: Any, seen: set[int]) -> Iterator[Tensor | np.ndarray]:
    """What can be reached from a value, modules and functions left out."""
    if id(value) in seen or isinstance(value, type | type(sys)) or type(value).__name__ == "function":
        return
    seen.add(id(value))
    if isinstance(value, Tensor | np.ndarray):
        yield value
    else:
        for item in gc.get_referents(value):
            yield from plain_tensors(item, seen)


@functools.cache
def parts() -> list[Any]:
    """The modules of the package."""
    names = [m.name for m in pkgutil.walk_packages(equilayers.__path__, "equilayers.")]
    return [importlib.import_module(n) for n in names if n.split(".")[-1] not in ("__main__", "plugin")]


@functools.cache
def _cached() -> list[tuple[Any, str]]:
    return [(part, name) for part in parts() for name, value in vars(part).items() if hasattr(value, "cache_info")]


def cached_functions() -> Iterator[tuple[str, Any]]:
    """All functions of the package with a cache of their own."""
    return ((f"{part.__name__}.{name}", vars(part)[name]) for part, name in _cached())


@pytest.fixture(autouse=True)
def _empty_caches() -> None:
    """As in a process that has called nothing yet: what other tests have left takes seconds to look through."""
    for _, function in cached_functions():
        function.cache_clear()


def assert_caches_plain(layers: list[nn.Module]) -> None:
    """Tables, and what layers keep, are ordinary tensors; no other cache holds a tensor or an array."""
    kept = [TABLES.values(), *(m._cache._kept for layer in layers for m in layer.modules() if hasattr(m, "_cache"))]
    for found in itertools.chain.from_iterable(plain_tensors(value, set()) for value in kept):
        assert isinstance(found, np.ndarray) or (
            type(found) in (Tensor, nn.Parameter) and not found.is_meta and found.data_ptr()
        )
    for name, function in cached_functions():
        assert not list(plain_tensors(gc.get_referents(function), {id(function)})), name


@contextlib.contextmanager
def fresh_tables() -> Iterator[None]:
    """As in a process that has made none yet; those made meanwhile stay."""
    with TABLES._lock:
        TABLES._kept.clear()
        TABLES.bytes = 0
    yield


def fake() -> contextlib.AbstractContextManager[Any]:
    return FakeTensorMode(allow_non_fake_inputs=True)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "fake": fake,
    "meta": lambda: torch.device("meta"),
    "flops": lambda: FlopCounterMode(display=False),
    "inference": torch.inference_mode,
}


@each
def test_a_call_under_a_mode_leaves_no_trace(case: str) -> None:
    layer, x = layer_and_input(case)
    expected, slope = layer(x).detach(), gradient(layer, x)
    for mode, context in itertools.product(MODES, (torch.no_grad, torch.enable_grad)):
        other, _ = layer_and_input(case)
        with fresh_tables(), context():
            with MODES[mode]():
                given = torch.empty(x.shape) if mode == "fake" else x.to(torch.empty(0).device)
                other_layer = other if given.device == x.device else CASES[case][0]()
                assert other_layer(given).shape == expected.shape
            found = other(x)
        assert type(found) is Tensor
        torch.testing.assert_close(found.detach(), expected)
        assert_caches_plain([other])
        torch.testing.assert_close(gradient(other, x), slope)


@each
def test_fake_layers_and_inputs_outside_their_mode(case: str) -> None:
    with FakeTensorMode():
        layer, x = layer_and_input(case)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            assert type(layer(x)) is type(x) is not Tensor
    assert_caches_plain([layer])


class Labelled(Tensor):
    """A subclass that keeps its type, as those of images do."""


def labelled(x: Tensor) -> Tensor:
    return x.clone().as_subclass(Labelled)


def meta_tensor(x: Tensor) -> Tensor:
    return pytest.importorskip("monai.data").MetaTensor(x.clone(), meta={"name": "scan"})


@each
@pytest.mark.parametrize("subclass", [labelled, meta_tensor], ids=lambda make: make.__name__)
def test_subclasses(case: str, subclass: Callable[[Tensor], Tensor]) -> None:
    layer, x = layer_and_input(case)
    given = subclass(x)
    expected, slope = layer(x), gradient(layer, x)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            found = layer(given)
        assert type(found) is type(given)
        assert torch.equal(found.as_subclass(Tensor), expected)
    assert torch.equal(gradient(layer, given), slope)
    assert_caches_plain([layer])
    if subclass is meta_tensor:
        assert found.meta["name"] == "scan"  # type: ignore[attr-defined]


@each
def test_forward_mode(case: str) -> None:
    layer, x = layer_and_input(case, torch.float64)
    tangent = filled(tuple(x.shape), torch.float64, 1)
    expected = ((layer(x + 1e-6 * tangent) - layer(x - 1e-6 * tangent)) / 2e-6).detach()
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            found = [jvp(layer, (x,), (tangent,))[1]]
            with forward_ad.dual_level():
                found.append(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent)
        for each_found in found:
            torch.testing.assert_close(each_found, expected, rtol=1e-5, atol=1e-7)
    small = x[:1]
    torch.testing.assert_close(jacfwd(layer)(small), jacrev(layer)(small))
    scalar = lambda x: layer(x).sin().sum()  # noqa: E731
    torch.testing.assert_close(hessian(scalar)(small), torch.autograd.functional.hessian(scalar, small))
    if names := dict(layer.named_parameters()):
        of_weights = lambda p: torch.func.functional_call(layer, p, (x,)).sin().sum()  # noqa: E731
        moved = {name: filled(tuple(p.shape), p.dtype, 2) for name, p in names.items()}
        slopes = torch.autograd.grad(of_weights(names), list(names.values()))
        along = sum(((slope * moved[name]).sum() for name, slope in zip(names, slopes, strict=True)), torch.zeros(()))
        torch.testing.assert_close(jvp(of_weights, (names,), (moved,))[1], along.double())


def test_tables_made_within_a_transform_serve_afterwards() -> None:
    for case in CASES:
        layer, x = layer_and_input(case)
        expected = layer(x).detach()
        with fresh_tables():
            vmap(lambda x, layer=layer: layer(x[None]))(x)
        torch.testing.assert_close(layer(x).detach(), expected)
    assert_caches_plain([])


def test_groups_made_under_a_mode() -> None:
    groups: list[tuple[Callable[[], Group], Shape]] = [
        (lambda: PermutationGroup([[1, 2, 0], [1, 0, 2]]), (2, 3)),
        (lambda: DirectProduct(CyclicRotation(2), CyclicTranslation(2)), (2, 2)),
    ]
    for make, shape in groups:
        with fresh_tables(), fake():
            group = make()
            moved, elements = group.orbit(torch.empty(shape)), group.cayley_table
            assert moved.shape == (group.order, *shape)
            assert group.permutations(shape).shape == (group.order, torch.Size(shape).numel())
        assert type(elements) is np.ndarray
        x = filled(shape, torch.float32)
        for g, h in itertools.product(range(group.order), repeat=2):
            assert torch.equal(group.act(group.compose(g, h), x), group.act(g, group.act(h, x)))
    assert_caches_plain([])


def test_the_walk_sees_what_does_not_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake and meta tensors among the tables, in a layer, and arrays in a cache of another kind."""
    with fake():
        wrong = torch.zeros(3)
    layer, _ = layer_and_input("GroupLinear D4, fourier")
    layer._cache._kept = ((), [wrong])  # type: ignore[assignment]
    with pytest.raises(AssertionError):
        assert_caches_plain([layer])
    for value in (wrong, torch.zeros(3, device="meta")):
        TABLES._kept["wrong"] = (value,), 0
        try:
            with pytest.raises(AssertionError):
                assert_caches_plain([])
        finally:
            del TABLES._kept["wrong"]
    remembering = functools.lru_cache(np.arange)
    remembering(3)
    monkeypatch.setattr(cost, "cheapest_linear", remembering)
    with pytest.raises(AssertionError, match="cheapest_linear"):
        assert_caches_plain([])


def test_bounded_in_bytes() -> None:
    tables, made = Tables(1000), []

    def get(number: int, entries: int) -> Tensor:
        def make() -> Tensor:
            made.append(number)
            return torch.full((entries,), float(number))

        found: Tensor = tables.get(number, make)
        assert len(found) == entries
        return found

    for number in range(5):
        get(number, 100)
    assert len(tables.values()) == 2
    assert tables.bytes == 800
    get(3, 100), get(5, 100)
    assert [int(t[0]) for t in tables.values()] == [3, 5]  # 4 was not used for longer
    get(6, 10_000)
    assert [int(t[0]) for t in tables.values()] == [6]  # larger than the limit, but wanted now
    get(6, 10_000)
    assert made == [0, 1, 2, 3, 4, 5, 6]
    get(7, 1)
    assert tables.bytes == 4


def test_all_tables_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TABLES, "limit", 300_000)
    with torch.no_grad():
        for size in range(20, 60, 2):
            LiftingConv2d(D4, 1, 1, 3, algorithm="fourier")(torch.randn(1, 1, size, size))
            LiftingLinear(C4, (size, size), 1, algorithm="fourier")(torch.randn(1, size, size))
            GroupLinear(CyclicTranslation(size), 1, 1, algorithm="fourier")(torch.randn(1, 1, size))
            assert sum(sizes for _, sizes in TABLES._kept.values()) == TABLES.bytes <= TABLES.limit


@pytest.mark.parametrize(("group", "size", "most"), [(C4, 512, 3e6), (D4, 1024, 10e6)], ids=["C4 512", "D4 1024"])
def test_tables_are_compact(group: Group, size: int, most: float) -> None:
    with fresh_tables(), torch.no_grad():
        GroupConv2d(group, 1, 1, 3, padding=1, algorithm="fourier")(torch.randn(1, 1, group.order, size, size))
    assert TABLES.bytes < most


def test_the_bound_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUILAYERS_TABLE_BYTES", "12345")
    spec = importlib.util.find_spec("equilayers._tables")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TABLES.limit == 12345


def test_what_a_weight_is_made_into_is_plain_or_not_kept() -> None:
    cache, weight = WeightCache(), torch.randn(3)
    made = lambda: labelled(weight)  # noqa: E731
    assert cache.get(weight, made) is not cache.get(weight, made)
    with fake():
        assert type(cache.get(weight, lambda: torch.zeros(3))) is not Tensor
    assert type(cache.get(weight, weight.clone)) is Tensor


def test_a_failed_table_is_not_kept() -> None:
    calls = []

    @table
    def fails(n: int) -> int:
        calls.append(n)
        raise ValueError(n)

    for _ in range(2):
        with pytest.raises(ValueError, match="1"):
            fails(1)
    assert calls == [1, 1]
