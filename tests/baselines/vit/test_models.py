"""Vision transformers: invariance over the whole group, sizes, parameters, and what is refused."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.vit import vit
from baselines.vit.models import SIZES, GroupViT, Shape, build, parameters
from equilayers.groups import group_from_name

TINY = Shape(16, 2, 2)


def made(group: str | None, size: Any = 12, shape: Shape = TINY) -> tuple[nn.Module, Tensor]:
    """A tiny network in float64, every parameter away from its start, and images for it."""
    model = build(shape, group, size, 4, 5, 3).double().eval()
    height, width = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model, torch.randn(2, 3, height, width, dtype=torch.float64)


@torch.no_grad()
def largest_change(model: nn.Module, x: Tensor, name: str) -> float:
    group = group_from_name(name)
    return max(float((model(group.act(g, x)) - model(x)).abs().max()) for g in range(group.order))


@pytest.mark.parametrize("name", ["C4", "D4"])
@pytest.mark.parametrize("size", [4, 12, 16])  # grids of one token, odd and even
def test_logits_stay_when_the_image_is_moved(name: str, size: int) -> None:
    assert largest_change(*made(name, size), name) < 1e-12
    assert largest_change(*made(None, size), name) > 1e-3


def test_oblong_images_and_groups_that_leave_their_shape() -> None:
    assert largest_change(*made("D2", (12, 20)), "D2") < 1e-12
    assert largest_change(*made("C2", (8, 12)), "D2") > 1e-3  # mirrors are not among them
    assert made(None, (8, 12))[0](torch.zeros(1, 3, 8, 12, dtype=torch.float64)).shape == (1, 5)


def test_tokens_and_fiber_move_with_the_image() -> None:
    model, x = made("D4")
    assert isinstance(model, GroupViT)
    group = group_from_name("D4")
    with torch.no_grad():
        f, moved = (model.encoder(model.position(model.embed(image))) for image in (x, group.act(5, x)))
    torch.testing.assert_close(moved, group.act_regular(5, f), rtol=0, atol=1e-12)


def test_the_group_of_one_element_gives_the_plain_network() -> None:
    plain, x = made(None)
    tied, _ = made("C1")
    names = {"position": "position.weight"}
    with torch.no_grad():
        weights = dict(tied.named_parameters())
        for name, parameter in plain.named_parameters():
            weight = weights.pop(re.sub(r"(layers\.\d\.)(linear)", r"\1feed_forward.\2", names.get(name, name)))
            weight.copy_(parameter.view_as(weight))
        assert not weights
        torch.testing.assert_close(tied(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "numbers"), [("S", 22_050_664), ("B", 86_567_656), ("L", 304_326_632)])
def test_sizes_are_those_of_the_papers_without_the_class_token(size: str, numbers: int) -> None:
    with torch.device("meta"):
        plain, *tied = (parameters(vit(size, group)) for group in (None, "C4", "D4"))
    assert plain == numbers - 2 * SIZES[size].width  # the token and its position
    for order, count in zip((4, 8), tied, strict=True):
        assert order * (count - 1000) == plain - 1000  # the classes have their biases in both


def test_layers_are_drawn_apart_and_like_the_plain_ones() -> None:
    plain, tied = (build(Shape(64, 2, 2), group, 8, 4, 5, 3) for group in (None, "D4"))
    for model, position in ((plain, plain.position), (tied, tied.position.weight)):
        first, second = (layer.self_attn.in_proj_weight for layer in model.encoder.layers)
        assert not torch.equal(first, second)
        assert 0.8 < float(first.detach().std()) / 64**-0.5 < 1.2
        assert 0.7 < float(position.detach().std()) / 0.3 < 1.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vit("H"), r"vit: expected size one of \['S', 'B', 'L'\], got 'H'"),
        (
            lambda: vit("S", image=30),
            "vit: expected image to be a multiple of the patch, 16 pixels, each way, got 30x30",
        ),
        (lambda: vit("S", image=0), "got 0x0"),
        (lambda: vit("S", "Q8"), "vit: expected group"),
        (lambda: vit("S", "C4", image=(32, 64)), "expected"),
        (
            lambda: build(Shape(12, 1, 1), "D4", 8, 4, 5, 3),
            r"GroupViT: expected a width divisible by \|G\| = 8, got 12",
        ),
        (lambda: build(Shape(16, 1, 3), "D4", 8, 4, 5, 3), "expected num_heads"),
        (lambda: made(None)[0](torch.zeros(1, 3, 16, 12, dtype=torch.float64)), "PlainViT: expected images of 12x12"),
        (lambda: made("C4")[0](torch.zeros(1, 3, 16, 16, dtype=torch.float64)), r"f of shape \(B, 4, 4, 3, 3\)"),
    ],
)
def test_refusals_say_what_was_expected(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
