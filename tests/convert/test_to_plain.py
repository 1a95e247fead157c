"""`to_plain`: torch's own modules alone, equal outputs, also in a process that has no equilayers, and under ONNX."""

import copy
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from equilayers.convert import symmetrize, to_antialiased, to_equivariant, to_plain
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group, PermutationGroup
from equilayers.losses import InvarianceLoss
from equilayers.nn import (
    AngleHead,
    AvgBlurPool2d,
    BlurConv2d,
    BlurPool2d,
    GroupConv2d,
    GroupLinear,
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
    VectorHead,
    VectorLiftingConv2d,
    VectorLiftingLinear,
)
from strategies import ROTATIONS, SOME_GROUPS, filled, name, some_spaces

C4, D4 = CyclicRotation(4), Dihedral(4)
MODES = ("zeros", "reflect", "replicate", "circular")


def ours(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if type(module).__module__.startswith("equilayers")]


def difference(model: nn.Module, plain: nn.Module, x: Tensor) -> float:
    """The largest difference of the outputs by the largest output."""
    with torch.no_grad():
        y, z = model(x), plain(x)
    assert (y.shape, y.dtype) == (z.shape, z.dtype)
    return float((y - z).abs().max() / y.abs().max().clamp(min=1e-30))


def assert_plain(model: nn.Module, *inputs: Tensor, limit: float = 1e-12) -> nn.Module:
    """The plain form, after having seen that it is one."""
    plain = to_plain(model)
    assert not ours(plain)
    for x in inputs:
        assert difference(model, plain, x) <= limit
    return plain


def double(*shape: int) -> Tensor:
    return filled(shape, torch.float64)


@pytest.mark.parametrize("group", SOME_GROUPS, ids=name)
def test_linear_layers(group: Group) -> None:
    for space, bias in itertools.product(some_spaces(group), (True, False)):
        assert_plain(LiftingLinear(group, (2, *space), 3, bias, dtype=torch.float64), double(4, 2, *space))
    assert_plain(GroupLinear(group, 2, 3, dtype=torch.float64), double(4, 2, group.order))


@pytest.mark.parametrize("group", ROTATIONS, ids=name)
@pytest.mark.parametrize("kind", [LiftingConv2d, GroupConv2d], ids=lambda kind: kind.__name__)
def test_convolutions(kind: type[LiftingConv2d | GroupConv2d], group: Group) -> None:
    """The grid of settings, in float64 against the bitwise algorithm and in float32 against the usual one."""
    x = double(2, 4, *(() if kind is LiftingConv2d else (group.order,)), 9, 9)
    for mode, stride, dilation, (groups, bias) in itertools.product(MODES, (1, 2), (1, 2), ((1, True), (2, False))):
        layer = kind(group, 4, 6, 3, stride, 2, dilation, groups, bias, mode)
        assert_plain(layer, x.float(), limit=1e-6)
        layer.algorithm = "bitwise"
        assert_plain(layer.double(), x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [BlurPool2d, MaxBlurPool2d, AvgBlurPool2d], ids=lambda kind: kind.__name__)
def test_blurs_of_every_size(kind: type[nn.Module], mode: str) -> None:
    """One graph for all sizes, down to one pixel, where padding goes around and mirrors more than once."""
    sizes = [(1, 1), (1, 2), (2, 3), (3, 3), (4, 5), (6, 7), (8, 8)]
    maps = [double(2, 3, *size) for size in sizes] + [double(2, 3, 4, 5, 6)]
    for taps, stride in itertools.product(("auto", 1, 4, 7, (1.0, 2.0, 5.0)), (2, 3, (2, 1))):
        assert_plain(kind(taps=taps, stride=stride, padding_mode=mode), *maps)


def biased() -> nn.Module:
    layer = HarmonicNonlinearity(2, 1)
    nn.init.uniform_(layer.bias, -1, 1)
    return layer


OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        f"OrbitPool {r} {len(s)}": (lambda r=r: OrbitPool(r), s)
        for r in ("max", "mean", "logsumexp", "norm")
        for s in ((3, 4), (2, 8, 5, 5))
    },
    **{
        f"{what}, {mode}": (lambda make=make, mode=mode: make(padding_mode=mode, exact=True), (3, size, size))
        for what, make, size in (
            ("exact blur of 1 tap", partial(BlurPool2d, 1, 3), 7),
            ("exact blur of 3 taps", partial(BlurPool2d, 3, 3), 6),
            ("exact blur behind a window", partial(AvgBlurPool2d, 3, 2, taps=5), 9),
        )
        for mode in ("zeros", "reflect", "replicate")
    },
    "VectorLiftingConv2d": (
        lambda: VectorLiftingConv2d("D4", 2, 4, 3, padding=1, groups=2, padding_mode="reflect", axes="right-down"),
        (2, 2, 6, 6),
    ),
    **{
        f"{kind.__name__} {len(space)}": (lambda k=kind: k("D4", 2, 3, axes="down-right"), (2, fiber, *space))
        for kind, fiber in ((VectorLiftingLinear, 2), (VectorHead, 8))
        for space in ((), (5,), (4, 4))
    },
    "AngleHead": (lambda: AngleHead("C4", 2, 3, order=2), (2, 4, 3, 3)),
    "InvariantAvgPool2d": (InvariantAvgPool2d, (3, 5, 7)),
    "InvariantAvgPool2d of features": (InvariantAvgPool2d, (3, 4, 6, 6)),
    "PolyphasePool2d": (PolyphasePool2d, (3, 6, 8)),
    "PolyphasePool2d of features": (lambda: PolyphasePool2d(3, 1), (2, 4, 6, 9)),
    "PolyphasePool2d, not exact": (lambda: PolyphasePool2d((2, 3), float("inf"), exact=False), (3, 5, 7)),
    "HarmonicConv2d of images": (
        lambda: HarmonicConv2d(2, 3, 5, None, 1, padding=2, padding_mode="reflect"),
        (2, 9, 9),
    ),
    "HarmonicConv2d": (lambda: HarmonicConv2d(2, 3, 3, 1, 2, stride=2), (2, 4, 9, 9)),
    "HarmonicNonlinearity": (biased, (2, 4, 5, 5)),
    "HarmonicBatchNorm": (lambda: HarmonicBatchNorm(2, 1).eval(), (2, 4, 5, 5)),
    "HarmonicMagnitude": (HarmonicMagnitude, (2, 4, 5, 5)),
    "MaxBlurPool2d, padded": (lambda: MaxBlurPool2d((3, 2), 2, 1), (2, 9, 8)),
    "AvgBlurPool2d, padded": (lambda: AvgBlurPool2d((3, 2), 2, (1, 0)), (2, 9, 8)),
    "BlurConv2d": (lambda: BlurConv2d(None, 2, 3, 3, padding=1), (2, 9, 8)),
    "BlurConv2d, blur first": (lambda: BlurConv2d(None, 2, 3, 3, padding=1, order="blur-conv-activation"), (2, 9, 8)),
    "BlurConv2d of features": (lambda: BlurConv2d("C4", 2, 3, 3, padding=1), (2, 4, 9, 9)),
    "BlurConv2d, blurred activation": (lambda: BlurConv2d(None, 2, 3, 3, activation=MaxBlurPool2d()), (2, 12, 12)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_layers(case: str) -> None:
    make, sample = OTHERS[case]
    assert_plain(make().double(), *(double(batch, *sample) for batch in (1, 3)))


@pytest.mark.parametrize("reduction", ["mean", "probabilities", "max"])
@pytest.mark.parametrize(
    ("group", "sample"),
    [
        (C4, (1, 6, 6)),
        (D4, (1, 6, 6)),
        (CyclicTranslation(3, dim=-2), (1, 6, 4)),
        (DirectProduct(CyclicRotation(2), CyclicTranslation(2)), (1, 6, 4)),
        (PermutationGroup([[1, 2, 0, 3]]), (6, 4)),
    ],
    ids=lambda value: name(value) if isinstance(value, Group) else "",
)
def test_symmetrized(group: Group, sample: tuple[int, ...], reduction: str) -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample), 5)).double()
    plain = assert_plain(symmetrize(inner, group, reduction), double(3, *sample))
    assert len(list(plain.parameters())) == 2  # shared by all elements


def cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(16, 16, 1), nn.InstanceNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)),
    )


@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_converted_networks(group: Group) -> None:
    model, report = to_equivariant(cnn().double(), group)
    assert report.complete
    model(double(8, 1, 33, 33))  # in training mode: so that the running statistics are not those of the beginning
    plain = assert_plain(model.eval(), double(2, 1, 33, 33), double(2, 1, 20, 20))
    kinds = {type(module) for module in plain.modules()}
    assert {nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.Linear} < kinds
    assert nn.BatchNorm3d not in kinds


def test_antialiased_networks_and_those_with_images_as_output() -> None:
    smooth, _ = to_antialiased(cnn().double())
    assert_plain(smooth.eval(), double(2, 1, 33, 33), double(2, 1, 20, 20))
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    segments = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, nn.Conv2d(8, 2, 1))
    assert_plain(to_equivariant(segments.double(), C4)[0].eval(), double(2, 1, 9, 9))


class Residual(nn.Module):
    """A user's module: a shared layer, a layer that has no name of its own, torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = LiftingConv2d(C4, 1, 4, 3, padding=1)
        self.conv = GroupConv2d(C4, 4, 4, 3, padding=1)
        self.same = self.conv
        self.steps = nn.ModuleList([nn.BatchNorm3d(4), nn.ReLU()])
        self.nothing = None
        self.head = nn.Sequential(OrbitPool(), InvariantAvgPool2d(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        f = self.lift(x)
        for step in (self.conv, *self.steps, self.same):
            f = f + step(f)
        y: Tensor = self.head(f)
        return y


def test_a_model_of_the_users() -> None:
    model = Residual().double()
    model.lift.weight.requires_grad_(False)
    model.steps.eval()
    before = copy.deepcopy(model.state_dict())
    plain = assert_plain(model, double(2, 1, 8, 8))
    assert isinstance(plain, Residual)
    assert plain.conv is plain.same
    assert plain.conv is not model.conv
    assert [p.requires_grad for p in plain.lift.parameters()] == [False, True]
    assert plain.training
    assert not plain.steps.training
    assert sum(p.numel() for p in plain.conv.parameters()) == 4 * model.conv.weight.numel() + 4 * 4
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert ours(model)


def test_dtypes_modes_and_a_layer_by_itself() -> None:
    layer = LiftingConv2d(C4, 1, 2, 3, dtype=torch.bfloat16)
    for mode in (True, False):
        plain = to_plain(layer.train(mode))
        assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
        assert {module.training for module in plain.modules()} == {mode}
    assert {p.device.type for p in to_plain(LiftingLinear(C4, (4, 4), 2, device="meta")).parameters()} == {"meta"}
    assert_plain(nn.Sequential(nn.Linear(2, 2)).double(), double(1, 2))  # nothing of ours
    plain = assert_plain(parametrizations.weight_norm(GroupLinear(C4, 3, 2).double()), double(2, 3, 4))
    assert set(plain.state_dict()) == {"1.weight", "1.bias"}, "parametrised weights become numbers"


class Doubled(OrbitPool):
    def forward(self, f: Tensor) -> Tensor:
        return 2 * super().forward(f)


def test_what_has_no_plain_form_is_refused() -> None:
    hooked = OrbitPool()
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    for model, error, words in (
        (nn.Sequential(Doubled()), TypeError, "Doubled at '0'"),
        (nn.ModuleDict({"loss": InvarianceLoss(C4)}), TypeError, "InvarianceLoss at 'loss'"),
        (nn.Sequential(hooked), ValueError, "OrbitPool at '0'"),
        (lambda x: x, TypeError, "function"),
    ):
        with pytest.raises(error, match=f"^to_plain: expected .*{words}"):
            to_plain(model)  # type: ignore[arg-type]


def test_a_wrong_fold_would_be_seen() -> None:
    model = GroupConv2d(C4, 2, 2, 3, dtype=torch.float64)
    plain = to_plain(model)
    with torch.no_grad():
        plain[1].weight[0, 0, 0, 0] += 1e-4  # type: ignore[index, operator]
    assert difference(model, plain, double(2, 2, 4, 5, 5)) > 1e-6


def whole() -> nn.Module:
    """A network with one of everything."""
    return nn.Sequential(
        *(LiftingConv2d(C4, 1, 4, 3, padding=1), nn.BatchNorm3d(4), BlurPool2d(), MaxBlurPool2d(taps=3)),
        *(GroupConv2d(C4, 4, 4, 3, padding=1, padding_mode="reflect"), PolyphasePool2d(), InvariantAvgPool2d()),
        *(GroupLinear(C4, 4, 4), OrbitPool("norm"), nn.Linear(4, 3)),
    ).eval()


def test_it_is_loaded_where_equilayers_is_not(tmp_path: Path) -> None:
    model, x = symmetrize(whole(), C4), torch.randn(2, 1, 16, 16)
    torch.save((to_plain(model), x, model(x)), tmp_path / "model.pt")
    script = (
        "import sys, torch; sys.modules['equilayers'] = None\n"
        f"plain, x, y = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "torch.testing.assert_close(plain(x), y, rtol=1e-5, atol=1e-6)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def by_onnx(program: torch.export.ExportedProgram, file: Path) -> Callable[[Tensor], Tensor]:
    """What onnxruntime computes from the file of an exported model."""
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'equilayers[onnx]'")
    torch.onnx.export(program, f=file, dynamo=True, opset_version=18, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_it_compiles_and_exports_for_any_batch(tmp_path: Path, fresh_compiler: None) -> None:
    model = whole()
    plain, batch = assert_plain(model, torch.randn(2, 1, 16, 16), limit=1e-5), torch.export.Dim("batch")
    forms = [torch.compile(plain, fullgraph=True, backend="aot_eager")]
    program = torch.export.export(plain, (torch.randn(3, 1, 16, 16),), dynamic_shapes=({0: batch},))
    forms += [program.module(), by_onnx(program, tmp_path / "model.onnx")]
    for x in (torch.randn(n, 1, 16, 16) for n in (2, 5)):
        torch._dynamo.mark_dynamic(x, 0)
        for form in forms:
            torch.testing.assert_close(form(x), model(x), rtol=1e-5, atol=1e-6)


def modes() -> nn.Module:
    """All padding modes."""
    return nn.Sequential(
        *(LiftingConv2d(C4, 1, 4, 3, padding=2, padding_mode="circular"), BlurPool2d(padding_mode="circular")),
        *(GroupConv2d(C4, 4, 4, 3, padding=1, padding_mode="reflect"), MaxBlurPool2d(padding_mode="zeros")),
        *(GroupConv2d(C4, 4, 4, 3, padding=1, padding_mode="replicate"), AvgBlurPool2d(padding_mode="replicate")),
        *(OrbitPool("logsumexp"), nn.Flatten()),
    )


def averaged() -> nn.Module:
    return symmetrize(to_equivariant(cnn(), C4, torch.randn(2, 1, 16, 16))[0].eval(), C4, "probabilities")


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("make", [modes, averaged], ids=lambda make: make.__name__)
def test_the_onnx_file_agrees(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, batch = make(), torch.export.Dim("batch")
    program = torch.export.export(to_plain(model), (torch.randn(3, 1, 16, 16),), dynamic_shapes=({0: batch},))
    run = by_onnx(program, tmp_path / "model.onnx")
    for size in (1, 3, 8):
        x = torch.randn(size, 1, 16, 16)
        expected = model(x)
        assert float((run(x) - expected).abs().max() / expected.abs().max()) <= 1e-5
