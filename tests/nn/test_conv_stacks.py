"""Whole networks of convolutions: invariant to the last bit from end to end, and checks that can fail."""

import random
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conv_laws import KINDS, LAYOUTS, ROUNDING, Kind, input_of, make, misses, square, worst
from equilayers.functional._convolution.filters import expand
from equilayers.groups import CyclicRotation, Group
from equilayers.nn import GroupConv2d, InvariantAvgPool2d, LiftingConv2d, OrbitPool
from strategies import C2, C4, D1, D2, D4, each_group, filled, name

REDUCTIONS = ("max", "mean", "norm")


def stack(group: Group, size: int, channels: tuple[int, int, int] = (3, 5, 7), reduction: str = "max") -> nn.Sequential:
    """A network for maps of this size, strided where that is symmetric: by an odd kernel or an even one."""
    first, second, third = channels
    kernel = 3 if size % 2 else 4
    return nn.Sequential(
        LiftingConv2d(group, first, second, 3, padding=1, algorithm="bitwise"),
        nn.ReLU(),
        GroupConv2d(group, second, third, kernel, stride=2, padding=1, algorithm="bitwise"),
        nn.ReLU(),
        OrbitPool(reduction),
        InvariantAvgPool2d(),
    )


@each_group
def test_invariant_from_end_to_end(group: Group) -> None:
    """Every layout of the input and of its images; batch sizes, dtypes, reductions, sizes, channels are drawn."""
    draw = random.Random(0).choice
    for first, then in product(LAYOUTS, LAYOUTS):
        size, dtype, batch = draw((8, 9)), draw((torch.float32, torch.float64)), draw((1, 2, 3, 4, 5))
        channels = draw(((3, 5, 7), (1, 2, 3), (3, 1, 1)))
        model = stack(group, size, channels, draw(REDUCTIONS)).to(dtype)
        x = LAYOUTS[first](filled((batch, channels[0], size, size), dtype, batch))
        assert misses(model, group, x, LAYOUTS[then]) == [], (size, dtype, batch, channels)
        with torch.no_grad():
            assert misses(model, group, x) == []


@each_group
def test_equivariant_as_deep_as_one_likes(group: Group) -> None:
    """Six layers: bitwise with the exact algorithms, within the rounding of each with the others."""
    for algorithm in ("bitwise", "auto"):
        layers: list[nn.Module] = [LiftingConv2d(group, 2, 3, 3, padding=1, algorithm=algorithm), nn.ReLU()]
        for stride in (1, 2, 1, 2, 1):
            layers += [GroupConv2d(group, 3, 3, 3, stride, 1, algorithm=algorithm), nn.ReLU()]
        model, x = nn.Sequential(*layers[:-1]), torch.randn(2, 2, 13, 13)
        assert model(x).shape[-2:] == (4, 4)
        assert misses(model, group, x) == [] if algorithm == "bitwise" else worst(model, group, x) <= 6 * ROUNDING


# Checks that can fail.


def by_expanded_filter(kind: Kind, filters: Tensor, group: Group, **settings: int) -> Callable[[Tensor], Tensor]:
    """The plain convolution with the filters, its output reshaped into features."""
    image = (lambda x: x) if kind is LiftingConv2d else (lambda x: x.flatten(1, 2))
    return lambda x: F.conv2d(image(x), filters, **settings).unflatten(1, (-1, group.order))


@each_group
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_one_perturbed_weight_is_found(group: Group, kind: Kind) -> None:
    """Small whole numbers add up exactly, so the expanded filter passes; with one entry a little off it does not."""
    layer = make(kind, group, 2, 3, square(7, 3, padding=1), "dense")
    weight = torch.randint(-8, 9, layer.weight.shape).float()
    filters = expand(weight, group)
    x = torch.randint(1, 9, input_of(layer, (7, 7)).shape).float()
    model = by_expanded_filter(kind, filters, group, padding=1)
    assert misses(model, group, x) == []
    filters[group.order, 1, 0, 1] += 2**-12
    assert misses(model, group, x) == list(range(1, group.order))
    filters[group.order, 1, 0, 1] += 1
    assert worst(model, group, x) > ROUNDING


@each_group
def test_a_lopsided_grid_would_be_found(group: Group) -> None:
    """What the layers refuse to compute is indeed not equivariant, but for the mirror along the diagonal."""
    weight = torch.randint(-8, 9, (3, 2, 3, 3)).float()
    model = by_expanded_filter(LiftingConv2d, expand(weight, group), group, padding=1, stride=2)
    even, odd = (torch.randint(1, 9, (2, 2, size, size)).float() for size in (8, 9))
    assert misses(model, group, odd) == []
    assert misses(model, group, even) == [g for g in range(1, group.order) if (group, g) != (D4, 5)]
    assert worst(model, group, even) > 1e4
    with pytest.raises(ValueError, match="lopsided"):
        LiftingConv2d(group, 2, 3, 3, 2, 1)(even)


def test_the_wrong_group_is_found() -> None:
    x = torch.randn(3, 3, 9, 9)
    for own, other, expected in (
        (C4, D4, [4, 5, 6, 7]),
        (C2, C4, [1, 3]),
        (C2, D1, [1]),
        (D1, C2, [1]),
        (D1, D2, [1, 3]),
        (D2, D4, [1, 3, 5, 7]),
        (D4, C4, []),
        (D4, D2, []),
        (CyclicRotation(1), C4, [1, 2, 3]),
    ):
        assert misses(stack(own, 9), other, x) == expected, (own, other)
    other_fiber = lambda x: LIFTING(x)[:, :, [0, 3, 2, 1]]  # noqa: E731
    assert misses(LIFTING, C4, x) == []
    assert misses(other_fiber, C4, x) == [1, 3]


LIFTING = LiftingConv2d(C4, 3, 2, 3, algorithm="orbit")


@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_dense_is_found_not_bitwise(group: Group) -> None:
    found = []
    for channels, size in ((3, 6), (8, 9), (16, 8)):
        layer = GroupConv2d(group, channels, channels, 3, padding=1, algorithm="dense")
        assert layer.exactness == "rounding"
        x = input_of(layer, (size, size), 3)
        found += misses(layer, group, x)
        assert worst(layer, group, x) <= ROUNDING
    assert found


@each_group
def test_a_stack_without_the_invariant_mean_is_found_not_bitwise(group: Group) -> None:
    model = stack(group, 33, (3, 5, 16))
    model[-1] = nn.AdaptiveAvgPool2d(1)
    plain = nn.Sequential(*model, nn.Flatten())
    assert misses(plain, group, torch.randn(4, 3, 33, 33)) != []
    assert worst(plain, group, torch.randn(4, 3, 33, 33)) <= 4 * ROUNDING
