"""Layers and measures work on the device of their tensors, whatever the default device is."""

import pytest
import torch
from torch import Tensor, nn

from equilayers import metrics
from equilayers.functional import (
    blur_pool2d,
    polyphase_pool2d,
    relative_position_bias,
    rotary_embedding,
    window_partition,
)
from equilayers.groups import CyclicRotation, CyclicTranslation, Group
from equilayers.nn import (
    GroupAttentionPool,
    GroupConv2d,
    GroupLinear,
    GroupTransformerEncoderLayer,
    HarmonicConv2d,
    InvariantHead,
    LiftingConv2d,
    LiftingLinear,
)
from equilayers.testing import assert_equivariant, assert_invariant
from strategies import C4, D4, OCTAHEDRAL, filled, name

GROUPS: list[Group] = [C4, D4, CyclicTranslation(5), CyclicRotation(8, "bilinear")]


def data(*shape: int, seed: int = 0) -> Tensor:
    with torch.device("cpu"):
        return filled(shape, torch.float32, seed)


def outputs(group: Group, x: Tensor) -> list[Tensor]:
    """Every algorithm of every layer, on tables that no call has made before."""
    layers: list[tuple[nn.Module, Tensor]] = []
    f = data(2, 3, group.order)
    if group.exactness == "bitwise":
        for algorithm in ("bitwise", "orbit", "fourier", "dense", "auto"):
            layers.append((LiftingLinear(group, (1, 10, 10), 3, algorithm=algorithm, device="cpu"), x))
            layers.append((GroupLinear(group, 3, 2, algorithm=algorithm, device="cpu"), f))
    if not isinstance(group, CyclicTranslation):
        maps = data(2, 3, group.order, 10, 10)
        for algorithm in ("dense", "fourier", "auto"):
            layers.append((LiftingConv2d(group, 1, 3, 3, algorithm=algorithm, device="cpu"), x))
            layers.append((GroupConv2d(group, 3, 2, 3, algorithm=algorithm, device="cpu"), maps))
    found = []
    for layer, given in layers:
        for i, parameter in enumerate(layer.parameters()):
            parameter.data = data(*parameter.shape, seed=i)
        found.append(layer(given))
        found[-1].sum().backward()
    return found


@pytest.mark.parametrize("group", GROUPS, ids=name)
def test_layers(group: Group) -> None:
    x = data(2, 1, 10, 10)
    with torch.device("meta"):
        found = outputs(group, x)
    for y, expected in zip(found, outputs(group, x), strict=True):
        assert y.device.type == "cpu"
        torch.testing.assert_close(y, expected)


def test_other_layers() -> None:
    x = data(2, 1, 10, 10)
    layer = HarmonicConv2d(1, 2, 3, in_order=None, out_order=1)

    tokens, kit = data(2, 4, 4, 9), GroupTransformerEncoderLayer("C4", 4, 2, 6, device="cpu")
    octahedral = GroupLinear(OCTAHEDRAL, 2, 3, algorithm="fourier", device="cpu")
    pool, head = GroupAttentionPool("C4", 4, 2, device="cpu"), InvariantHead(4, 3, device="cpu")

    def outputs() -> list[Tensor]:
        encoded = kit(tokens, is_causal=True)
        found = [encoded, pool(encoded), head(encoded), octahedral(data(2, 2, 24, 3))]
        rotary = rotary_embedding(x.view(2, 25, 1, 4), "C1", 5)
        bias = relative_position_bias(x.view(-1, 8)[:10], "D4", 4)
        return [*found, blur_pool2d(x), polyphase_pool2d(x), layer(x), rotary, bias, window_partition(x[:, None], 5)]

    with torch.device("meta"):
        found = outputs()
    for y, expected in zip(found, outputs(), strict=True):
        torch.testing.assert_close(y, expected)


def test_measures_and_assertions() -> None:
    group, x = C4, data(3, 1, 9, 9)
    weight = data(81, 70)

    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight.to(x)

    def measured() -> list[Tensor]:  # all but SI: captum makes its tensors on the default device
        return [
            metrics.logit_invariance_error(model, x, group),
            metrics.distribution_invariance_error(model, x, group),
            metrics.invariance_gap(model, x, group).ratio,
            metrics.jacobian_spectral_norm(model, x),
            metrics.shift_consistency(model, x),
            metrics.shift_wobble(model, x, exhaustive=True),
            metrics.rotation_error_curve(model, x).error,
            metrics.deformation_stability(model, x, fields=2).distance,
        ]

    with torch.device("meta"):
        found = measured()
        assert_equivariant(lambda x: x.abs(), x, group)
        with pytest.raises(AssertionError):
            assert_invariant(model, x, group)
    for value, expected in zip(found, measured(), strict=True):
        torch.testing.assert_close(value, expected)
