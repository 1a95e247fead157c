"""The law of the convolutions: bitwise or to rounding as they promise, or a refusal they have a right to."""

import contextlib
import os
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from conv_laws import (
    ALGORITHMS,
    EXACT,
    KINDS,
    LAYOUTS,
    MODES,
    ROUNDING,
    Kind,
    Settings,
    each_kind,
    entitled,
    grid,
    input_of,
    make,
    misses,
    settings,
    square,
    worst,
)
from equilayers.groups import Group
from equilayers.nn import GroupConv2d, InvariantAvgPool2d, LiftingConv2d, OrbitPool
from strategies import C2, C4, D1, D2, D4, TURNING, each_group, filled, float_dtypes, name

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

each_fast = pytest.mark.parametrize("algorithm", ["orbit", "fourier"])  # "bitwise" is one of the two


def outcome(kind: Kind, group: Group, s: Settings, algorithm: str, seed: int) -> str:
    """`bitwise`, `rounding` or `refused` where the layer is as good as its word; otherwise what is wrong."""
    dtype = torch.float64 if seed % 3 == 0 else torch.float32
    layer = make(kind, group, 1 + seed % 2, 2, s, algorithm, dtype=dtype)
    batch = 1 if s.size > (24, 24) else 1 + seed // 2 % 2
    x, reasons = input_of(layer, s.size, batch, seed), entitled(group, s)
    try:
        with contextlib.nullcontext() if seed % 5 else torch.no_grad():
            found = kept(layer, group, x)
    except ValueError as error:
        right = any(reason in str(error) for reason in reasons)
        return "refused" if right else f"refused without a right: {error}"
    return f"accepted in spite of {reasons}" if reasons else found


def kept(layer: nn.Module, group: Group, x: Tensor) -> str:
    """The level that the layer keeps, or what is wrong."""
    if layer.exactness == "bitwise":
        found = misses(layer, group, x)
        return f"misses {found}" if found else "bitwise"
    error = worst(layer, group, x)
    return "rounding" if error <= ROUNDING else f"off by {error}"


def step(group: Group) -> int:
    """Of how many cases of the grid one is taken; it shares no factor with the length of any axis.

    So every value of every axis comes up. HYPOTHESIS_PROFILE=thorough takes them all, for more than an hour.
    """
    return 1 if THOROUGH else 193 * group.order + 1


@each_kind
@each_group
def test_grid(group: Group, kind: Kind) -> None:
    """Every case keeps the law at its level or is refused with right: there is no third way."""
    tally: Counter[str] = Counter()
    wrong = []
    first = 0 if THOROUGH else 19 * (TURNING.index(group) + len(TURNING) * KINDS.index(kind))
    for seed, s in islice(enumerate(grid()), first, None, step(group)):
        # "auto" and "bitwise" only choose among the others: the whole grid takes every eighth case for them.
        for algorithm in ALGORITHMS if not THOROUGH or seed % 8 == 0 else ("dense", "orbit", "fourier"):
            found = outcome(kind, group, s, algorithm, seed)
            tally[found if found in ("bitwise", "rounding", "refused") else "wrong"] += 1
            wrong += [(s, algorithm, seed, found)] if tally["wrong"] > len(wrong) else []
    print(dict(tally))
    assert not wrong, (len(wrong), wrong[:5])
    assert set(tally) == {"bitwise", "rounding", "refused"}


def test_wrong_outcomes_are_told() -> None:
    class Strict(LiftingConv2d):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("Strict: expected another size.")

    class Lenient(LiftingConv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[..., :-1, :-1])

    class Near(LiftingConv2d):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + 64 * torch.finfo(y.dtype).eps * y.abs().max() * torch.eye(2, y.shape[2])[..., None, None]

    group, odd, even = C4, square(5, 3, stride=2), square(6, 3, stride=2)
    assert outcome(LiftingConv2d, group, even, "dense", 1) == "refused"
    assert outcome(LiftingConv2d, group, odd, "dense", 1) == "rounding"
    assert outcome(LiftingConv2d, group, odd, "orbit", 1) == "bitwise"
    for s in (even, odd):
        assert "without a right" in outcome(Strict, group, s, "orbit", 1)
    assert "in spite of" in outcome(Lenient, group, even, "dense", 1)
    assert "off by" in outcome(Near, group, odd, "dense", 1)
    assert "misses [1, 2, 3]" in outcome(Near, group, odd, "orbit", 1)


@each_kind
@given(st.sampled_from(TURNING), float_dtypes(), st.sampled_from(ALGORITHMS), st.sampled_from([*LAYOUTS]), st.data())
def test_any_settings_in_any_layout(
    kind: Kind, group: Group, dtype: torch.dtype, algorithm: str, layout: str, data: st.DataObject
) -> None:
    """Oblong maps, kernels, strides and paddings for the groups without quarter turns; dilation; channel groups."""
    s = data.draw(settings(group, max_groups=3), label="settings")
    channels, features = (s.groups * data.draw(st.integers(1, 3), label=label) for label in ("channels", "features"))
    layer = make(kind, group, channels, features, s, algorithm, dtype=dtype)
    x = LAYOUTS[data.draw(st.sampled_from([*LAYOUTS]))](input_of(layer, s.size, data.draw(st.integers(1, 5))))
    assert not entitled(group, s)
    if layer.exactness == "bitwise":
        assert misses(layer, group, x, LAYOUTS[layout]) == []
    else:
        assert worst(layer, group, x) <= ROUNDING


