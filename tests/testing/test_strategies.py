"""What the library's strategies draw: pairs that keep the law, small counterexamples, and clear refusals."""

import random
import subprocess
import sys

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equilayers import nn as layers_of_ours
from equilayers._checks import ALGORITHMS as LINEAR
from equilayers.functional._convolution.geometry import ALGORITHMS as CONVOLUTION
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group, PermutationGroup
from equilayers.nn import GroupConv2d, GroupLinear, LiftingConv2d, LiftingLinear, OrbitPool
from equilayers.testing.strategies import _layers as _drawn_layers
from equilayers.testing.strategies import conv_settings, elements, features, groups, images, layers, spaces, vectors
from equilayers.testing.strategies._layers import MAKERS, OF_ANY_GROUP
from pages import ROOT, blocks
from strategies import C4, D4, SOME_GROUPS, name

KINDS = [getattr(layers_of_ours, kind) for kind in MAKERS]
TOKENS = tuple(getattr(layers_of_ours, n) for n in ("GroupLayerNorm", "GroupRMSNorm", "GroupPositionEmbedding"))
CONVOLUTIONS = (GroupConv2d, layers_of_ours.GroupConvTranspose2d, layers_of_ours.BlurConv2d)
REGULAR = (GroupLinear, *CONVOLUTIONS, *TOKENS, OrbitPool, layers_of_ours.VectorHead)
VECTORS = (layers_of_ours.VectorLiftingConv2d, layers_of_ours.VectorLiftingLinear)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def moved_input(layer: nn.Module, group: Group, g: int, x: Tensor) -> Tensor:
    if isinstance(layer, VECTORS):
        return group.act_vectors(g, x, axes=layer.spec.axes)
    image = isinstance(layer, (LiftingLinear, LiftingConv2d)) or (x.ndim == 4 and not isinstance(layer, REGULAR))
    return group.act(g, x) if image else group.act_regular(g, x)


def moved_output(layer: nn.Module, group: Group, g: int, x: Tensor, y: Tensor) -> Tensor:
    if isinstance(layer, layers_of_ours.VectorHead):
        return group.act_vectors(g, y, axes=layer.spec.axes)
    if isinstance(layer, (LiftingLinear, LiftingConv2d, *VECTORS, GroupLinear, *CONVOLUTIONS, *TOKENS)):
        return group.act_regular(g, y)
    if isinstance(layer, OrbitPool):
        return y if y.ndim == 2 else group.act(g, y)
    if isinstance(layer, layers_of_ours.InvariantAvgPool2d):
        return y if x.ndim == 4 else group.act_regular(g, y)
    return group.act(g, y) if x.ndim == 4 else group.act_regular(g, y)


def gap(layer: nn.Module, group: Group, g: int, x: Tensor) -> float:
    """How far the law is missed, by the largest output; 0 for equality to the last bit."""
    with torch.no_grad():
        y = layer(x)
        after, expected = layer(moved_input(layer, group, g, x)), moved_output(layer, group, g, x, y)
    assert after.shape == expected.shape
    if torch.equal(after, expected):
        return 0.0
    return float((after - expected).abs().max() / y.abs().max())


@each_kind
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_every_pair_keeps_the_law(kind: type[nn.Module], data: st.DataObject, dtype: torch.dtype) -> None:
    anything = () if kind.__name__ in OF_ANY_GROUP else (CyclicRotation, Dihedral)
    group = data.draw(groups(*anything), label="group")
    layer, x = data.draw(layers(kind, group, dtype=dtype), label="layer and input")
    assert type(layer) is kind
    assert x.dtype == dtype
    assert all(parameter.dtype == dtype for parameter in layer.parameters())
    allowed = {"bitwise": 0.0, "rounding": 64 * torch.finfo(dtype).eps}[layer.exactness]
    for g in range(group.order):
        assert gap(layer, group, g, x) <= allowed, g


def test_every_layer_of_the_library_is_drawn() -> None:
    public = {n for n in layers_of_ours.__all__ if isinstance(getattr(layers_of_ours, n), type)}
    harmonic = {n for n in public if n.startswith("Harmonic")}  # of no finite group
    attention = {
        "GroupMultiheadAttention",
        "GroupTransformerEncoderLayer",
        "GroupTransformerEncoder",
        "GroupAttentionPool",
    }
    others = {"GroupFeedForward", "GroupTokens", "GroupRotaryEmbedding", "GroupRelativePositionBias", "InvariantHead"}
    others |= {"PolyphaseUnpool2d", "AngleHead"}  # of two inputs; of angles, which jump by a full turn
    assert set(MAKERS) == public - harmonic - attention - others
    assert _drawn_layers.CONVOLUTION_ALGORITHMS == CONVOLUTION
    assert {layer.algorithm for layer, _ in drawn(layers(LiftingLinear, C4), 100)} == set(LINEAR)


