"""Torch's own modules on 5-D features are the group versions: what each keeps, to the last bit or to rounding."""

import copy

import pytest
import torch
from torch import Tensor, nn

from conv_laws import ROUNDING, misses, worst
from equilayers.groups import Group
from equilayers.nn import GroupConv2d
from strategies import D4, each_group

CHANNELS = 6
BITWISE: dict[str, nn.Module] = {
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6(),
    "LeakyReLU": nn.LeakyReLU(),
    "PReLU": nn.PReLU(CHANNELS),
    "Hardtanh": nn.Hardtanh(),
    "Hardswish": nn.Hardswish(),
    "Threshold": nn.Threshold(0.1, 0.0),
    "BatchNorm3d, eval": nn.BatchNorm3d(CHANNELS).eval(),
    "Dropout3d, eval": nn.Dropout3d().eval(),
    "AdaptiveMaxPool3d": nn.AdaptiveMaxPool3d((None, 3, 3)),
    "Upsample nearest": nn.Upsample(scale_factor=(1, 2, 2)),
}
# With an exponential in it, an entry's last bit depends on where it lies in memory; sums depend on their order.
WITHIN_ROUNDING: dict[str, nn.Module] = {
    "ELU": nn.ELU(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(),
    "Softplus": nn.Softplus(),
    "Tanh": nn.Tanh(),
    "Softmax over channels": nn.Softmax(1),
    "BatchNorm3d, train": nn.BatchNorm3d(CHANNELS),
    "GroupNorm": nn.GroupNorm(2, CHANNELS),
    "InstanceNorm3d": nn.InstanceNorm3d(CHANNELS, affine=True),
    "Conv3d of one pixel": nn.Conv3d(CHANNELS, 4, 1),
    "AdaptiveAvgPool3d": nn.AdaptiveAvgPool3d((None, 2, 2)),
}
# The module, the sizes at which its windows tile the map symmetrically, and some at which they do not.
POOLS = [
    ((1, 2, 2), (1, 2, 2), 0, (4, 6, 8), (5, 7)),
    ((1, 3, 3), (1, 2, 2), 1, (5, 7, 9), (6, 8)),
    ((1, 3, 3), (1, 1, 1), 1, (4, 5, 8), ()),
    ((1, 3, 3), (1, 3, 3), 0, (3, 6, 9), (7, 8)),
]

DIAGONAL = (D4, 5)  # the mirror along the diagonal, the one element that a lopsided grid may keep


def features(
    group: Group, size: int, algorithm: str = "orbit", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Tensor]:
    """A layer and an input: what it puts out lies in memory as this algorithm leaves it."""
    layer = GroupConv2d(group, 2, CHANNELS, 3, padding=1, algorithm=algorithm, dtype=dtype)
    return layer, torch.randn(3, 2, group.order, size, size, dtype=dtype)


def with_statistics(module: nn.Module) -> nn.Module:
    """A copy whose scale, shift and running statistics are not the trivial ones."""
    module = copy.deepcopy(module)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2)
    return module


@each_group
@pytest.mark.parametrize("module", BITWISE)
def test_bitwise_after_a_bitwise_layer(group: Group, module: str) -> None:
    for algorithm in ("orbit", "fourier"):
        for size, dtype in ((6, torch.float32), (7, torch.float64)):
            layer, f = features(group, size, algorithm, dtype)
            model = nn.Sequential(layer, with_statistics(BITWISE[module]).to(dtype))
            assert misses(model, group, f) == [], (algorithm, size)


@each_group
@pytest.mark.parametrize("module", WITHIN_ROUNDING)
def test_within_rounding(group: Group, module: str) -> None:
    for algorithm, size, dtype in (("orbit", 6, torch.float64), ("fourier", 8, torch.float32)):
        layer, f = features(group, size, algorithm, dtype)
        model = nn.Sequential(layer, with_statistics(WITHIN_ROUNDING[module]).to(dtype))
        assert worst(model, group, f) <= 2 * ROUNDING, (algorithm, size)


@each_group
@pytest.mark.parametrize(("kernel", "stride", "padding", "symmetric", "lopsided"), POOLS, ids=str)
def test_poolings_where_windows_tile_symmetrically(
    group: Group,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: int,
    symmetric: tuple[int, ...],
    lopsided: tuple[int, ...],
) -> None:
    around = (0, padding, padding)
    largest, mean = nn.MaxPool3d(kernel, stride, around), nn.AvgPool3d(kernel, stride, around)
    for size in symmetric:
        f = torch.randn(2, 3, group.order, size, size)
        assert misses(largest, group, f) == []
        assert worst(mean, group, f) <= ROUNDING
        layer, f = features(group, size, "fourier")
        assert misses(nn.Sequential(layer, largest), group, f) == []
    for size in lopsided:
        f = torch.randn(2, 3, group.order, size, size)
        assert misses(largest, group, f) == [g for g in range(1, group.order) if (group, g) != DIAGONAL]
        assert worst(mean, group, f) > 1e4


@each_group
def test_batch_norm_gathers_the_same_statistics_from_turned_features(group: Group) -> None:
    """One mean and one variance per channel, over the fiber as well: to rounding those of the turned batch."""
    f = 1 + torch.randn(4, CHANNELS, group.order, 6, 6)
    for g in range(group.order):
        plain, turned = nn.BatchNorm3d(CHANNELS), nn.BatchNorm3d(CHANNELS)
        plain(f)
        turned(group.act_regular(g, f))
        torch.testing.assert_close(turned.running_mean, plain.running_mean, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(turned.running_var, plain.running_var, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(plain.running_mean, 0.1 * f.mean((0, 2, 3, 4)), atol=1e-6, rtol=1e-6)
    # A norm with statistics for every plane of the fiber is not the group version.
    apart = nn.BatchNorm2d(CHANNELS * group.order)
    with torch.no_grad():
        apart.weight.uniform_(0.5, 2)
    broken = lambda f: apart(f.flatten(1, 2)).unflatten(1, (-1, group.order))  # noqa: E731
    assert worst(broken, group, f) > 1e4


@each_group
def test_dropout3d_drops_whole_fibers(group: Group) -> None:
    drop, f = nn.Dropout3d(0.5), torch.randn(4, 16, group.order, 5, 5)

    def replayed(f: Tensor, drop: nn.Module = drop) -> Tensor:
        torch.manual_seed(0)
        return drop(f)

    kept = (replayed(f) != 0).flatten(2)
    assert torch.equal(kept.all(2), kept.any(2))
    assert 0 < kept[..., 0].float().mean() < 1
    assert torch.equal(replayed(f), kept[..., :1, None, None] * 2 * f)
    assert misses(replayed, group, f) == []
    assert misses(lambda f: replayed(f, nn.Dropout(0.5)), group, f) == list(range(1, group.order))
