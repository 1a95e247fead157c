"""The shipping matrix: every layer and a small network of each kind, in every way a model is copied, moved and run."""

import copy
import io
import itertools
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel

import equilayers.convert
import equilayers.nn
from equilayers.nn import (
    BlurPool2d,
    GroupLayerNorm,
    GroupLinear,
    GroupPositionEmbedding,
    GroupRMSNorm,
    GroupTokens,
    GroupTransformerEncoder,
    HarmonicBatchNorm,
    HarmonicNonlinearity,
    InvariantAvgPool2d,
    LiftingConv2d,
    OrbitPool,
)
from shipped import (
    D1,
    LAYERS,
    NETWORKS,
    SHIPPED,
    AtPlaces,
    Broken,
    Checkpointed,
    Together,
    Variant,
    Variants,
    distributed,
    gradients,
    kit,
    trained,
    weighted,
    wrapped,
)

Way = Callable[[Variant], None]
EACH: dict[str, Way] = {}  # tested variant by variant
ALL: dict[str, Callable[[list[Variant], Path], None]] = {}  # tested on all variants at once, for their tool is slow
SIZES = (5, 8, 6)  # of batches


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """To rounding, in terms of the largest number."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tolerance * max(1e-2, float(expected.detach().abs().max()))
    )


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """In terms of the largest of them all: some vanish but for rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 0
    for key, gradient in expected.items():
        torch.testing.assert_close(
            found[key], gradient, rtol=0, atol=tolerance * largest, msg=lambda m, k=key: f"{k}: {m}"
        )


def other(module: nn.Module) -> nn.Module:
    """The same with parameters of its own."""
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return twin


def each(way: Way) -> Way:
    EACH[way.__name__.replace("_", " ")] = way
    return way


def all_at_once(way: Callable[[list[Variant], Path], None]) -> Callable[[list[Variant], Path], None]:
    ALL[way.__name__.replace("_", " ")] = way
    return way


@each
def deepcopy_and_pickle(variant: Variant) -> None:
    module, x = trained(variant), variant.batch()
    module.train()(x)
    module.eval()
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            y = module(x)
            for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                assert torch.equal(twin(x), y)
                assert repr(twin) == repr(module)
                assert [getattr(m, "exactness", "") for m in twin.modules()] == [
                    getattr(m, "exactness", "") for m in module.modules()
                ]
    assert not torch.equal(other(module)(x), y)
    assert torch.equal(module(x), y)


@each
def average_of_weights(variant: Variant) -> None:
    first, x = trained(variant).eval(), variant.batch()
    second = other(first)
    averaged = AveragedModel(first, use_buffers=True)
    for module in (first, second):
        averaged.update_parameters(module)
    state = {k: (v + second.state_dict()[k]) / 2 if v.is_floating_point() else v for k, v in first.state_dict().items()}
    assert_near(averaged.eval()(x), functional_call(first, state, (x,)))


if torch.cuda.is_available():

    @each
    def on_a_gpu(variant: Variant) -> None:
        """Outputs and gradients of the processor, but for rounding, which TF32 makes coarse."""
        module, x = trained(variant), variant.batch()
        moved = copy.deepcopy(module).cuda()
        assert_near(moved(x.cuda()).cpu(), module(x), 5e-3)
        found, expected = gradients(moved, x.cuda()), gradients(module, x)
        assert_same_gradients({key: g.cpu() for key, g in found.items()}, expected, 1e-2)


@each
def saved_and_loaded(variant: Variant) -> None:
    x = variant.batch()
    for first, then in itertools.product((True, False), repeat=2):
        saved, loaded = trained(variant).train(first), other(trained(variant)).train(then)
        for module in (saved, loaded):
            module(x)
        buffer = io.BytesIO()
        torch.save(saved.state_dict(), buffer)
        buffer.seek(0)
        loaded.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        assert torch.equal(loaded.eval()(x), saved.eval()(x))


SUMS = (GroupPositionEmbedding, AtPlaces, GroupTokens)
# Nothing in them that autocast would take to a lower precision.
NO_PRODUCTS = (HarmonicBatchNorm, HarmonicNonlinearity, GroupLayerNorm, GroupRMSNorm, *SUMS)


