"""The cost model: what a layer says it runs is what it runs, and what the roofline of each kind of device takes."""

import inspect
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import equilayers.nn
from equilayers.functional._machine import ROOFLINES, Machine, machine_of
from equilayers.functional.cost import (
    MANY_ROWS,
    LinearSizes,
    Sizes,
    cheapest_convolution,
    cheapest_linear,
    cheapest_tokens,
    convolution_work,
    costs_of,
    linear_work,
    roofline_costs,
    token_work,
)
from equilayers.functional.tokens import TokenSpace, TokenWeight, token_linear, token_sizes
from equilayers.groups import CyclicRotation, Dihedral, PermutationGroup, group_from_name
from equilayers.nn import (
    AngleHead,
    GroupConv2d,
    GroupConvTranspose2d,
    GroupFeedForward,
    GroupLinear,
    GroupMultiheadAttention,
    GroupTransformerEncoderLayer,
    LiftingConv2d,
    LiftingLinear,
    VectorHead,
    VectorLiftingConv2d,
    VectorLiftingLinear,
)

Make = Callable[[str, int], nn.Module]
# A layer of a group and width, and the shape of its input behind the batch and the channels.
LAYERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "lifting linear": (lambda a, c: LiftingLinear("C4", (c, 6, 6), c, algorithm=a), (6, 6)),
    "group linear": (lambda a, c: GroupLinear("C4", c, c, algorithm=a), (4,)),
    "group linear, tokens": (lambda a, c: GroupLinear("C4", c, c, algorithm=a), (4, 7)),
    "group linear, map": (lambda a, c: GroupLinear("C4", c, c, algorithm=a), (4, 5, 5)),
    "lifting convolution": (lambda a, c: LiftingConv2d("C4", c, c, 3, algorithm=a), (9, 9)),
    "group convolution": (lambda a, c: GroupConv2d("C4", c, c, 3, algorithm=a), (4, 9, 9)),
    "1x1 convolution": (lambda a, c: GroupConv2d("C4", c, c, 1, algorithm=a), (4, 9, 9)),
    "steered convolution": (lambda a, c: GroupConv2d("C8", c, c, 3, algorithm=a), (8, 9, 9)),
    "transposed convolution": (lambda a, c: GroupConvTranspose2d("C4", c, c, 3, algorithm=a), (4, 5, 5)),
    "lifted vectors": (lambda a, c: VectorLiftingLinear("C4", c, c, algorithm=a), (2,)),
}


def result(layer: nn.Module, x: Tensor, algorithm: str) -> Tensor:
    """What the algorithm that `chosen` names gives."""
    if algorithm == "tokens":
        weight = layer.weight if layer.weight.ndim == 3 else layer.weight.flatten(2)
        return token_linear(x, TokenWeight(weight, layer.bias), TokenSpace(layer.group, True), None)
    layer.algorithm = algorithm
    return layer(x)


@pytest.mark.parametrize(
    ("name", "width", "word"),
    [
        (n, c, a)
        for n, c, a in itertools.product(LAYERS, (2, 160), ("auto", "bitwise"))
        if (n[:7], a) != ("steered", "bitwise")
    ],
)
@torch.no_grad()
def test_what_is_chosen_runs(name: str, width: int, word: str) -> None:
    make, rest = LAYERS[name]
    layer, x = make(word, width), torch.randn(2, width, *rest)
    choice, y = layer.chosen(x), layer(x)
    assert layer.algorithm == word
    of_patterns = "convolution" in name and (word, choice.algorithm) == ("auto", "fourier")  # "fourier" of fewer sums
    torch.testing.assert_close(y, result(layer, x, choice.algorithm), **({} if of_patterns else {"rtol": 0, "atol": 0}))
    if choice.costs:
        kept = [n for n in choice.costs if word == "auto" or n in ("orbit", "fourier")]
        exact_map = word == "bitwise" and name == "group linear, map"  # which has one method alone
        assert choice.algorithm == min(kept, key=choice.costs.__getitem__) or exact_map
        assert all(f"{n} " in choice.why for n in choice.costs)
        assert "roofline of cpu" in choice.why
    assert str(choice) == f"{choice.algorithm}: {choice.why}"


