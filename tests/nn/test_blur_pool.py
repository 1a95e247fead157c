"""The anti-aliasing layers as modules: settings, dtypes, memory, other sizes when compiled; and networks of them."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

import blur_reference as slow
from conv_laws import channels_last, misses, worst
from equilayers.functional import avg_blur_pool2d, blur_pool2d, max_blur_pool2d, polyphase_pool2d
from equilayers.groups import Group
from equilayers.nn import (
    AvgBlurPool2d,
    BlurConv2d,
    BlurPool2d,
    GroupConv2d,
    InvariantAvgPool2d,
    LiftingConv2d,
    MaxBlurPool2d,
    OrbitPool,
    PolyphasePool2d,
)
from refusals import assert_refused
from strategies import C4, D2, D4, filled, name

# The layer, the function that it calls, and the level that it promises.
POOLS: list[tuple[nn.Module, Callable[[Tensor], Tensor], str]] = [
    (BlurPool2d(), blur_pool2d, "bitwise"),
    (BlurPool2d(3, 3, "zeros"), lambda x: blur_pool2d(x, 3, 3, "zeros"), "approximate"),
    (BlurPool2d(2, exact=True), lambda x: blur_pool2d(x, 2, exact=True), "bitwise"),
    (BlurPool2d(algorithm="dense"), lambda x: blur_pool2d(x, algorithm="dense"), "rounding"),
    (BlurPool2d([1, 2, 0.5], [1, 3]), lambda x: blur_pool2d(x, [1, 2, 0.5], (1, 3)), "approximate"),
    (BlurPool2d(torch.tensor([1.0, 3.0])), lambda x: blur_pool2d(x, [1, 3]), "approximate"),
    (MaxBlurPool2d(3, 2), lambda x: max_blur_pool2d(x, 3, 2), "bitwise"),
    (
        MaxBlurPool2d((2, 3), taps=4, padding_mode="circular"),
        lambda x: max_blur_pool2d(x, (2, 3), taps=4, padding_mode="circular"),
        "approximate",
    ),
    (
        AvgBlurPool2d(3, padding=(1, 0), padding_mode="replicate"),
        lambda x: avg_blur_pool2d(x, 3, padding=(1, 0), padding_mode="replicate"),
        "bitwise",
    ),
    (PolyphasePool2d(), polyphase_pool2d, "bitwise"),
    (PolyphasePool2d((4, 2), math.inf), lambda x: polyphase_pool2d(x, (4, 2), math.inf), "bitwise"),
    (PolyphasePool2d(3, 1, exact=False), lambda x: polyphase_pool2d(x, 3, 1, exact=False), "approximate"),
]

each_pool = pytest.mark.parametrize(
    ("layer", "function", "exactness"), POOLS, ids=[str(layer) for layer, _, _ in POOLS]
)
each_group = pytest.mark.parametrize("group", [C4, D4], ids=name)


def image(dtype: torch.dtype = torch.float32, fiber: tuple[int, ...] = ()) -> Tensor:
    """Even along both axes, where only an even number of taps is symmetric."""
    return filled((2, 3, *fiber, 8, 12), dtype)


@each_pool
def test_a_layer_is_its_function(layer: nn.Module, function: Callable[[Tensor], Tensor], exactness: str) -> None:
    assert layer.exactness == exactness
    assert not layer.state_dict()
    assert list(layer.parameters()) == list(layer.buffers()) == list(layer.children()) == []
    for x in (image(), image(torch.float64), image(fiber=(4,)), channels_last(image())):
        y = layer(x)
        assert torch.equal(y, function(x))
        assert y.dtype == x.dtype
    layer.load_state_dict({}, strict=True)
    if exactness == "bitwise":
        assert misses(layer, D2, image()) == []
    if exactness == "rounding":
        assert worst(layer, D2, image()) <= 32


def test_the_settings_are_shown() -> None:
    shown = {
        BlurPool2d(): "BlurPool2d(taps='auto', stride=(2, 2), padding_mode='reflect')",
        BlurPool2d(3, exact=True): "BlurPool2d(taps=3, stride=(2, 2), padding_mode='reflect', exact=True)",
        MaxBlurPool2d(3, padding=1): "(kernel_size=(3, 3), stride=(3, 3), padding=(1, 1), taps='auto', padding",
        MaxBlurPool2d(5, (1, 3)): "kernel_size=(5, 5), stride=(1, 3), taps",
        AvgBlurPool2d(taps=[1, 2]): "taps=(1.0, 2.0)",
        PolyphasePool2d(norm=math.inf): "PolyphasePool2d(stride=(2, 2), norm=inf)",
        PolyphasePool2d(exact=False): "exact=False",
        BlurConv2d(None, 1, 2, 3, order="blur-conv-activation"): "order='blur-conv-activation'",
    }
    for layer, words in shown.items():
        assert words in repr(layer)


@each_pool
def test_autocast_leaves_the_dtype(layer: nn.Module, function: Callable[[Tensor], Tensor], exactness: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = image(dtype).requires_grad_()
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            assert y.dtype == expected.dtype
            assert exactness != "bitwise" or torch.equal(y, expected)
            y.float().sum().backward()
        close = 1e-6 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(y, expected, atol=close, rtol=close)
        assert x.grad.isfinite().all()


@each_pool
def test_training_after_inference_mode(layer: nn.Module, function: Callable[[Tensor], Tensor], exactness: str) -> None:
    """Tables made in inference mode, under vmap or grad serve in training too: sizes that no other test has."""
    firsts: list[Callable[[Tensor], object]] = [vmap(lambda x: layer(x[None])), grad(lambda x: layer(x).sum())]
    for extra, first in enumerate([torch.inference_mode()(layer), *firsts]):
        size = 48 + 12 * extra
        x = filled((2, 1, size, size + 12), torch.float64)
        first(x.clone())
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
        gradient.pow(2).sum().backward()
        assert torch.isfinite(x.grad).all()
        first(x.detach())


@pytest.mark.filterwarnings("ignore")
def test_compiled_again_for_other_sizes(fresh_compiler: None) -> None:
    """Of the second size on the compiler may take sizes for variables; parities must not be frozen in."""
    strided = BlurConv2d(None, 3, 3, 3, padding=1, padding_mode="replicate", order="symmetric-stride")
    for layer in (BlurPool2d(), PolyphasePool2d(exact=False), strided):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for size in ((8, 12), (9, 13), (1, 2)):
            x = filled((2, 3, *size), torch.float32)
            torch.testing.assert_close(compiled(x), layer(x), atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_compiled_choices_between_equal_norms_and_of_large_doubles(fresh_compiler: None) -> None:
    pool = torch.compile(PolyphasePool2d(), fullgraph=True, backend="aot_eager")
    x = torch.randint(0, 2, (32, 1, 8, 8)).float()
    y = pool(x)
    for shift in itertools.product(range(3), repeat=2):
        for kept, expected in zip(pool(x.roll(shift, (-2, -1))), y, strict=True):
            assert any(torch.equal(kept, moved) for moved in slow.cyclic_shifts(expected)), shift
    large = 1e40 * filled((8, 1, 8, 8), torch.float64)
    assert torch.equal(pool(large), PolyphasePool2d()(large))


def test_bitwise_on_several_threads(threads: int) -> None:
    x = filled((2, 1, 150, 150), torch.float32)
    for layer in (BlurPool2d(), MaxBlurPool2d(), AvgBlurPool2d(stride=3), PolyphasePool2d(), PolyphasePool2d(3, 1)):
        assert misses(layer, D4, x) == []


@pytest.mark.parametrize("order", ["conv-activation-blur", "blur-conv-activation"])
def test_blur_conv_is_made_of_its_parts(order: str) -> None:
    x = filled((2, 4, 9, 12), torch.float64)
    for settings in ({}, {"stride": (3, 1), "padding": 1}, {"dilation": 2, "groups": 2, "bias": False, "padding": 2}):
        layer = BlurConv2d(None, 4, 6, 3, taps=3, padding_mode="circular", order=order, **settings).double()
        assert set(layer.state_dict()) == {"conv.weight"} | ({"conv.bias"} if settings.get("bias", True) else set())
        plain = {key: value for key, value in settings.items() if key != "stride"}
        conv = nn.Conv2d(4, 6, 3, padding_mode="circular", **plain).double()
        conv.load_state_dict(layer.conv.state_dict())
        blur = lambda x, s=settings: blur_pool2d(x, 3, s.get("stride", 2), "circular")  # noqa: E731
        expected = blur(conv(x).relu()) if order.startswith("conv") else conv(blur(x)).relu()
        torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)
    bare = BlurConv2d(None, 4, 6, 3, activation=nn.Identity(), order=order, padding_mode="zeros").double()
    assert (bare(x) < 0).any()
    assert isinstance(layer.activation, nn.ReLU)


@each_group
@pytest.mark.parametrize("order", ["conv-activation-blur", "blur-conv-activation"])
def test_blur_conv_with_a_group(group: Group, order: str) -> None:
    for size, stride, mode in itertools.product((7, 8), (2, 3), ("zeros", "reflect", "replicate", "circular")):
        layer = BlurConv2d(group, 2, 3, 3, stride, padding=1, padding_mode=mode, order=order)
        assert layer.exactness == "rounding"
        x = filled((2, 2, group.order, size, size), torch.float32)
        assert worst(layer, group, x) <= 32, (size, stride, mode)
    published = BlurConv2d(group, 2, 3, 3, padding=1, taps=3, order=order)
    assert published.exactness == "approximate"
    assert worst(published, group, filled((2, 2, group.order, 8, 8), torch.float32)) > 1e4


def test_blur_conv_pads_the_convolution_otherwise_if_told() -> None:
    x = filled((1, 2, 8, 8), torch.float64)
    layer = BlurConv2d(None, 2, 2, 3, padding=1, padding_mode="replicate", conv_padding_mode="zeros").double()
    assert (layer.conv.padding_mode, layer.spec.padding_mode) == ("zeros", "replicate")
    expected = blur_pool2d(layer.conv(x).relu(), "auto", 2, "replicate")
    assert torch.equal(layer(x), expected)
    assert BlurConv2d(None, 2, 2, 3, padding="same").double()(x).shape == (1, 2, 4, 4)


def shift_network(pools: int = 2) -> nn.Sequential:
    conv = lambda c, d: nn.Conv2d(c, d, 3, padding=1, padding_mode="circular")  # noqa: E731
    blocks = [[conv(2 if i == 0 else 6, 6), nn.ReLU(), PolyphasePool2d()] for i in range(pools)]
    return nn.Sequential(*itertools.chain(*blocks), conv(6, 5), InvariantAvgPool2d()).double()


def spread(model: nn.Module, images: Iterator[Tensor], y: Tensor) -> float:
    """The largest change of the output, in terms of the largest output."""
    return max((model(x) - y).abs().max().item() for x in images) / y.abs().max().item()


def test_a_network_that_no_shift_changes() -> None:
    model, x = shift_network(), filled((2, 2, 8, 12), torch.float64)
    shifted = lambda: (x.roll(s, (-2, -1)) for s in itertools.product(range(8), range(12)))  # noqa: E731
    assert spread(model, shifted(), model(x)) <= 1e-12
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2), BlurPool2d(padding_mode="circular")):
        broken = copy.deepcopy(model)
        broken[2], broken[5] = pool, pool
        assert spread(broken, shifted(), broken(x)) > 1e-6


def group_network(group: Group, pool: nn.Module) -> nn.Sequential:
    settings = {"padding": 1, "padding_mode": "circular", "algorithm": "bitwise", "dtype": torch.float64}
    return nn.Sequential(
        LiftingConv2d(group, 2, 4, 3, **settings),
        nn.ReLU(),
        pool,
        GroupConv2d(group, 4, 4, 3, **settings),
        nn.ReLU(),
        copy.deepcopy(pool),
        GroupConv2d(group, 4, 3, 3, **settings),
        InvariantAvgPool2d(),
        OrbitPool(),
    )


@each_group
def test_a_network_that_no_shift_turn_or_mirror_changes(group: Group) -> None:
    for size, stride in ((8, 2), (9, 3)):
        model = group_network(group, PolyphasePool2d(stride))
        x = filled((2, 2, size, size), torch.float64)
        near = zip(range(stride**2 + 1), itertools.cycle(range(-1, stride)))
        images = (group.act(g, x).roll(s, (-2, -1)) for s in near for g in range(group.order))
        assert spread(model, images, model(x)) <= 1e-12
    blurred = group_network(group, BlurPool2d(padding_mode="circular"))
    assert misses(blurred, group, x) == []
    assert spread(blurred, iter([x.roll(1, -1)]), blurred(x)) > 1e-6


@each_group
def test_networks_on_symmetric_and_few_valued_images(group: Group) -> None:
    """Components tie, and what is kept may be another image of the same: the network does not mind."""
    whole = torch.randint(-5, 6, (4, 2, 8, 8)).double()
    images = {
        "mirrored": whole + whole.flip(-1),
        "half turned": whole + whole.flip(-2, -1),
        "turned": sum(C4.act(g, whole) for g in range(4)),
        "constant": torch.ones_like(whole),
        "periodic": whole[..., :4, :4].repeat(1, 1, 2, 2),
        "binary": (whole > 0).double(),
    }
    network = group_network(group, PolyphasePool2d())
    for what, x in images.items():
        for model in (network, nn.Sequential(PolyphasePool2d(), *network)):
            moved = (group.act(g, x).roll(s, (-2, -1)) for g in range(group.order) for s in ((0, 0), (1, 0), (3, 2)))
            assert spread(model, moved, model(x)) <= 1e-12, what


@pytest.mark.parametrize("kind", [BlurPool2d, MaxBlurPool2d, AvgBlurPool2d, BlurConv2d])
def test_settings_are_refused_by_the_layer_at_once(kind: type[nn.Module]) -> None:
    start = (None, 2, 2, 3) if kind is BlurConv2d else ()
    cases: list[tuple[dict[str, object], type[Exception], str]] = [
        ({"taps": [1, -1]}, ValueError, "do not sum to zero"),
        ({"stride": 2.0}, TypeError, "stride to be an int"),
        ({"padding_mode": "constant"}, ValueError, "'circular'"),
    ]
    for settings, error, words in cases:
        assert_refused(lambda s=settings: kind(*start, **s), error, kind.__name__, words)
    if kind in (MaxBlurPool2d, AvgBlurPool2d):
        assert_refused(lambda: kind(kernel_size=0), ValueError, kind.__name__, "kernel_size >= 1")


def test_other_settings_are_refused_at_once() -> None:
    assert_refused(lambda: PolyphasePool2d(0), ValueError, "PolyphasePool2d", "stride >= 1")
    assert_refused(lambda: PolyphasePool2d(norm=0.5), ValueError, "PolyphasePool2d", "norm to be a number >= 1")
    assert_refused(lambda: BlurConv2d(None, 1, 1, 3, order="blur"), ValueError, "BlurConv2d", "'conv-activation-blur'")
    assert_refused(lambda: BlurConv2d(None, 1, 1, 3, conv_padding_mode="x"), ValueError, "BlurConv2d", "padding_mode")
    assert_refused(lambda: PolyphasePool2d()(torch.zeros(1, 1, 7, 8)), ValueError, "polyphase_pool2d", "H to be")
    assert_refused(lambda: BlurPool2d(3, exact=True)(image()), ValueError, "BlurPool2d", "H=8", "2 or 4")