@each
def autocast(variant: Variant) -> None:
    module, x = variant.make().eval(), variant.batch()
    y = module(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            low = module(x)
            with torch.no_grad():
                assert module(x).dtype == low.dtype
        assert_near(low.float(), y, 16 * torch.finfo(dtype).eps)
        if not list(module.parameters()) or isinstance(module, NO_PRODUCTS):
            assert low.dtype == y.dtype
            continue
        assert low.dtype in (dtype, torch.float32)
        assert not torch.equal(low.float(), y)
        with torch.autocast("cpu", dtype=dtype):
            found = gradients(module, x, of_input=True)
        assert_same_gradients(found, gradients(module, x, of_input=True), 32 * torch.finfo(dtype).eps)
        with torch.autocast("cpu", dtype=dtype):
            assert copy.deepcopy(module).double()(x.double()).dtype == torch.float64


@each
def functional_calls(variant: Variant) -> None:
    module, x = trained(variant).eval(), variant.batch()
    y, twin = module(x), other(module)
    parameters = dict(twin.named_parameters())
    assert torch.equal(functional_call(module, parameters, (x,)), twin(x))
    assert torch.equal(module(x), y)
    found = grad(lambda p: weighted(functional_call(module, p, (x,))))(parameters)
    assert_same_gradients(found, gradients(twin, x))


@each
def vmap_of_samples(variant: Variant) -> None:
    module = trained(variant).eval()
    batches = torch.stack([variant.batch(seed=seed) for seed in range(4)])
    expected = torch.stack([module(x) for x in batches])
    assert_near(vmap(module)(batches), expected)
    assert_near(vmap(module, 1)(batches.transpose(0, 1).contiguous()), expected)
    assert_near(vmap(lambda x: module(x[None])[0])(batches[0]), expected[0])
    parameters = {key: p.detach() for key, p in module.named_parameters()}
    of_one = grad(lambda p, x: weighted(functional_call(module, p, (x[None],))), argnums=(0, 1))
    found, of_inputs = vmap(of_one, (None, 0))(parameters, batches[0])
    for i, x in enumerate(batches[0]):
        own = {key: g[i] for key, g in found.items()} | {"x": of_inputs[i : i + 1]}
        assert_same_gradients(own, gradients(module, x[None], of_input=True))


@each
def vmap_of_weights(variant: Variant) -> None:
    modules = [trained(variant).eval()]
    modules.append(other(modules[0]))
    state = stack_module_state(modules)
    call = lambda p, b, x: functional_call(modules[0], (p, b), (x,))  # noqa: E731
    batches = torch.stack([variant.batch(seed=seed) for seed in range(2)])
    assert_near(vmap(call, (0, 0, None))(*state, batches[0]), torch.stack([m(batches[0]) for m in modules]))
    both = torch.stack([m(x) for m, x in zip(modules, batches, strict=True)])
    assert_near(vmap(call)(*state, batches), both)
    found = vmap(grad(lambda p, b, x: weighted(call(p, b, x))))(*state, batches)
    for i, (module, x) in enumerate(zip(modules, batches, strict=True)):
        assert_same_gradients({key: g[i] for key, g in found.items()}, gradients(module, x))


@each
def meta_device(variant: Variant) -> None:
    module, x = trained(variant), variant.batch()
    y = module.eval()(x)
    with torch.device("meta"):
        made = [trained(variant).eval() for _ in range(3)]
    for empty in made:
        there = empty(x.to("meta").requires_grad_())
        assert (there.is_meta, there.shape) == (True, y.shape)
        there.sum().backward()
        assert all(p.is_meta and p.grad.shape == p.shape for p in empty.parameters())
    made[0].to_empty(device="cpu").load_state_dict(module.state_dict())
    made[1].load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(made[0](x), y)
    assert torch.equal(made[1](x), y)
    for anew in (made[2].to_empty(device="cpu"), module):
        torch.manual_seed(3)
        for part in anew.modules():
            getattr(part, "reset_parameters", lambda: None)()
    assert torch.equal(made[2](x), module(x))


@each
def channels_last(variant: Variant) -> None:
    """Inputs in another order of memory; of the weights, those of as many axes as torch takes."""
    module, x = trained(variant).eval(), variant.batch()
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]
    x = x[..., :1].expand_as(x) + x  # no strides that two layouts share
    last = x.to(memory_format=layout)
    assert last.is_contiguous(memory_format=layout)
    modules = [module]
    if any(p.ndim == 5 for p in module.parameters()):  # as of torch.nn.Conv3d
        with pytest.raises(RuntimeError, match="required rank 4 tensor to use channels_last"):
            copy.deepcopy(module).to(memory_format=torch.channels_last)
    else:
        modules.append(copy.deepcopy(module).to(memory_format=torch.channels_last))
    if not any(p.ndim == 4 for p in module.parameters()):
        modules.append(copy.deepcopy(module).to(memory_format=torch.channels_last_3d))
    for moved in modules:
        assert_near(moved(last), module(x))
        assert_same_gradients(gradients(moved, last), gradients(module, x))


