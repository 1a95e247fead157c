"""What the report of a conversion says: every module, what became of it, every refusal and its reason; and no lies."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conversions import ResNet, Wired, assert_holds, settled
from equilayers.convert import Report, to_antialiased, to_equivariant, to_plain
from equilayers.convert._equivariant.map_layers import Aligned
from equilayers.convert._equivariant.maps import pool
from equilayers.convert._report import Kept, Outcome, Refused
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, PermutationGroup
from equilayers.nn import BlurPool2d, GroupConv2d, LiftingConv2d
from equilayers.testing import assert_invariant
from planted import Does
from refusals import assert_refused

conversion = importlib.import_module("equilayers.convert._equivariant.to_equivariant")
C4, D4 = CyclicRotation(4), Dihedral(4)
NAMES = ("first", "second", "norms.0", "norms.1", "short")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ended(*layers: nn.Module, features: int = 8) -> nn.Sequential:
    """Layers between a first convolution to 8 channels and a linear head."""
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 4)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, *head)


def assert_honest(made: nn.Module, report: Report, x: Tensor = X) -> None:
    """It is invariant, or equivariant, unless the report has a refusal: then it is not, or does not even run."""
    if report.complete:
        assert_holds(made.eval(), x, C4)
        return
    with pytest.raises((AssertionError, RuntimeError)):
        assert_holds(made.eval(), x, C4)


def complete(model: nn.Module, **options: Any) -> tuple[nn.Module, Report]:
    """A conversion that refuses nothing."""
    made, report = to_equivariant(model, C4, X, **options)
    assert report.complete, str(report)
    return made, report


def test_a_report() -> None:
    model = ResNet()
    made, report = to_equivariant(model, C4)
    assert report.complete
    paths = "stem.0", "stem.1", "pool", *(f"blocks.{block}.{name}" for block in (0, 1) for name in NAMES), "head"
    assert [entry.path for entry in report.of("replaced")] == list(paths)
    assert [entry.path for entry in report.entries] == [path for path, _ in model.named_modules()]
    first, _, pool, *_ = report.of("replaced")
    assert (first.before, pool.before) == (str(model.stem[0]), str(model.pool))
    assert isinstance(made.stem[0].conv, LiftingConv2d)
    assert isinstance(made.blocks[0].first[1].conv, GroupConv2d)
    assert [type(m) for m in made.blocks[0].first] == [Aligned, type(made.stem[0])]
    blurred = to_equivariant(model, C4, downsampling="blur")[0].blocks[0]
    assert [type(m) for m in blurred.first] == [type(made.stem[0]), BlurPool2d]
    assert [type(m) for m in blurred.short] == [BlurPool2d, type(made.stem[0])]  # cheaper in this order
    head, *lines = str(report).splitlines()
    assert head.startswith("14 replaced, 8 kept, 0 refused; ")
    assert head.endswith(f"parameters before, {sum(p.numel() for p in made.parameters()):,} after")
    assert lines[2].startswith("replaced stem.0: Conv2d(3, 16, kernel_size=(5, 5)")
    assert lines.pop() == "verified at 64x64, 58x58, 53x53, 75x75"
    assert len(lines) == len(report.entries)
    assert_honest(made, report)


class Own(nn.Conv2d):
    """A convolution that pads on its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def beside(other: Callable[[Tensor], Tensor], channels: int) -> nn.Module:
    """Features with something else at their side."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.read(torch.cat([m.conv(x), other(x)], 1)).mean((-2, -1)))

    return Wired(run, conv=conv(3, 8), read=conv(8 + channels, 8), head=nn.Linear(8, 4))


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 900, 4))


def twice() -> nn.Module:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity(), shared, nn.GELU(), shared, nn.AdaptiveAvgPool2d(1))


def coordinates(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype).expand(len(x), 1, *x.shape[-2:])


SQUARE, PLACE = "kernel, stride or padding is not square", "it reads pixels by their place"
SIDES, WEIGHT = "it reads the image and features side by side", "its weight is parametrised"
# What stands behind a first convolution, and why it is refused.
LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "kernel": (lambda: nn.Conv2d(8, 8, (3, 5), padding=1), SQUARE),
    "stride": (lambda: nn.Conv2d(8, 8, 3, (2, 1), 1), SQUARE),
    "padding": (lambda: nn.Conv2d(8, 8, 3, 1, (1, 0)), SQUARE),
    "dilation": (lambda: nn.Conv2d(8, 8, 3, 1, 2, (1, 2)), "its dilation is not square"),
    "same": (lambda: nn.Conv2d(8, 8, 4, padding="same"), "its padding is larger on one side"),
    "groups": (lambda: nn.Conv2d(8, 8, 3, groups=4), "its 4 channel groups do not divide 2"),
    "own forward": (lambda: Own(8, 8, 3), "its class computes something of its own"),
    "parametrised": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), WEIGHT),
    "spectral norm": (lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)), WEIGHT),
    "functional pool": (lambda: Does(lambda f: F.max_pool2d(f, 3, 2, 1)), "max_pool2d samples every so many"),
    "ceil_mode": (lambda: nn.MaxPool2d(2, 3, ceil_mode=True), "take ceil_mode=False"),
}


# Models, the path in them that is refused, and why.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    **{what: (lambda make=make: ended(make()), "1", why) for what, (make, why) in LAYERS.items()},
    "shuffle": (
        lambda: ended(nn.PixelShuffle(2), nn.Conv2d(2, 8, 1)),
        "1",
        "its 2 channels are no whole fields",
    ),
    "image": (lambda: beside(lambda x: x, 3), "read", SIDES),
    "coordinates": (lambda: beside(coordinates, 1), "read", SIDES),
    "flattened": (flattened, "2", f"{PLACE}: pool over the map before it"),
    "two kinds": (twice, "3", "it is called with features of several kinds"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("what", REFUSED)
def test_refused_modules(what: str) -> None:
    make, path, reason = REFUSED[what]
    model = make()
    made, report = to_equivariant(model, C4, X)
    assert reason in {entry.path: entry.reason for entry in report.of("refused")}[path]
    assert not report.complete
    if what != "ceil_mode":
        assert_honest(made, report)


def test_what_is_never_called_is_left_as_it_is() -> None:
    model = Wired(lambda m, x: m.net(x), net=ended(), unused=nn.Conv2d(8, 8, 3))
    _, report = to_equivariant(model, C4, X)
    assert report.complete
    assert "was not called" in next(entry.reason for entry in report.of("kept") if entry.path == "unused")


OFF, FIXED = "what it puts out is not the same for moved inputs: off by", "it does not run any more: "
STILL = "what it puts out is not an image that moves with the input: off by"
# Models that no module of theirs gives away, the width to convert them to, and why they are refused.
UNSEEN: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "cumsum": (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), Does(lambda f: f.cumsum(-1))), "equal-width", STILL),
    "shape": (lambda: nn.Sequential(conv(3, 8), Does(lambda f: f.flatten(1)[:, :9])), "equal-width", OFF),
    "channels in the code": (lambda: ended(Does(lambda f: f * torch.ones(8, 1, 1))), "equal-parameters", FIXED),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_no_module_tells_is_seen_by_running_it(what: str) -> None:
    make, width, reason = UNSEEN[what]
    made, report = to_equivariant(make(), C4, X, width=width)
    entry, *places = report.of("refused")
    assert entry.path == ""
    assert entry.reason.startswith(reason)
    assert bool(places) == (reason != FIXED)
    assert_honest(made, report)


def pools() -> nn.Module:
    model = ended(nn.MaxPool2d(3, 1), nn.AvgPool2d(2), Does(lambda f: f), nn.MaxPool2d(2, return_indices=True))
    model.insert(5, Does(lambda f: f[0]))
    return model


def converted_all(models: list[nn.Module]) -> list[tuple[str, str, str]]:
    """What becomes of each module in either conversion, from weights for every other model."""
    reports = [to_equivariant(model, C4, X, from_weights=bool(i % 2))[1] for i, model in enumerate(models)]
    reports += [to_antialiased(model)[1] for model in models]
    return [(entry.path, entry.done, entry.after) for report in reports for entry in report.entries]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_no_decision_hangs_on_the_words_of_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_its_words(*call: Any) -> Outcome:
        found = pool(*call)
        return Refused("") if isinstance(found, Kept) and "alike" not in found.reason else found

    models = [pools(), *(make() for make, *_ in (*REFUSED.values(), *UNSEEN.values()))]
    expected = converted_all(models)
    assert {done for _, done, _ in expected} == {"replaced", "kept", "refused"}
    for kind in (Kept, Refused):
        made = kind.__init__
        monkeypatch.setattr(kind, "__init__", lambda self, reason, *more, made=made: made(self, "x", *more))
    assert converted_all(models) == expected
    expected = converted_all(models[:1])
    handlers = [(kinds, by_its_words if handler is pool else handler) for kinds, handler in conversion.HANDLERS]
    monkeypatch.setattr(conversion, "HANDLERS", handlers)
    assert converted_all(models[:1]) != expected


def test_outputs_that_are_images() -> None:
    """A head is averaged right there, so that what follows sees an image; features that others read, at the end."""

    def run(m: Any, x: Tensor) -> dict[str, Tensor]:
        f = F.relu(m.body(x))
        return {"mask": m.mask(f).softmax(1), "logits": m.head(f.mean((-2, -1)))}

    denoises = Wired(lambda m, x: x - m.net(x), net=nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3)))
    assert_honest(*complete(denoises))
    probabilities = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 5), nn.BatchNorm2d(5), nn.Softmax(1))
    made, report = complete(probabilities)
    assert [entry.done for entry in report.entries][1::2] == ["replaced", "replaced", "kept"]
    torch.testing.assert_close(settled(made)(X).sum(1), torch.ones(2, 32, 32))
    assert_honest(made, report)
    made, _ = complete(Wired(run, body=conv(3, 8), mask=nn.Conv2d(8, 2, 1), head=nn.Linear(8, 4)))
    for key, shape in (("mask", (2, 2, 32, 32)), ("logits", (2, 4))):
        assert made(X)[key].shape == shape
        assert_holds(lambda x, key=key: made(x)[key], X, C4)


def test_features_as_output() -> None:
    def run(m: Any, x: Tensor) -> list[Tensor]:
        f = m.first(x)
        return [f, f + m.second(F.relu(f))]

    parts = {"first": conv(3, 8), "second": conv(8, 8)}
    made, report = complete(Wired(lambda m, x: run(m, x)[1], **parts))
    assert "its fibers are averaged" in report.entries[-1].reason
    assert made(X).shape == (2, 8, 32, 32)
    assert_honest(made, report)
    made, _ = complete(Wired(run, **parts))
    for place in (0, 1):
        assert_holds(lambda x, place=place: made(x)[place], X, C4)


def test_kept_modules() -> None:
    model = nn.Sequential(
        *(nn.InstanceNorm2d(3, affine=True), nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.AvgPool2d(3, 1, 1)),
        *(nn.Conv2d(3, 8, 3), nn.PReLU(), nn.MaxPool2d(3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)),
    )
    made, report = complete(model)
    assert [entry.path for entry in report.of("replaced")] == ["4", "9"]
    assert_honest(settled(made), report)


def test_widths_of_what_stands_side_by_side() -> None:
    """Channels that |G| does not divide are rounded up one convolution at a time, and read so."""

    def run(m: Any, x: Tensor) -> Tensor:
        f = torch.cat([m.left(x), m.right(x)], 1)
        out = x.new_zeros(f.shape)
        out[:] = f
        return m.head(m.both(out).mean((-2, -1)))

    odd = Wired(run, left=conv(3, 6), right=conv(3, 5, 1), both=nn.Conv2d(11, 7, 3), head=nn.Linear(7, 4))
    for group in (C4, D4):
        for dtype in (torch.float32, torch.float64):
            made, report = to_equivariant(odd.to(dtype), group, X)
            assert report.complete, str(report)
            assert {p.dtype for p in made.parameters()} == {dtype}
    assert made.both.conv.in_channels == made.left.conv.out_channels + made.right.conv.out_channels


def test_functions_that_torch_does_not_show() -> None:
    """What a module makes by an autograd.Function is what it was fed, in another form."""

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    made, report = to_equivariant(ended(Does(Swish.apply), nn.Conv2d(8, 8, 3)), C4, X)
    assert [entry.path for entry in report.of("replaced")] == ["0", "2", "5"]
    assert_honest(made, report)


def test_gates_of_one_channel_and_planes_of_zeros() -> None:
    """A gate is one plane for all fields; zeros beside features are features; a ReLU may see images and features."""

    def run(m: Any, x: Tensor) -> Tensor:
        f = m.act(m.conv(m.act(x)))
        f = torch.sigmoid(m.gate(f)) * f
        f = torch.sigmoid(m.spread(torch.cat([f.mean(1, keepdim=True), f.amax(1, keepdim=True)], 1))) * f
        return m.head(m.last(torch.cat([f, torch.zeros_like(f)], 1)).mean((-2, -1)))

    parts = {"conv": conv(3, 8), "gate": conv(8, 1, 1), "spread": conv(2, 1, 5), "last": nn.Conv2d(16, 8, 3)}
    gated = Wired(run, act=nn.ReLU(), **parts, head=nn.Linear(8, 4))
    for from_weights in (False, True):
        made, report = complete(gated, from_weights=from_weights)
        assert [entry.path for entry in report.of("replaced")] == ["conv", "gate", "spread", "last", "head"]
        assert isinstance(made.spread.conv, LiftingConv2d)
        assert_honest(made, report)


def test_a_fault_is_seen_where_little_of_the_input_is_left() -> None:
    """The running statistics of an untrained network let its outputs be all alike, and so nearly invariant."""
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    for layer in layers[::3]:
        nn.init.normal_(layer.weight, std=1e-3)
    made, report = to_equivariant(ended(Does(lambda f: f * coordinates(f)), *layers).eval(), C4, X)
    for module in made.modules():
        if isinstance(module, LiftingConv2d | GroupConv2d):
            nn.init.normal_(module.weight, std=1e-3)
    with pytest.raises(AssertionError, match="nothing was shown"):
        assert_invariant(made, X, C4)
    reasons = {entry.path: entry.reason for entry in report.of("refused")}
    assert "off by" in reasons[""]
    assert "An embedding of absolute places" in reasons["1"]


def test_from_weights_says_what_it_cannot_take() -> None:
    up = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 2, 1))
    for model, reason in (
        (ended(nn.Conv2d(8, 6, 3), features=6), "from_weights takes channels that |G| = 4 divides"),
        (ended(nn.Conv2d(8, 8, 3, groups=2)), "no channel groups"),
        (ended(nn.GroupNorm(4, 8)), "its 4 groups divide, not 2"),
        (up, "from_weights takes channels that |G| = 4 divides"),
    ):
        assert reason in to_equivariant(model, C4, X, from_weights=True)[1].of("refused")[0].reason
    assert complete(ended(nn.GroupNorm(4, 8), nn.ReLU()))[0][1].layer.num_groups == 2


@pytest.mark.parametrize("groups", [1, 64])
def test_distances_from_weights(groups: int) -> None:
    """Zero for weights that are equivariant, sqrt(1 - 1/|G|) or so for random ones; P W is the nearest one."""
    model = ended(nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3, groups=groups), nn.ReLU(), features=64)
    made, report = to_equivariant(model, C4, X, from_weights=True)
    far = {entry.path: entry.distance for entry in report.of("replaced")}
    assert len(far) == 4
    for path in ("0", "1", "2"):
        assert far[path] == pytest.approx(0.75**0.5, abs=0.1)
        assert f"{far[path]:.2f} from equivariant" in str(report)
    nearest = {name: p for name, p in to_plain(made).state_dict().items() if name.endswith("weight")}
    for name, weight in nearest.items():
        rest = model.state_dict()[name] - weight
        assert abs(float((rest * weight).sum())) < 1e-3 * float(weight.square().sum())  # orthogonal
    model.load_state_dict(to_plain(made).state_dict())
    for entry in to_equivariant(model, C4, X, from_weights=True)[1].of("replaced"):
        assert entry.distance < 1e-6


def test_the_example() -> None:
    seen = []
    model = nn.Sequential(Does(lambda x: seen.append(tuple(x.shape)) or x), nn.Conv2d(5, 8, 3))
    to_equivariant(model, C4)
    assert {shape for shape in seen if shape[-1] == 64} == {(2, 5, 64, 64)}
    state = torch.get_rng_state()
    one, other = (to_equivariant(nn.Conv2d(1, 4, 3), C4, torch.zeros(1, 1, 5, 5)) for _ in range(2))
    assert not torch.equal(state, torch.get_rng_state())  # new weights are drawn
    assert one[1] == other[1]
    last = nn.Sequential(*ended(), nn.BatchNorm1d(4))  # which has no statistics of a single sample
    assert to_equivariant(last, C4, X[:1])[1].complete


def test_refused_arguments() -> None:
    model = ended()
    with_weights = {"width": "equal-compute", "from_weights": True}
    raised = (
        "x that the model takes",
        "(2, 3, 64, 64), and it raised RuntimeError: ",
        "mat1 and mat2",
        "of the size it is used at",
    )
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], tuple[str, ...]]] = [
        ((torch.relu, C4), {}, TypeError, ("model to be a torch.nn.Module", "Wrap it")),
        ((model, 4), {}, TypeError, ("group to be a group", "got 4.")),
        ((model, CyclicTranslation(4)), {}, ValueError, ("CyclicRotation or Dihedral", repr(CyclicTranslation(4)))),
        ((model, PermutationGroup([[1, 0]])), {}, ValueError, ("CyclicRotation or Dihedral", "PermutationGroup")),
        ((model, C4), {"width": "wide"}, ValueError, ("'equal-width'", "'wide'")),
        ((model, C4), with_weights, ValueError, ("width='equal-width' with from_weights=True", "'equal-compute'")),
        ((model, C4, X.int()), {}, TypeError, ("x to be floating-point", "torch.int32")),
        ((model, C4, X[0]), {}, ValueError, ("x of shape (B, C, H, W)", "(3, 32, 32)")),
        ((nn.Linear(3, 2), C4), {}, ValueError, ("x for a model without a torch.nn.Conv2d", "Pass images")),
        ((flattened(), C4), {}, ValueError, raised),
    ]
    for args, options, error, words in cases:
        assert_refused(lambda a=args, o=options: to_equivariant(*a, **o), error, "to_equivariant", *words)