def drawn(strategy: st.SearchStrategy, count: int = 300) -> list:  # type: ignore[type-arg]
    """Many values of a strategy, the same ones every time."""
    found = []

    @settings(max_examples=count, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy)
    def collect(value: object) -> None:
        found.append(value)

    collect()
    return found


def test_convolutions_of_every_setting_are_drawn() -> None:
    """No corner is left out, and none is so rare that hypothesis has to throw draws away."""
    sizes, options = zip(*drawn(conv_settings(C4)), strict=True)
    assert {o["padding_mode"] for o in options} == {"zeros", "reflect", "replicate", "circular"}
    for setting, values in (
        ("kernel_size", range(1, 5)),
        ("stride", (1, 2, 3)),
        ("padding", range(4)),
        ("dilation", (1, 2)),
    ):
        assert {o[setting] for o in options} == {(v, v) for v in values}
    for (height, width), o in zip(sizes, options, strict=True):
        k, s, p, d = (o[key][0] for key in ("kernel_size", "stride", "padding", "dilation"))
        assert height == width
        room = height + 2 * p - d * (k - 1) - 1
        assert room >= 0
        assert room % s == 0
        assert p <= {"reflect": height - 1, "circular": height}.get(o["padding_mode"], p)
    assert any(h != w for (h, w), _ in drawn(conv_settings(Dihedral(2))))
    lopsided = [
        (h + 2 * o["padding"][0] - o["dilation"][0] * (o["kernel_size"][0] - 1) - 1) % o["stride"][0]
        for (h, _), o in drawn(conv_settings(Dihedral(1)))
    ]
    assert any(lopsided)  # mirrors left-right leave the height alone
    assert {o["stride"] for _, o in drawn(conv_settings(C4, max_stride=1))} == {(1, 1)}


def test_groups_of_the_kinds_asked_for() -> None:
    kinds = {CyclicRotation, Dihedral, CyclicTranslation, DirectProduct, PermutationGroup}
    assert {type(group) for group in drawn(groups(), 500)} == kinds
    assert set(drawn(groups(CyclicRotation, Dihedral), 200)) == {
        kind(n) for kind in (CyclicRotation, Dihedral) for n in (1, 2, 4)
    }
    assert {group.order for group in drawn(groups(CyclicTranslation, max_order=36), 500)} == set(range(1, 37))
    for group in drawn(groups(min_order=3, max_order=6)):
        assert 3 <= group.order <= 6
    assert max(group.order for group in drawn(groups(PermutationGroup, max_order=24))) == 24


@pytest.mark.parametrize("group", SOME_GROUPS, ids=name)
def test_spaces_images_and_features_are_the_groups(group: Group) -> None:
    sizes = set()
    for space in drawn(spaces(group, 24), 40):
        group.check_space(space, "test")
        sizes.add(space)
        assert max(space) <= max(24, group.order, *(n for n in [getattr(group, "degree", 1)]))
    if not isinstance(group, PermutationGroup):
        assert len(sizes) > 1 or 24 // group.order < 2
    (x,) = drawn(images(group, batch=2, channels=1), 1)
    assert (x.ndim, *x.shape[:2]) == (4, 2, 1)
    assert group.act(group.order - 1, x).shape == x.shape
    (f,) = drawn(features(group, batch=2, channels=1, dtype=torch.float64), 1)
    assert (f.ndim, *f.shape[:3], f.dtype) == (5, 2, 1, group.order, torch.float64)
    assert group.act_regular(group.order - 1, f).shape == f.shape


def smallest(strategy: st.SearchStrategy, condition, tries: int = 2000) -> object:  # type: ignore[no-untyped-def,type-arg]
    return hypothesis.find(strategy, condition, settings=settings(max_examples=tries, database=None, derandomize=True))


def test_examples_shrink_to_small_ones() -> None:
    assert smallest(groups(), lambda group: True).order == 1  # type: ignore[attr-defined]
    assert smallest(groups(), lambda group: group.order > 4).order in (5, 6)  # type: ignore[attr-defined]
    assert smallest(elements(D4), lambda g: g > 2) == 3
    x = smallest(images(C4), lambda x: x.shape[-1] > 5)
    assert torch.equal(x, torch.zeros(1, 1, 6, 6))  # type: ignore[arg-type]
    x = smallest(images(C4), lambda x: bool((x > 0).any()))
    assert x.shape == (1, 1, 1, 1)  # type: ignore[attr-defined]
    assert float(x) == 1.0  # type: ignore[arg-type]
    layer, x = smallest(layers(GroupConv2d, C4), lambda pair: bool(pair[0](pair[1]).any()))  # type: ignore[misc]
    assert layer.weight.shape == (1, 1, 4, 1, 1)
    assert max(t.abs().max() for t in (layer.weight, x)) <= 3
    assert x.numel() == 4


