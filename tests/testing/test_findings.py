"""All layers that lose the symmetry are found, each by itself, and the advice holds when it is followed."""

import copy
import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert import to_equivariant
from equilayers.groups import CyclicTranslation, Dihedral
from equilayers.nn import BlurPool2d, InvariantAvgPool2d, LiftingLinear, MaxBlurPool2d, OrbitPool, PolyphasePool2d
from equilayers.testing import assert_equivariant, assert_invariant, layer_errors, locate_break, locate_breaks
from planted import C4, FAULTS, Does, Net
from strategies import name

T4 = CyclicTranslation(4)


def image(size: int = 16, batch: int = 2, channels: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size)


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.short(x))


class ResNet(nn.Module):
    """With the strides of the usual ones: a stem of 7x7/2 and a pool, 3x3/2 with shortcuts of 1x1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


BREAKING = ["stem.0", "stem.2", "blocks.0.conv1", "blocks.0.conv2"]
BREAKING += ["blocks.1.conv1", "blocks.1.conv2", "blocks.1.short"]


def test_all_layers_that_break_are_named() -> None:
    net, x = ResNet().eval(), image(32)
    found = locate_breaks(net, x, C4)
    assert [each.path for each in found] == BREAKING
    assert {each.kind for each in found} == {"structural"}
    assert locate_break(net, x, C4) == found[0]
    assert [row.path for row in layer_errors(net, x, C4) if row.lost] == BREAKING
    with pytest.raises(AssertionError, match=r"lost at:   stem\.0: Conv2d(.|\n)*also at:   blocks\.1\.short: Conv2d"):
        assert_invariant(net, x, C4)


def test_each_is_judged_by_itself() -> None:
    """Its error is that of the layer alone on moved inputs; what is exact is not named."""
    first, second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    net, x = nn.Sequential(first, nn.ReLU(), nn.Conv2d(3, 3, 1), second).double(), image(8).double()
    found = locate_breaks(net, x, C4)
    assert [each.path for each in found] == ["0", "3"]
    with torch.no_grad():
        f = net[:3](x)
        gaps = [float((second(C4.act(g, f)) - C4.act(g, second(f))).abs().max()) for g in range(1, 4)]
        size = max(float(second(C4.act(g, f)).abs().max()) for g in range(4))
    assert found[1].error == pytest.approx(max(gaps) / size, rel=0.5)  # over generators alone
    functions = nn.Sequential(Does(lambda t: t.roll(1, -1)), Does(torch.relu), Does(lambda t: t.cumsum(-1)), second)
    assert [each.name for each in locate_breaks(functions, image(8, channels=3), C4)] == [
        "Tensor.roll",
        "Tensor.cumsum",
        "Conv2d",
    ]


@pytest.mark.parametrize("what", ["F.pad of one pixel", "written in place", "permute", "places of maps, learned"])
def test_behind_what_is_found_nothing_exact_is_blamed(what: str) -> None:
    both = nn.Sequential(FAULTS[what].make(), FAULTS["roll"].make())
    net = Net(C4, nn.Sequential(both, Does(lambda f: f[:, :, :, :8, :8])))
    names = [each.name for each in locate_breaks(net, image(8), C4)]
    assert names[:2] == [FAULTS[what].name, "Tensor.roll"]
    assert set(names[2:]) <= {"Tensor.__getitem__"}


def test_there_and_back_is_not_lost_twice() -> None:
    there_and_back = Does(lambda f: torch.relu(f.flip(-1).sigmoid()).flip(-1))
    net = nn.Sequential(nn.Conv2d(1, 2, 3), there_and_back, nn.Conv2d(2, 2, 3))
    assert [each.path for each in locate_breaks(net, image(8), C4)] == ["0", "2"]


def test_one_finding_of_what_is_random() -> None:
    (found,) = locate_breaks(Net(C4, FAULTS["F.dropout"].make()), image(8), C4)
    assert found.kind == "random"
    assert locate_breaks(Net(C4), image(8), C4) == []


# What becomes of a layer when the advice is followed, by the words of the advice.
FOLLOWED: list[tuple[str, Callable[..., nn.Module]]] = [
    (r"Take kernel (\d+) with padding (\d+), or", lambda m, k, p: type(m)(int(k), m.stride, int(p))),
    (r"or MaxBlurPool2d", lambda m: MaxBlurPool2d(m.kernel_size, m.stride, m.padding)),
    (r"stride 1 and BlurPool2d", lambda m: nn.Sequential(unstrided(m), BlurPool2d(stride=2))),
    (r"padding='same'.* and PolyphasePool2d\((\d)\)", lambda m, s: nn.Sequential(around(m), PolyphasePool2d(int(s)))),
    (r"PolyphasePool2d\((\d)\) in its place", lambda m, s: PolyphasePool2d(int(s))),
    (r"Pad with padding_mode='circular'", lambda m: nn.Sequential(around(m))),
]


def unstrided(module: Any) -> nn.Module:
    made = copy.deepcopy(module)
    made.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1
    return made


def around(module: Any) -> nn.Module:
    made = nn.Conv2d(
        module.in_channels, module.out_channels, module.kernel_size, padding="same", padding_mode="circular"
    )
    made.load_state_dict(module.state_dict())
    return made


def symmetric(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.ones_(conv.weight)
    return conv


@pytest.mark.parametrize("size", [12, 20])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MaxPool2d(3, 2, 1),
        lambda: nn.AvgPool2d(3, 2, 1),
        lambda: symmetric(nn.Conv2d(1, 2, 3, 2, 1)),
        lambda: nn.Conv2d(1, 2, 1, 2),
    ],
)
@pytest.mark.parametrize("group", [C4, Dihedral(1), Dihedral(4), T4], ids=name)
def test_advice_on_one_layer_holds(make: Callable[[], nn.Module], size: int, group: Any) -> None:
    layer, x = make(), image(size)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (found,) = locate_breaks(nn.Sequential(layer, *pooled), x, group)
    followed = [(match, change) for words, change in FOLLOWED if (match := re.search(words, found.suggestion))]
    assert followed
    for match, change in followed:
        better = change(layer, *match.groups())
        assert_invariant(nn.Sequential(better, *pooled), x, group)
        if group != T4:
            assert_equivariant(better, x, group, output="image")


@pytest.mark.parametrize(
    "net", [ResNet(), nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())]
)
def test_the_headline_for_a_plain_network_holds(net: nn.Module) -> None:
    x = image(32)
    found = locate_break(net, x, C4)
    assert found is not None
    assert found.suggestion.startswith(
        "Convert the whole model with equilayers.convert.to_equivariant(model, group, x)"
    )
    made, report = to_equivariant(net, C4, x)
    assert report.complete
    assert_invariant(made, x, C4)


def test_advice_on_what_reads_pixels_by_their_place_holds() -> None:
    x = image(8)
    found = locate_break(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x, C4)
    assert found is not None
    assert "Pool over the map before it (InvariantAvgPool2d), or take LiftingLinear" in found.suggestion
    assert_invariant(nn.Sequential(InvariantAvgPool2d(), nn.Linear(1, 3)), x, C4)
    assert_invariant(nn.Sequential(LiftingLinear(C4, (1, 8, 8), 3), OrbitPool()), x, C4)


def test_filters_that_no_conversion_sees_are_to_be_built() -> None:
    weight = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    found = locate_break(lambda x: F.conv2d(x, weight.to(x)), image(8), C4)
    assert found is not None
    assert found.suggestion == "Build it of LiftingConv2d and GroupConv2d"
    up = locate_break(nn.ConvTranspose2d(1, 1, 2, 2), image(8), C4)
    assert up is not None
    assert up.suggestion.endswith("or build it of GroupConvTranspose2d")


@pytest.mark.parametrize("settings", [{"size": 7}, {"size": 15}, {"size": 24}, {"scale_factor": 1.5}], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
@pytest.mark.parametrize("size", [16, 9])
def test_advice_on_resizing_holds(settings: dict[str, Any], mode: str, size: int) -> None:
    x = image(size)
    for model in (nn.Upsample(**settings, mode=mode), lambda t: F.interpolate(t, **settings, mode=mode)):
        found = locate_break(model, x, C4)
        if found is not None:
            assert (
                "mode='bilinear' with size= (or recompute_scale_factor=True), or enlarge by a whole" in found.suggestion
            )
        elif mode == "nearest":
            raise AssertionError(f"{settings} of {size}: rounds to one side")
    again = {"recompute_scale_factor": True} if "scale_factor" in settings else {}
    for better in (
        lambda t: F.interpolate(t, **settings, **again, mode="bilinear"),
        lambda t: F.interpolate(t, scale_factor=2, mode=mode),
    ):
        assert_equivariant(better, x, C4, tolerance=1e-5)


class Centroid(nn.Module):
    """A head on the centre of mass, which rotates with the image."""

    def __init__(self, *, put: Callable[[Tensor, Tensor], Tensor], module: bool, along: bool) -> None:
        super().__init__()
        self.put, self.along = put, along
        self.linear = nn.Linear(2, 3)
        self.module = module

    def places(self, x: Tensor) -> Tensor:
        m = F.softplus(x.mean(1))
        m = m / m.sum((1, 2), keepdim=True)
        ramp = torch.arange(x.shape[-1], dtype=x.dtype)
        if self.along:
            return self.put((m * ramp).sum((1, 2)), (m * ramp[:, None]).sum((1, 2)))
        return self.put((m.sum(1) * ramp).sum(1), (m.sum(2) * ramp).sum(1))

    def forward(self, x: Tensor) -> Tensor:
        places = self.places(x)
        return self.linear(places) if self.module else F.linear(places, self.linear.weight)


STACKS = [lambda a, b: torch.stack((a, b), -1), lambda a, b: torch.cat((b[:, None], -a[:, None]), 1)]


@pytest.mark.parametrize(("put", "module", "along"), [*itertools.product(STACKS, (True, False), (True, False))])
def test_a_head_on_the_centre_of_mass(put: Any, module: bool, along: bool) -> None:
    """The centre rotates along; what breaks is the linear layer that weighs its coordinates."""
    net, x = Centroid(put=put, module=module, along=along), image(8)
    (found,) = locate_breaks(net, x, C4)
    assert found.path == ("linear" if module else "")
    assert found.name.endswith("inear")
    assert "coordinates of places" in found.why
    assert locate_break(net.places, x, C4) is None
    distances = nn.Sequential(Does(net.places), Does(lambda p: (p.abs() - (x.shape[-1] - 1) / 2).norm(dim=1)[:, None]))
    assert locate_break(nn.Sequential(distances, nn.Linear(1, 3)), x, C4) is None


class Holder:
    """A callable object that holds a model, as an engine does."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)

    def run(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.net(x) * scale


def listed(nets: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    return lambda x: nets[0](x + 0)


WRAPPED: dict[str, Callable[[nn.Module], Callable[[Tensor], Any]]] = {
    "lambda": lambda net: lambda x: net(x + 0),
    "default": lambda net: lambda x, net=net: net(x)[0],
    "partial": lambda net: functools.partial(Holder(net).run, scale=2.0),
    "partial of a module": lambda net: functools.partial(net.forward),
    "method": lambda net: Holder(net).run,
    "forward": lambda net: net.forward,
    "object": Holder,
    "twice": lambda net: lambda x: Holder(net)(x + 0),
    "list": lambda net: listed([net]),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_names_of_modules_in_functions(how: str) -> None:
    net, x = Net(C4, FAULTS["roll"].make()).train(), image(8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for found in (*locate_breaks(WRAPPED[how](net), x, C4), locate_break(WRAPPED[how](net), x, C4)):
        assert found is not None
        assert (found.path, found.name, found.kind) == ("fault", "Tensor.roll", "structural")
    with pytest.raises(AssertionError, match=r"diagnosis: structural: in float64(.|\n)*lost at:   fault: Tensor.roll"):
        assert_invariant(WRAPPED[how](net), x, C4)
    assert net.training
    assert all(p.dtype == torch.float32 and torch.equal(p, before[key]) for key, p in net.state_dict().items())


def test_several_modules_in_one_function() -> None:
    one, other = nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3))
    found = locate_breaks(lambda x: one(x) + other(x), image(8), C4)
    assert [each.path for each in found] == ["one", "other.1"]