def assert_agree(run: Callable[..., tuple[Tensor, ...]], together: Together, inputs: list[Tensor]) -> None:
    """Outputs and all gradients are those of the modules."""
    wanted = [*inputs, *together.parameters()]
    results = []
    for call in (run, together):
        outputs = call(*inputs)
        results.append((outputs, torch.autograd.grad(sum(map(weighted, outputs)), wanted)))
    for found, expected in zip(results[0][0], results[1][0], strict=True):
        assert_near(found, expected)
    keys = [f"input {i}" for i in range(len(inputs))] + [key for key, _ in together.named_parameters()]
    assert_same_gradients(*(dict(zip(keys, found, strict=True)) for _, found in results))


@all_at_once
def compiled(variants: list[Variant], path: Path) -> None:
    """Whole, forward and backward, once for all batches."""
    together = Together([trained(v) for v in variants])
    with torch._dynamo.config.patch(error_on_recompile=True):
        run = torch.compile(together, fullgraph=True, backend="aot_eager")
        for size in SIZES:
            inputs = [v.batch(size) for v in variants]
            for x in inputs:
                torch._dynamo.mark_dynamic(x, 0)
                x.requires_grad_()
            assert_agree(run, together, inputs)


def any_batch(variants: list[Variant]) -> dict[str, object]:
    batch = torch.export.Dim("batch")
    return {"inputs": tuple({0: batch} for _ in variants)}


@all_at_once
def exported(variants: list[Variant], path: Path) -> None:
    """To a graph of torch's own operations, and with that to ONNX, where it is installed."""
    together = Together([v.make().eval() for v in variants])
    program = torch.export.export(together, tuple(v.batch() for v in variants), dynamic_shapes=any_batch(variants))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called
    assert [f for f in called if getattr(f, "namespace", "aten") != "aten"] == []
    assert_near_at_all_sizes(program.module(), together, variants)
    for part, v in zip(together.parts, variants, strict=True):  # what the exporter took for numbers did not stay behind
        assert type(part(v.batch())) is Tensor
    pytest.importorskip("onnxscript", reason="equilayers[onnx] is not installed: exported, and not checked in ONNX")
    torch.onnx.export(program, f=path / "model.onnx", dynamo=True, opset_version=18, verbose=False)
    assert_near_at_all_sizes(by_onnxruntime(path / "model.onnx"), together, variants)


def by_onnxruntime(file: Path) -> Callable[..., list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda *xs: [
        torch.from_numpy(y) for y in session.run(None, dict(zip(names, (x.numpy() for x in xs), strict=True)))
    ]


@torch.no_grad()
def assert_near_at_all_sizes(run: Callable[..., Iterable[Tensor]], together: Together, variants: list[Variant]) -> None:
    for size in (1, *SIZES):
        inputs = [v.batch(size) for v in variants]
        for found, expected in zip(run(*inputs), together(*inputs), strict=True):
            assert_near(found, expected)


def run(way: str, variants: Variants, path: Path) -> None:
    if way in ALL:
        ALL[way]([v for v in variants.values() if v.graph], path)
        return
    for what, variant in variants.items():
        torch.manual_seed(0)
        try:
            EACH[way](variant)
        except Exception as error:
            raise AssertionError(f"{what}: {error}") from error


IN_GRAPHS = [row for row, variants in SHIPPED.items() if any(v.graph for v in variants().values())]
# Rows that share a graph: an export takes a second before it looks at the first.
SHARING = {"compiled": 1, "exported": 4}
CELLS = [
    *((way, (row,)) for way in EACH for row in SHIPPED),
    *((way, tuple(IN_GRAPHS[i : i + n])) for way, n in SHARING.items() for i in range(0, len(IN_GRAPHS), n)),
]


@pytest.mark.filterwarnings("ignore")  # the compiler's and the exporters' own
@pytest.mark.parametrize(("way", "rows"), CELLS, ids=lambda part: part if isinstance(part, str) else "+".join(part))
def test_shipped(way: str, rows: tuple[str, ...], tmp_path: Path, fresh_compiler: None) -> None:
    variants = {f"{row} {what}": v for row in rows for what, v in SHIPPED[row]().items()}
    if way == "channels last":  # vectors have one memory format
        variants = {what: v for what, v in variants.items() if len(v.sample) > 2}
    run(way, variants, tmp_path)


def test_the_matrix_has_a_row_for_every_layer() -> None:
    public_layers = {name for name in equilayers.nn.__all__ if isinstance(getattr(equilayers.nn, name), type)}
    assert set(LAYERS) == public_layers
    for row, variants in SHIPPED.items():
        kinds = {type(m).__name__ for v in variants().values() for m in v.make().modules()}
        assert row not in LAYERS or (row in kinds and row in IN_GRAPHS)
    converted = {type(m) for row in NETWORKS for v in SHIPPED[row]().values() for m in v.make().modules()}
    public = {getattr(equilayers.convert, key) for key in equilayers.convert.__all__}
    assert {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)} <= converted


