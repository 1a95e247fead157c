"""Every planted fault is found, named and told apart; nothing is found where nothing is wrong."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert import symmetrize
from equilayers.groups import CyclicTranslation, Group, PermutationGroup
from equilayers.nn import BlurPool2d, GroupConv2d, InvariantAvgPool2d, LiftingConv2d, OrbitPool
from equilayers.testing import Break, assert_invariant, layer_errors, locate_break
from equilayers.testing._diagnosis.actions import candidates, distance
from planted import FAULTS, FIELDS, SIZE, Does, Net, Output, choice, image, located
from refusals import assert_refused
from strategies import C4, each_group

ROLL = FAULTS["roll"].make


@pytest.mark.parametrize("what", FAULTS)
def test_planted_faults(what: str) -> None:
    fault = FAULTS[what]
    net, x = Net(C4, fault.make(), fault.algorithm), image(16 if fault.algorithm == "dense" else SIZE)
    with pytest.raises(AssertionError, match="Net is not invariant under CyclicRotation") as caught:
        assert_invariant(net, x, C4, tolerance=1e-5 if fault.kind == "numerical" else None)
    for word in (f"diagnosis: {fault.kind}", f"lost at:   {fault.path}: ", *fault.words):
        assert word in str(caught.value)
    found = locate_break(net, x, C4)
    assert isinstance(found, Break)
    assert (found.kind, found.path, found.name) == (fault.kind, fault.path, fault.name)
    for word in fault.words:
        assert word in f"{found.why}. {found.suggestion}"
    assert found.error > 1e-5 or math.isnan(found.error)
    assert str(found).startswith(f"{fault.path}: ")
    assert str(found.input_shape) in str(found)
    if fault.kind == "structural":  # the report of all layers says the same
        lost, *others = [row for row in layer_errors(net, x, C4) if row.lost]
        assert [row.name for row in others] == ["Conv2d"] * (what == "even kernel, lopsided padding")
        assert (lost.path, lost.action) == (fault.path, "")
        assert lost.error > 1e-6


def test_a_course_that_depends_on_the_input() -> None:
    net, x = Net(C4, Does(choice)), image()
    words = ("the same functions for x and gx in fault", "Tensor.mul", "Tensor.add", "Its course depends")
    assert_refused(lambda: locate_break(net, x, C4), ValueError, "locate_break", *words)
    with pytest.raises(AssertionError, match=r"no place was found: locate_break: expected a model that calls the same"):
        assert_invariant(net, x, C4)


class Rows(nn.Module):
    """Reads each row of an image in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(0, 1))[0].unflatten(0, x.shape[:2])


def test_each_kind_of_layer_has_its_advice() -> None:
    kinds = {
        "pixels on one side alone": nn.ConvTranspose2d(1, 4, 3, stride=2, padding=1, output_padding=1),
        "GroupConvTranspose2d": nn.ConvTranspose2d(1, 4, 3, padding=1),
        "Normalise over channels": nn.LayerNorm(8),
        "in one order": Rows(),
        "along an axis": nn.Softmax(-1),
        "windows": nn.AvgPool2d((1, 2), 1),
    }
    for words, layer in kinds.items():
        found = locate_break(nn.Sequential(layer, nn.AdaptiveMaxPool2d(1), nn.Flatten()), image(8), C4)
        assert found is not None, words
        assert found.path.startswith("0"), words
        assert words in f"{found.why}. {found.suggestion}", (words, str(found))


def test_linear_after_flatten() -> None:
    net = nn.Sequential(LiftingConv2d(C4, 1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 36, 3))
    found = locate_break(net, image(), C4)
    assert located(net, image()) == ("3", "Linear", "structural")
    assert found is not None
    assert found.input_shape == (3, 288)
    assert "reads pixels by their place" in found.why
    assert "InvariantAvgPool2d" in found.suggestion


def test_an_output_that_nobody_pooled_is_no_break() -> None:
    net = nn.Sequential(LiftingConv2d(C4, 1, 2, 3, algorithm="bitwise"), nn.ReLU(), InvariantAvgPool2d(), nn.Flatten())
    assert locate_break(net, image(), C4) is None
    with pytest.raises(
        AssertionError, match=r"structural: every module is equivariant.*reshaped.*: pool over what moves"
    ):
        assert_invariant(net, image(), C4)


