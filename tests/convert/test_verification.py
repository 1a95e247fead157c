"""A conversion that is not what it should be says where; one whose verification shows nothing says so."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.third_party import versions
from equilayers.convert import to_equivariant
from peers import required
from planted import Does


def network(*layers: nn.Module, images: bool = False) -> nn.Module:
    head = [] if images else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *layers, *head)


LOPSIDED = [
    (lambda: [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2)], "pads more on one side"),
    (lambda: [Does(lambda t: t.roll(1, -1)), nn.Conv2d(8, 8, 3)], "shifts along one axis"),
    (lambda: [Does(lambda t: F.interpolate(t, size=7)), nn.Conv2d(8, 8, 3)], "bilinear"),
]


@pytest.mark.parametrize(("layers", "words"), LOPSIDED, ids=["padding", "roll", "interpolate"])
@pytest.mark.parametrize("images", [False, True])
def test_what_refuses_the_whole_model_is_named(layers: Callable[[], list[nn.Module]], words: str, images: bool) -> None:
    made, report = to_equivariant(network(*layers(), images=images), "C4", torch.randn(2, 1, 16, 16))
    *whole, place = sorted(report.of("refused"), key=lambda entry: entry.path)
    assert place.path == "3"
    assert [entry.path for entry in whole] == ([""] if "axis" in words else [])  # of a known cause it would follow
    assert words in place.reason
    assert str(place) in str(report)
    assert made.training


def test_what_shows_nothing_is_not_complete() -> None:
    """What is normalised map by map has mean zero, whatever the weights: nothing comes through."""
    _, report = to_equivariant(network(nn.InstanceNorm2d(8)), "C4", torch.randn(2, 1, 16, 16))
    (refused,) = report.of("refused")
    assert "nothing shown: its output is the same for every input" in refused.reason
    assert to_equivariant(network(nn.InstanceNorm2d(8), nn.ReLU()), "C4", torch.randn(2, 1, 16, 16))[1].complete


def test_dead_weights_are_replaced_for_the_verification() -> None:
    """A fault behind them is seen; the result keeps its own weights."""
    for layers, places in (([], []), ([Does(lambda t: t.roll(1, -1)), nn.Conv2d(8, 8, 3)], ["", "3"])):
        net = network(*layers)
        nn.init.zeros_(net[-1].weight)
        made, report = to_equivariant(net, "C4", torch.randn(2, 1, 16, 16), from_weights=True)
        assert sorted(entry.path for entry in report.of("refused")) == places
        assert not made[-1].linear.weight.any()


def test_one_image_and_images_that_are_alike_show_something() -> None:
    for x in (torch.randn(1, 1, 16, 16), torch.randn(1, 1, 16, 16).expand(3, 1, 16, 16)):
        assert to_equivariant(network(), "C4", x)[1].complete


def test_an_untrained_efficientnet_names_its_padding() -> None:
    """Its untrained output is constant to rounding: with batch statistics of the images it is not."""
    required(versions, "monai", "models")
    from monai.networks.nets import EfficientNet

    blocks = ["r1_k3_s11_e1_i32_o16_se0.25", "r1_k3_s22_e6_i16_o24_se0.25", "r1_k5_s22_e6_i24_o40_se0.25"]
    net = EfficientNet(blocks, spatial_dims=2, in_channels=3, num_classes=5, image_size=32)
    made, report = to_equivariant(net, "C4", torch.randn(2, 3, 32, 32))
    places = {entry.path: entry for entry in report.of("refused")}
    assert places["_conv_stem_padding"].before == "ConstantPad2d(padding=(0, 1, 0, 1), value=0.0)"
    for path, place in places.items():
        assert "pads more on one side" in place.reason
        assert len(set(made.get_submodule(path).padding)) > 1