class Lopsided(GroupConv2d):
    """As a group convolution, but its bias sees the fiber."""

    def forward(self, f: Tensor) -> Tensor:
        y: Tensor = super().forward(f)
        return y + torch.arange(y.shape[2]).view(-1, 1, 1)


def test_a_broken_layer_is_found_and_made_small() -> None:
    """A subclass is made in the same way; so is a layer of one's own, fed with images."""
    law = lambda pair: any(gap(*(pair[0], C4, g, pair[1])) > 1e-3 for g in (1, 2, 3))  # noqa: E731
    layer, f = smallest(layers(Lopsided, C4), law)  # type: ignore[misc]
    assert isinstance(layer, Lopsided)
    assert not f.any()
    assert f.shape[:2] == (1, 1)
    with pytest.raises(hypothesis.errors.NoSuchExample):
        smallest(layers(LiftingConv2d, C4), law, tries=50)
    shifted = lambda x: torch.roll(x, 1, -1)  # noqa: E731
    x = smallest(images(C4), lambda x: not torch.equal(shifted(C4.act(1, x)), C4.act(1, shifted(x))))
    assert x.shape[:2] == (1, 1)  # type: ignore[attr-defined]
    assert x.shape[-1] <= 3  # type: ignore[attr-defined]


def test_drawing_costs_nobody_their_seed() -> None:
    torch.manual_seed(3)
    before, python = torch.get_rng_state(), random.getstate()

    @settings(max_examples=3, database=None)
    @given(layers(GroupConv2d, C4), images(C4))
    def draw(pair: tuple[nn.Module, Tensor], x: Tensor) -> None:
        pass

    draw()
    assert torch.equal(before, torch.get_rng_state())
    assert python == random.getstate()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: groups(int), TypeError, "groups: expected kinds among CyclicRotation"),
        (lambda: groups(CyclicRotation, min_order=5), ValueError, "got 5..12 for CyclicRotation"),
        (lambda: groups(max_order=0), ValueError, "max_order >= 1"),
        (lambda: elements(4), TypeError, "elements: expected group"),
        (lambda: spaces(C4, 0), ValueError, "spaces: expected max_size >= 1"),
        (lambda: spaces(C4, ndim=1), ValueError, r"expected ndim for CyclicRotation\(4\) in 2..2, got 1"),
        (lambda: images(CyclicTranslation(3), size=(4, 5)), ValueError, "images"),
        (lambda: images(C4, batch=1.5), TypeError, "images: expected batch to be an int"),
        (lambda: images(4), TypeError, "images: expected group"),
        (lambda: features(CyclicTranslation(3), size=(4, 5)), ValueError, "features"),
        (lambda: vectors(PermutationGroup([[1, 0]])), ValueError, "PermutationGroup"),
        (lambda: features(4), TypeError, "features: expected group"),
        (lambda: layers(nn.Conv2d, C4), TypeError, "draw images"),
        (lambda: layers(nn.Conv2d(1, 1, 1), C4), TypeError, "layers: expected kind among"),
        (lambda: layers(GroupConv2d, CyclicTranslation(3)), ValueError, "layers of GroupConv2d: expected group to be"),
        (lambda: layers(GroupConv2d, 4), TypeError, "layers: expected group"),
        (lambda: conv_settings(CyclicTranslation(3)), ValueError, "conv_settings: expected group to be"),
        (lambda: conv_settings(C4, max_stride=0), ValueError, "max_stride >= 1"),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_makes_no_sense_is_refused_at_once(call, error: type[Exception], words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        call()


def test_a_group_of_ones_own_needs_a_size() -> None:
    class Mine(type(C4)):  # type: ignore[misc]
        pass

    class Other(Group):
        order, space_ndim = 1, 2

        def _table(self):  # type: ignore[no-untyped-def]
            raise NotImplementedError

        _move = _table

        def check_space(self, shape: tuple[int, ...], caller: str) -> None:
            pass

    assert drawn(images(Mine(4)), 1)
    with pytest.raises(TypeError, match="Pass size"):
        images(Other())
    assert drawn(images(Other(), batch=1, channels=1, size=(3, 4)), 1)[0].shape == (1, 1, 3, 4)


def test_the_example_of_the_documentation_can_fail() -> None:
    page = (ROOT / "docs" / "test-in-ci.md").read_text(encoding="utf-8")
    example = next(block.text for block in blocks(page) if "def my_layer" in block.text)
    broken = example.replace("x.mean((-2, -1), keepdim=True)", "x.roll(1, -1)")
    assert broken != example
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        exec(broken, {"torch": torch, "CyclicRotation": CyclicRotation})


def test_hypothesis_is_imported_on_demand_and_named_where_it_is_missing() -> None:
    code = (
        "import sys; import equilayers.testing; assert 'hypothesis' not in sys.modules;"
        "sys.modules['hypothesis'] = None; from equilayers.testing import strategies"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ImportError")]
    assert line.endswith("expected hypothesis to be installed. Run pip install 'equilayers[hypothesis]'.")