class Attention(nn.Module):
    """Squeeze and excitation over fields."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(fields, 2), nn.ReLU(), nn.Linear(2, fields), nn.Sigmoid())

    def forward(self, f: Tensor) -> Tensor:
        return f * self.layers(f.mean((2, 3, 4)))[:, :, None, None, None]


class Exact(nn.Module):
    """A residual network with everything that may be between equivariant layers; `flat` fibers lie in the channels."""

    def __init__(self, group: Group, flat: bool = False) -> None:
        super().__init__()
        self.order, self.flat = group.order, flat
        self.lift = LiftingConv2d(group, 1, FIELDS, 3, padding=1)
        self.conv = GroupConv2d(group, FIELDS, FIELDS, 3, padding=1)  # called twice
        self.norm, self.act, self.attend = nn.BatchNorm3d(FIELDS), nn.ReLU(inplace=True), Attention(FIELDS)
        self.nested = nn.Sequential(nn.Sequential(nn.GELU(), nn.Dropout3d()), nn.ModuleList([nn.Identity()])[0])
        self.last, self.blur = GroupConv2d(group, 2 * FIELDS, 6, 3, padding=1), BlurPool2d()
        self.pool, self.head = OrbitPool("mean"), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        f = self.act(self.norm(self.lift(x)))
        h = self.attend(self.conv(self.act(self.conv(f))))
        f = torch.cat([self.act(f + h), self.nested(h)], 1)
        if self.flat:
            f = F.interpolate(f.flatten(1, 2), scale_factor=2).unflatten(1, (-1, self.order))
        out = torch.empty_like(f)
        out[:] = f
        out.mul_(out.amax((2, 3, 4), keepdim=True).sigmoid())
        f = self.blur(self.last(out))
        return self.head(self.pool(f).mean((-2, -1)))


@each_group
@pytest.mark.parametrize("flat", [False, True], ids=["fibers", "flat"])
@pytest.mark.parametrize("size", [8, 9])
def test_exact_networks_have_no_break(group: Group, flat: bool, size: int) -> None:
    net, x = Exact(group, flat), image(size, batch=2)
    net(image(size))  # running statistics other than 0 and 1
    assert_invariant(net, x, group)
    assert locate_break(net, x, group) is None
    net.nested[0] = ROLL()
    assert located(net, x, group) == ("nested.0", "Tensor.roll", "structural")


def test_other_exact_networks_have_no_break() -> None:
    x = image(4, batch=2)
    conv = nn.Conv2d(1, 5, 3, padding=1, padding_mode="circular")
    shift = CyclicTranslation(4)
    around = nn.Sequential(conv, nn.ReLU(), conv_of(5, "circular"), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert locate_break(around, x, shift) is None
    edges = locate_break(nn.Sequential(conv, nn.ReLU(), conv_of(5, "zeros")), x, shift)
    assert edges is not None
    assert (edges.path, edges.suggestion) == ("2", "Pad with padding_mode='circular'")
    permutations = PermutationGroup([[1, 2, 0, 3]])
    assert locate_break(Does(lambda v: v.sort(-1).values.cumsum(-1)), torch.randn(2, 4), permutations) is None
    last = Does(lambda t: (t.permute(0, 2, 3, 1) @ torch.ones(1, 6, dtype=t.dtype)).softmax(-1).movedim(-1, 1))
    assert locate_break(last, x, C4) is None
    assert locate_break(symmetrize(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), C4), x, C4) is None
    masked = Does(lambda t: t.masked_fill(t < 0, -math.inf))
    assert locate_break(masked, x, C4) is None


def conv_of(channels: int, padding_mode: str) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding_mode)


def test_what_is_lost_and_found_again_is_not_lost() -> None:
    """Turned there and back, a fault between other modules does not count; the one after it does."""
    there_and_back = Does(lambda f: torch.relu(f.flip(-1).sigmoid()).flip(-1))
    assert locate_break(Net(C4, there_and_back), image(), C4) is None
    both = nn.Sequential(there_and_back, Does(lambda f: f.roll(1, -2)))
    assert located(Net(C4, both), image()) == ("fault.1", "Tensor.roll", "structural")


def test_functions_and_results_of_other_kinds() -> None:
    x = image()
    found = locate_break(lambda t: torch.relu(t).cumsum(-1).sum((1, 2, 3)), x, C4)
    assert isinstance(found, Break)
    assert (found.path, found.name, found.kind) == ("", "Tensor.cumsum", "structural")
    assert "the model itself" in str(found)
    net = Net(C4, ROLL())
    assert located(net.forward, x) == ("fault", "Tensor.roll", "structural")

    class Wrapped(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Output:
            return Output(self.net(x))

    assert locate_break(Wrapped(Net(C4)), x, C4) is None
    assert located(Wrapped(net), x) == ("net.fault", "Tensor.roll", "structural")


def test_a_model_that_does_not_run_in_float64() -> None:
    net = Net(C4, nn.Sequential(Does(lambda f: f.float()), ROLL()))
    assert located(net, image())[1:] == ("Tensor.roll", "structural or numerical")
    with pytest.raises(AssertionError, match=r"structural or numerical: it does not run in float64"):
        assert_invariant(net, image(), C4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    net = Net(C4, algorithm="dense").to(dtype)
    assert locate_break(net, image(), C4) is None
    net.fault = ROLL()
    assert located(net, image()) == ("fault", "Tensor.roll", "structural")


def test_errors_that_a_model_catches_leave_no_trace() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.wrong = Net(C4, ROLL()), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.net(x)

    assert located(Tries(), image()) == ("net.fault", "Tensor.roll", "structural")


def test_suggested_settings_sample_symmetrically() -> None:
    sizes, settings = range(6, 14), [*itertools.product((1, 2, 3, 5), (2, 3), (0, 1), (1,)), (3, 2, 0, 2), (5, 2, 0, 2)]
    advised = 0
    for size, (kernel, stride, padding, dilation) in itertools.product(sizes, settings):
        room = size + 2 * padding - dilation * (kernel - 1) - 1
        if padding > kernel // 2 or room < 0:
            continue
        found = locate_break(nn.MaxPool2d(kernel, stride, padding, dilation), image(size, batch=20), C4)
        assert (found is None) == (room % stride == 0)
        if found is not None and (match := re.match(r"Take kernel (\d+) with padding (\d+), or", found.suggestion)):
            better = nn.MaxPool2d(int(match[1]), stride, int(match[2]), dilation)
            assert locate_break(better, image(size, batch=20), C4) is None
            advised += 1
    assert advised > 50


ACTIONS: dict[str, Callable[[Group, Tensor], Tensor]] = {
    "image": lambda group, f: f[:, 0],
    "regular": lambda group, f: f,
    "image, channels last": lambda group, f: f[:, 0].movedim(1, -1),
    "regular, reshaped": lambda group, f: f.flatten(1, 2),
    "regular, reshaped, channels last": lambda group, f: f.flatten(1, 2).movedim(1, -1),
    "regular, reshaped, as tokens": lambda group, f: f.flatten(1, 2).flatten(2).mT,
    "regular vectors": lambda group, f: f.amax((-2, -1)),
    "flat vectors": lambda group, f: f.amax((-2, -1)).flatten(1),
    "invariant": lambda group, f: f.amax((2, 3, 4)),
}


@each_group
@pytest.mark.parametrize("kind", ACTIONS)
def test_ways_a_tensor_may_follow_the_group(group: Group, kind: str) -> None:
    """Each is found among the candidates; what follows none of them is not."""
    f = torch.randn(2, 3, group.order, 5, 5)
    look = ACTIONS[kind]
    y, moved = look(group, f), [look(group, group.act_regular(g, f)) for g in range(1, group.order)]
    if kind == "image":  # not of a fiber: each plane is an image of its own
        moved = [group.act(g, y) for g in range(1, group.order)]
    if kind == "image, channels last":
        moved = [group.act(g, y.movedim(-1, 1)).movedim(1, -1) for g in range(1, group.order)]

    def best(moved: list[Tensor]) -> float:
        return min(distance(action, y, moved) for action in candidates(group, y.shape, []))

    assert best(moved) == 0
    assert best([m + 0.1 * torch.rand_like(m) for m in moved]) > 1e-3


def test_distances_of_what_is_not_finite() -> None:
    y = torch.tensor([[1.0, -math.inf, 2.0, math.inf]])
    still: Any = next(a for a in candidates(C4, torch.Size([1, 3]), []) if a.name == "invariant")
    assert distance(still, y, [y.clone()]) == 0
    assert distance(still, y, [y.flip(1)]) == math.inf
    assert distance(still, y, [y * torch.tensor([1.5, 1, 1, 1])]) == pytest.approx(0.25)
    assert distance(still, y * math.nan, [y * math.nan]) == math.inf
    whole, complex_ = torch.tensor([[3, 4]]), torch.tensor([[3 + 4j]])
    assert distance(still, whole, [whole + 1]) == pytest.approx(0.2)
    assert distance(still, complex_, [complex_ + 5j]) == pytest.approx(5 / abs(3 + 9j))
    assert distance(still, whole > 3, [whole > 2]) == 1
    assert distance(still, y[:0], [y[:0]]) == 0