FAULTS = {
    "deepcopy and pickle": ["cannot be pickled", "copies start anew", "weights kept elsewhere"],
    "average of weights": ["copies start anew"],
    "saved and loaded": ["state outside the state dict"],
    "on a gpu": ["weights kept elsewhere"],
    "autocast": ["blind to autocast"],
    "functional calls": ["weights kept elsewhere"],
    "vmap of samples": ["looks at its numbers", "samples see each other"],
    "vmap of weights": ["looks at its numbers", "weights kept elsewhere"],
    "meta device": ["looks at its numbers", "state outside the state dict"],
    "channels last": ["in the order of memory"],
    "compiled": ["fixed batch", "looks at its numbers"],
    "exported": ["fixed batch", "looks at its numbers"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [*EACH, *ALL])
def test_the_matrix_can_fail(way: str, tmp_path: Path, fresh_compiler: None) -> None:
    run(way, {"sound": Broken.variant("none")}, tmp_path)
    for fault in FAULTS[way]:
        with pytest.raises(Exception):  # noqa: B017, PT011 - in as many words as there are tools
            run(way, {fault: Broken.variant(fault)}, tmp_path)


@pytest.mark.filterwarnings("ignore:Grad strides do not match:UserWarning")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # features are views, never changed in place
def test_distributed_gradients_are_those_of_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with half a batch each, and one with all of it; batch norms by their running statistics."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    other = torch.multiprocessing.spawn(distributed, (str(tmp_path),), nprocs=1, join=False)
    distributed(-1, str(tmp_path))
    other.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    for row, what, variant in wrapped():
        torch.manual_seed(0)
        module = trained(variant).eval()
        expected = gradients(module, variant.batch(4))
        found = {key: first.pop(f"{row}: {what}: {key}") for key in expected}
        assert all(torch.equal(g, second[f"{row}: {what}: {key}"]) for key, g in found.items())
        if row == "planted":
            with pytest.raises(AssertionError):
                assert_same_gradients(found, expected)
        else:
            assert_same_gradients(found, expected)
    for row, what, variant in kit():
        torch.manual_seed(0)
        expected = gradients(variant.make().eval(), variant.batch(4))
        found = {key: first.pop(f"sharded: {row}: {what}: {key}") for key in expected}
        assert_same_gradients(found, expected)
    assert not first


def test_checkpointed_transformers() -> None:
    """Computed again in the backward pass: the whole, and each layer of an encoder."""
    for row, what, variant in kit():
        module, x = variant.make().eval(), variant.batch()
        expected = gradients(module, x, of_input=True)
        runs = [Checkpointed(module)]
        if isinstance(module, GroupTransformerEncoder):
            runs.append(copy.deepcopy(module))
            runs[1].layers = nn.ModuleList(map(Checkpointed, runs[1].layers))
        for run in runs:
            found = {key.replace("module.", ""): g for key, g in gradients(run, x, of_input=True).items()}
            assert_same_gradients(found, expected)
            assert_near(run(x), module(x))
            counted = [part.calls for part in run.modules() if isinstance(part, Checkpointed)]
            assert set(counted) == {3}, (row, what)  # forward, backward, forward


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++)")
def test_compiled_by_inductor(fresh_compiler: None) -> None:
    first = LiftingConv2d(D1, 1, 2, 3, padding=1), BlurPool2d(), InvariantAvgPool2d()
    network = nn.Sequential(*first, GroupLinear(D1, 2, 2, algorithm="fourier"), OrbitPool("mean"))
    together, inputs = Together([network]), [torch.randn(5, 1, 5, 5).requires_grad_()]
    assert_agree(torch.compile(together, fullgraph=True), together, inputs)
    with pytest.raises(AssertionError):
        assert_agree(lambda *xs: tuple(1.01 * y for y in together(*xs)), together, inputs)


@pytest.mark.filterwarnings("ignore")
def test_exported_strictly(fresh_compiler: None) -> None:
    """By way of the compiler, which export does no more unless told to."""
    rows = ("LiftingLinear", "GroupConv2d", "PolyphasePool2d")
    variants = [next(v for v in SHIPPED[row]().values() if v.graph) for row in rows]
    together, inputs = Together([v.make() for v in variants]), tuple(v.batch() for v in variants)
    program = torch.export.export(together, inputs, dynamic_shapes=any_batch(variants), strict=True)
    inputs = tuple(v.batch(5) for v in variants)
    for found, expected in zip(program.module()(*inputs), together(*inputs), strict=True):
        assert_near(found, expected)