def test_the_choice_depends_on_the_width() -> None:
    """A transform pays where products are large, and for both widths something is left to choose."""
    with torch.no_grad():
        taken = {c: GroupConv2d("C4", c, c, 3).chosen(torch.zeros(8, c, 4, 18, 18)).algorithm for c in (4, 512)}
    assert taken == {4: "dense", 512: "fourier"}


def test_layers_on_tokens_say_theirs() -> None:
    wide = torch.zeros(1, 512, 8, 3)
    for layer in (
        GroupMultiheadAttention("D4", 512, 4),
        GroupFeedForward("D4", 512, 512),
        GroupTransformerEncoderLayer("D4", 512, 4, 512),
    ):
        assert layer.chosen(wide).algorithm == "tokens"
        layer.algorithm = "dense"
        assert layer.chosen(wide).algorithm == "dense"
        assert "was set" in layer.chosen(wide).why


def test_every_tied_layer_says_what_it_runs() -> None:
    """Layers that have algorithms and a weight."""
    kinds = [kind for _, kind in inspect.getmembers(equilayers.nn, inspect.isclass) if hasattr(kind, "ALGORITHMS")]
    tied = [kind for kind in kinds if "Pool" not in kind.__name__ and kind.__name__ != "GroupUpsample"]
    assert len(tied) >= 12
    assert [kind.__name__ for kind in tied if not hasattr(kind, "chosen")] == []
    f, v = torch.zeros(1, 2, 4, 5, 5), torch.zeros(1, 2, 2, 5, 5)
    heads = VectorHead("C4", 2, 2, algorithm="auto"), AngleHead("C4", 2, 2)
    assert [head.chosen(f).algorithm for head in heads] == ["dense", "orbit"]
    assert VectorLiftingConv2d("C4", 2, 2, 3, algorithm="bitwise").chosen(v).algorithm == "orbit"


def test_named_and_trivial() -> None:
    layer, x = GroupLinear("C4", 2, 2, algorithm="orbit"), torch.zeros(1, 2, 4)
    assert str(layer.chosen(x)) == 'orbit: algorithm="orbit" was set'
    other = GroupLinear(PermutationGroup([[1, 2, 0], [1, 0, 2]]), 2, 2, algorithm="fourier")
    assert other.chosen(torch.zeros(1, 2, 6)).algorithm == "tokens"
    for layer, x in (
        (GroupLinear("C1", 2, 2), torch.zeros(1, 2, 1)),
        (LiftingConv2d("C1", 2, 2, 3), torch.zeros(1, 2, 5, 5)),
        (GroupMultiheadAttention("C1", 2, 1), torch.zeros(1, 2, 1, 3)),
        (GroupConvTranspose2d("C1", 2, 2, 3), torch.zeros(1, 2, 1, 5, 5)),
    ):
        assert layer.chosen(x).algorithm == "plain"


@pytest.mark.parametrize("name", ["lifting linear", "group linear", "lifting convolution", "group convolution"])
def test_wrong_inputs_are_refused_as_in_forward(name: str) -> None:
    layer = LAYERS[name][0]("auto", 2)
    for x in (torch.zeros(1, 3, 4, 4, 4), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError)) as refused:
            layer.chosen(x)
        with pytest.raises(refused.type) as forward:
            layer(x)
        assert str(refused.value) == str(forward.value)