@each_kind
def test_a_height_that_mirrors_do_not_turn_around_may_be_lopsided(kind: Kind) -> None:
    for seed, mode in enumerate(MODES):
        for s in (Settings((6, 7), (3, 3), (2, 2)), Settings((9, 6), (2, 2), (4, 3), (1, 1), padding_mode=mode)):
            assert s.sampling_spans()[0] % s.stride[0]
            found = [outcome(kind, D1, s, algorithm, seed) for algorithm in ALGORITHMS]
            assert found == ["rounding"] * 2 + ["bitwise"] * 3, s
            for other in (C2, D2):
                assert {outcome(kind, other, s, algorithm, seed) for algorithm in ALGORITHMS} == {"refused"}
            over = Settings(*((b, a) for a, b in s[:5]), *s[5:])
            assert {outcome(kind, D1, over, algorithm, seed) for algorithm in ALGORITHMS} == {"refused"}


@each_kind
@each_fast
@each_group
def test_every_layout(group: Group, algorithm: str, kind: Kind) -> None:
    """An image of one channel has strides that can be read in two ways, and so has a map of one pixel."""
    pairs = [*((first, "plain") for first in LAYOUTS), *(("plain", then) for then in LAYOUTS)]
    for channels, s in ((1, square(6, 3, padding=1)), (3, square(3, 3))):
        layer = make(kind, group, channels, 8, s, algorithm)
        x = input_of(layer, s.size)
        for first, then in pairs:
            assert misses(layer, group, LAYOUTS[first](x), LAYOUTS[then]) == [], (s, first, then)


@each_kind
@each_fast
@each_group
def test_every_batch_size(group: Group, algorithm: str, kind: Kind) -> None:
    layer = make(kind, group, 3, 5, square(7, 3, 2, 1), algorithm)
    for dtype in (torch.float32, torch.float64):
        for batch in (1, 2, 3, 5, 33):
            assert misses(layer.to(dtype), group, input_of(layer, (7, 7), batch), LAYOUTS["misaligned"]) == [], batch


@each_kind
@each_group
def test_to_rounding_on_each_device(group: Group, kind: Kind, device: torch.device) -> None:
    for algorithm in ALGORITHMS:
        layer = make(kind, group, 2, 3, square(7, 3, 1, 1), algorithm, dtype=torch.float64).to(device)
        for size in ((7, 7), (8, 8)):
            assert worst(layer, group, input_of(layer, size).to(device)) <= ROUNDING, (algorithm, size)


@each_fast
@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_wide_layers(group: Group, algorithm: str, threads: int) -> None:
    lifting = LiftingConv2d(group, 3, 64, 7, 2, 3, algorithm=algorithm)
    assert misses(lifting, group, torch.randn(2, 3, 29, 29)) == []
    tied = GroupConv2d(group, 64, 64, 3, padding=1, algorithm=algorithm)
    assert misses(tied, group, torch.randn(3, 64, group.order, 8, 8)) == []


@each_kind
@each_fast
@each_group
def test_zeros_of_both_signs_and_extreme_numbers(group: Group, algorithm: str, kind: Kind) -> None:
    layer = make(kind, group, 2, 3, square(5, 3, padding=1), algorithm)
    tiny = torch.finfo(torch.float32).tiny
    for values in ([0.0, -0.0], [0.0, -0.0, 1.0], [1.0, 2.0], [tiny, -tiny / 4, 0.0], [1e30, -1e30, 1.0]):
        chosen = torch.tensor(values)[torch.randint(len(values), input_of(layer, (5, 5), 3).shape)]
        assert misses(layer, group, chosen) == [], values


TRAINED = [*((C4, algorithm) for algorithm in ("auto", "fourier")), (D1, "dense"), (D2, "bitwise")]


@pytest.mark.parametrize(("group", "algorithm"), TRAINED, ids=lambda v: v if isinstance(v, str) else name(v))
def test_the_law_holds_after_training(group: Group, algorithm: str) -> None:
    """Fifty steps of Adam on random labels: nothing in the law depends on how the weights came about."""
    model = nn.Sequential(
        LiftingConv2d(group, 2, 4, 3, padding=1, algorithm=algorithm),
        nn.ReLU(),
        GroupConv2d(group, 4, 5, 3, stride=2, padding=1, algorithm=algorithm),
    )
    head = nn.Sequential(OrbitPool(), InvariantAvgPool2d(), nn.Linear(5, 2))
    x, labels = filled((6, 2, 5, 5), torch.float32), torch.randint(2, (6,))
    before = [layer.weight.clone() for layer in model[::2]]
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(50):
        loss = nn.functional.cross_entropy(head(model(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all((layer.weight - weight).abs().mean() > 0.02 for layer, weight in zip(model[::2], before, strict=True))
    for context in (contextlib.nullcontext(), torch.no_grad()):
        with context:
            if algorithm in EXACT:
                assert misses(model, group, x[:5]) == []
                assert misses(nn.Sequential(model, head), group, x[:5]) == []
                continue
            assert worst(model, group, x) <= 2 * ROUNDING
            assert worst(nn.Sequential(model, head), group, x) <= 5 * ROUNDING
            for layer, inputs in ((model[0], x), (model[2], model[:2](x))):
                assert worst(layer, group, inputs) <= ROUNDING