def test_rooflines() -> None:
    """Three numbers a kind of device; a GPU transforms tokens where products are large, in full precision."""
    assert {len(line) for line in ROOFLINES.values()} == {3}
    gpu, group = Machine("cuda of nobody"), Dihedral(4)
    tokens = {
        (c, p): cheapest_tokens(group, LinearSizes(MANY_ROWS, 8 * c, c, False, True), gpu._replace(precision=p))
        for c in (8, 1024)
        for p in ("float32", "tf32", "float16")
    }
    assert {p for (c, p), taken in tokens.items() if c == 8 and taken == "tokens"} <= {"float32"}
    assert all(taken == "tokens" for (c, _), taken in tokens.items() if c == 1024)
    few = LinearSizes(1, 64, 8, False, True)
    assert cheapest_linear(group, few, False, gpu) == "dense"  # one launch
    sizes = Sizes(8 * 81, 8 * 81, 64, 64, (3, 3), 1, False, True)
    slow = {t: costs_of(convolution_work(group, sizes), Machine(threads=t))["dense"] for t in (1, 2)}
    assert slow[2] < slow[1] < costs_of(convolution_work(group, sizes), Machine(precision="float64"))["dense"]


def test_wide_encoder_layers_stay_in_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widths where the transform was measured to be faster by a quarter and more, or slower by a tenth."""
    faster = [("D4", 256, 1), ("D4", 384, 1), ("C4", 384, 1), ("D4", 768, 2), ("D4", 1024, 2), ("C4", 768, 2)]
    slower = [("D4", 64, 1), ("D4", 128, 1), ("C4", 128, 1), ("D4", 256, 2)]
    monkeypatch.setattr("equilayers.functional._machine.has_avx512", lambda: True)
    for name, width, threads in faster + slower:
        group = group_from_name(name)
        sizes = token_sizes(group, width // group.order, width // group.order)
        costs = roofline_costs(token_work(group, sizes), Machine(threads=threads))
        assert (costs["tokens"] < costs["dense"]) == ((name, width, threads) in faster), (name, width, threads)


def test_work_grows_with_sizes_and_training() -> None:
    group = CyclicRotation(4)
    small, large = LinearSizes(4, 64, 16, False, True), LinearSizes(8, 128, 32, False, True)
    for name, work in linear_work(group, small).items():
        bigger, step = linear_work(group, large)[name], linear_work(group, small._replace(kept=False))[name]
        assert all(a <= b for a, b in zip(work.quantities, bigger.quantities, strict=True))
        assert all(2 * a <= b for a, b in zip(work.quantities, step.quantities, strict=True))
        assert step.kind == f"{work.kind} training"
    pointwise = Sizes(8 * 81, 8 * 81, 64, 64, (1, 1), 1, False, True)
    assert "tokens" in convolution_work(group, pointwise)
    assert "tokens" not in convolution_work(group, pointwise._replace(kernel=(3, 3)))
    assert cheapest_convolution(group, pointwise, True) in ("orbit", "fourier")
    assert set(linear_work(group_from_name("T3"), small._replace(lifting=True))) == {"dense", "orbit", "fourier"}


def test_the_machine_of_a_tensor() -> None:
    torch.set_num_threads(2)
    assert machine_of(torch.zeros(1)) == Machine("cpu", 2, "float32")
    assert machine_of(torch.zeros(1, dtype=torch.bfloat16)).precision == "float16"
    assert machine_of(torch.zeros(1, dtype=torch.float64, device="meta")) == Machine("meta", 1, "float64")


def test_unmeasured_convolutions_are_dense() -> None:
    """In half precision, and on devices that nobody has calibrated."""
    for x in (torch.zeros(8, 512, 4, 18, 18, dtype=torch.bfloat16), torch.zeros(8, 512, 4, 18, 18, device="meta")):
        layer = GroupConv2d("C4", 512, 512, 3, device=x.device, dtype=x.dtype)
        choice = layer.chosen(x)
        assert choice.algorithm == "dense"
        assert "equilayers calibrate" in choice.why
        layer.algorithm = "bitwise"
        assert layer.chosen(x).algorithm == "orbit"
