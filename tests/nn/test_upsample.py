"""Layers that enlarge maps: values against torch in float64, laws, refusals that name what works, and a U-Net."""

import itertools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conv_laws import misses, worst
from equilayers.convert import to_plain
from equilayers.functional import group_conv2d
from equilayers.functional.transposed import group_conv_transpose2d
from equilayers.functional.upsampling import upsample2d
from equilayers.groups import CyclicRotation, Group
from equilayers.nn import (
    GroupConvTranspose2d,
    GroupUpsample,
    InvariantAvgPool2d,
    PolyphasePool2d,
    PolyphaseUnpool2d,
    set_algorithm,
)
from pages import ROOT, blocks, run
from refusals import assert_refused
from strategies import C2, C4, D1, D2, D4, ROTATIONS, filled, name

MODES: list[dict[str, Any]] = [
    {"mode": "nearest"},
    *({"mode": m, "align_corners": corners} for m in ("bilinear", "bicubic") for corners in (None, False, True)),
]
# kernel_size, stride, padding, output_padding, groups, bias, dilation
SETTINGS = [(4, 2, 1, 0, 1, True, 1), (3, 2, 0, 0, 2, False, 1), (2, 3, 0, 0, 1, True, 2), (3, 1, 2, 0, 2, True, 2)]


def expanded(layer: GroupConvTranspose2d) -> Tensor:
    """The filter of torch's transposed convolution, entry by entry: row (c, h), column (o, k)."""
    group, weight = layer.group, layer.weight.detach()
    back = [[group.compose(group.inverse(h), k) for k in range(group.order)] for h in range(group.order)]
    rows = [group.act(h, filters[:, back[h]]).flatten(0, 1) for filters in weight for h in range(group.order)]
    return torch.stack(rows)


@pytest.mark.parametrize("group", ROTATIONS, ids=name)
def test_transposed_convolution(group: Group) -> None:
    """The values of torch's with the expanded filter, the law bit by bit, the adjoint, and the plain form."""
    for settings in SETTINGS:
        layer = GroupConvTranspose2d(group, 4, 6, *settings, dtype=torch.float64)
        plain = nn.ConvTranspose2d(4 * group.order, 6 * group.order, *settings, dtype=torch.float64)
        with torch.no_grad():
            plain.weight.copy_(expanded(layer))
            if layer.bias is not None:
                plain.bias.copy_(layer.bias.repeat_interleave(group.order))
        f = filled((2, 4, group.order, 5, 5), torch.float64)
        expected = plain(f.flatten(1, 2)).unflatten(1, (6, -1))
        for algorithm in ("auto", "dense", "bitwise", "orbit"):
            layer.algorithm = algorithm
            torch.testing.assert_close(layer(f), expected, atol=1e-12, rtol=1e-12)
            if layer.exactness == "bitwise":
                assert misses(layer, group, f) == []
            else:
                assert worst(layer, group, f) <= 32
        torch.testing.assert_close(to_plain(layer)(f), expected, atol=1e-12, rtol=1e-12)
        _, stride, padding, _, groups, _, dilation = settings
        free = {"stride": stride, "padding": padding, "groups": groups, "dilation": dilation}
        y = group_conv_transpose2d(f, layer.weight, None, group, **free)
        x = filled(y.shape, torch.float64, 1)
        adjoint = group_conv2d(x, layer.weight, None, group, **free)
        torch.testing.assert_close((adjoint * f).sum(), (y * x).sum())
    assert misses(lambda f: plain(f.flatten(1, 2)).unflatten(1, (6, -1)).flip(-1), group, f) or group.order == 1


def test_transposed_convolution_has_the_parameters_of_torchs() -> None:
    layer = GroupConvTranspose2d("D4", 4, 6, 4, 2, 1, groups=2)
    assert {key: tuple(p.shape) for key, p in layer.state_dict().items()} == {"weight": (4, 3, 8, 4, 4), "bias": (6,)}
    plain = nn.ConvTranspose2d(32, 48, 4, 2, 1, groups=2)
    assert layer.weight.square().mean().item() == pytest.approx(plain.weight.square().mean().item(), rel=0.1)
    assert "stride=(2, 2), padding=(1, 1), groups=2, bias=True, algorithm='auto'" in repr(layer)
    steered = GroupConvTranspose2d(CyclicRotation(8, interpolation="bilinear"), 2, 2, 4, 2, 1)
    assert (steered.exactness, set_algorithm(layer, "bitwise").exactness) == ("approximate", "bitwise")


@pytest.mark.parametrize("group", [C2, C4, D2, D4], ids=name)
def test_a_lopsided_transposed_convolution_names_two_settings_that_work(group: Group) -> None:
    """At construction and for an output_size; each gives a map as large as torch's, and is exact."""
    found = re.compile(r"kernel_size=(\d+) with padding=(\d+)(?:, dilation=(\d+))?")
    for kernel, stride, padding, dilation in itertools.product((1, 2, 3, 4), (2, 3), (0, 1, 2), (1, 2)):
        plain = nn.ConvTranspose2d(1, 1, kernel, stride, padding, 1, dilation=dilation)
        f = filled((1, 1, group.order, 4, 4), torch.float32)
        make = lambda extra: GroupConvTranspose2d(group, 1, 1, kernel, stride, padding, extra, dilation=dilation)  # noqa: B023, E731
        wanted = plain(f[:, :, 0]).shape[-2:]
        words = ("output_padding=0 along an axis that", "got 1", "lopsided")
        for call in (lambda: make(1), lambda: make(0)(f, wanted)):  # noqa: B023
            message = assert_refused(call, ValueError, "GroupConvTranspose2d", *words)
        options = found.findall(message)
        assert len(set(options)) == 2
        for k, p, d in options:
            layer = GroupConvTranspose2d(group, 1, 1, int(k), stride, int(p), dilation=int(d or dilation))
            set_algorithm(layer, "bitwise")
            assert layer(f).shape[-2:] == wanted
            assert misses(layer, group, f) == []


def test_what_else_is_refused_of_transposed_convolutions() -> None:
    caller = "GroupConvTranspose2d"
    make = lambda *args, **kwargs: lambda: GroupConvTranspose2d(D4, 2, 4, *args, **kwargs)  # noqa: E731
    assert_refused(make(3, 2, 0, 2), ValueError, caller, "output_padding <= 1", "got 2")
    assert_refused(make(3, padding="same"), TypeError, caller, "padding to be an int", "'same'")
    assert_refused(make(3, padding_mode="circular"), ValueError, caller, "{'zeros'}")
    assert_refused(make((3, 2)), ValueError, caller, "kernel_size alike")
    assert_refused(make(3, groups=3), ValueError, caller, "in_channels divisible by groups=3")
    assert_refused(make(3, algorithm="fourier"), ValueError, caller, "'orbit'", "'fourier'")
    layer, f = GroupConvTranspose2d(D4, 2, 4, 3, 2, 3), torch.zeros(1, 2, 8, 2, 2)
    assert_refused(lambda: layer(f), ValueError, caller, "leave an output", "-1x-1")
    assert_refused(lambda: layer(f[:, :1]), ValueError, caller, "(B, 2, 8, H, W)")
    assert_refused(lambda: GroupConvTranspose2d(D4, 2, 4, 4, 2, 1)(f, 9), ValueError, caller, "output_size from (4, 4)")
    along = GroupConvTranspose2d(D1, 2, 4, 3, 2, 1, (1, 0), algorithm="bitwise")  # whose mirror leaves rows alone
    assert misses(along, D1, filled((2, 2, 2, 4, 5), torch.float32)) == []
    assert along(torch.zeros(1, 2, 2, 4, 5)).shape[-2:] == along(torch.zeros(1, 2, 2, 4, 5), (8, 9)).shape[-2:]


@pytest.mark.parametrize("settings", MODES, ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "bitwise"])
def test_resizing_is_torchs_and_exact_at_every_size_that_it_takes(settings: dict[str, Any], algorithm: str) -> None:
    taken = 0
    for length, out, dtype in itertools.product((1, 2, 5, 8), range(1, 18), (torch.float32, torch.float64)):
        f, image = filled((1, 2, 8, length, length), dtype), filled((2, 3, length, length + 2), dtype)
        layer = GroupUpsample(out, None, **settings, algorithm=algorithm)
        try:
            y = layer(f)
        except ValueError:
            assert out % length if settings["mode"] == "nearest" else out == 1 < length
            continue
        taken += 1
        expected = F.interpolate(f.flatten(1, 2).double(), out, **settings).unflatten(1, (2, 8))
        torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
        exact = layer.exactness == "bitwise"
        assert misses(layer, D4, f) == [] if exact else worst(layer, D4, f) <= 32
        if settings["mode"] != "nearest" and out > 1:
            oblong = GroupUpsample((out, out + 1), None, **settings, algorithm=algorithm)
            assert misses(oblong, D2, image) == [] if exact else worst(oblong, D2, image) <= 32
    assert taken > 40 if settings["mode"] == "nearest" else taken > 120


def test_factors_follow_from_both_sizes() -> None:
    """What torch does with the factor itself is not symmetric; and large maps keep their places in float32."""
    x = filled((1, 1, 5, 5), torch.float64)
    up = GroupUpsample(None, 2.5, "bilinear")
    assert up(x).shape[-2:] == (12, 12)
    assert worst(up, D4, x) <= 32
    assert worst(lambda x: F.interpolate(x, scale_factor=2.5, mode="bilinear"), D4, x) > 1e6
    large = filled((1, 1, 384, 384), torch.float32)
    assert worst(GroupUpsample(None, 1.7, "bicubic"), C4, large) <= 32
    assert worst(lambda x: F.interpolate(x, 652, mode="bicubic"), C4, large) > 32
    last = filled((2, 4, 4, 6, 6), torch.float32).to(memory_format=torch.channels_last_3d).transpose(1, 2)
    torch.testing.assert_close(
        GroupUpsample(None, 2, "bilinear")(last), upsample2d(last.contiguous(), 12, mode="bilinear")
    )
    assert torch.autograd.gradcheck(lambda x: upsample2d(x, 7, mode="bicubic"), x.requires_grad_())


def test_resizing_that_is_not_symmetric_is_refused_with_what_works() -> None:
    x = torch.zeros(1, 2, 4, 4)
    caller, bilinear = "GroupUpsample", "What works: mode='bilinear' or"
    for call, *words in (
        (lambda: GroupUpsample(None, 1.5), "a whole scale_factor", "got 1.5", f"{bilinear} scale_factor=2."),
        (lambda: GroupUpsample(7)(x), "a multiple of H=4", "got 7", f"{bilinear} a size of 8 there."),
        (
            lambda: GroupUpsample(1, None, "bilinear", True)(x),
            "two pixels or more",
            "align_corners=False or a size of 2.",
        ),
        (lambda: GroupUpsample(None, 2, align_corners=True), "no align_corners with mode='nearest'"),
        (lambda: GroupUpsample(3, 2), "size or scale_factor", "got both"),
        (lambda: GroupUpsample()(x), "a size", "Pass size= in the call"),
        (lambda: GroupUpsample(8)(x, 8), "no size in a call of a layer with a size"),
        (lambda: GroupUpsample(None, 0.1, "bilinear")(x), "leaves a pixel"),
        (lambda: GroupUpsample(None, (2.0, 2.0, 2.0)), "a number or a pair"),
        (lambda: GroupUpsample(8, mode="area"), "mode in"),
        (lambda: GroupUpsample(8)(x[0, 0, 0]), "(..., H, W)"),
    ):
        assert_refused(call, ValueError, caller, *words)  # type: ignore[arg-type]
    for factor in ("2", True):
        assert_refused(lambda: GroupUpsample(None, factor), TypeError, caller, "scale_factor to be a number")  # noqa: B023


SCALED: list[dict[str, Any]] = [{"mode": "nearest", "scale_factor": 2}, {"mode": "bicubic", "scale_factor": 1.5}]


@pytest.mark.parametrize("settings", [*MODES, *SCALED], ids=str)
def test_plain_resizing(settings: dict[str, Any]) -> None:
    layer, f = GroupUpsample(**settings), filled((2, 3, 4, 5, 5), torch.float64)
    call = {} if "scale_factor" in settings else {"size": 10}
    for x in (f, f[:, 0]):
        y = to_plain(layer)(x, *call.values())
        torch.testing.assert_close(y, layer(x, **call), atol=1e-12, rtol=1e-12)


def test_unpooling_undoes_polyphase_pooling_and_moves_with_the_input() -> None:
    pool, unpool = PolyphasePool2d((2, 4), return_choice=True), PolyphaseUnpool2d((2, 4))
    there_and_back = lambda x: unpool(*pool(x))  # noqa: E731
    for shape in ((3, 2, 8, 12), (3, 2, 4, 8, 12)):
        x = filled(shape, torch.float32)
        y, choice = pool(x)
        back = unpool(y, choice)
        assert torch.equal(y, PolyphasePool2d((2, 4))(x))
        assert torch.equal(pool(back)[0], y)
        assert torch.equal(back.ne(0).sum(), y.ne(0).sum())
        for shift in ((1, 0), (3, 5)):
            assert torch.equal(there_and_back(x.roll(shift, (-2, -1))), back.roll(shift, (-2, -1)))
        assert torch.equal(to_plain(unpool)(*to_plain(pool)(x)), back)
    square = nn.ModuleList([PolyphasePool2d(return_choice=True), PolyphaseUnpool2d()])
    f = filled((2, 2, 8, 8, 8), torch.float32)
    assert misses(lambda f: square[1](*square[0](f)), D4, f) == []
    upright = torch.zeros(2, 2, dtype=torch.int64)  # another choice than the pool's
    assert misses(lambda f: square[1](square[0](f)[0], upright), D4, f)


def test_dropout_and_squeeze_and_excitation_are_torchs() -> None:
    """Whole fields are dropped; a gate of the mean of all planes is invariant, one of each plane moves along."""
    torch.manual_seed(0)
    for dropout, shape in ((nn.Dropout3d, (2, 64, 4, 3, 3)), (nn.Dropout2d, (2, 64, 4, 9)), (nn.Dropout1d, (2, 64, 4))):
        kept = dropout(0.5)(torch.ones(shape)).flatten(2)
        assert torch.equal(kept, kept[:, :, :1].expand_as(kept))
        assert 0.3 < float(kept[..., 0].eq(0).float().mean()) < 0.7
    f = filled((2, 4, 8, 5, 5), torch.float64)
    excite = run(PAGE, "unet.md")["Excite"](D4, 4).double()  # type: ignore[operator]
    assert worst(excite, D4, f) <= 32
    assert not torch.allclose(excite(f), f * 0.5)
    assert InvariantAvgPool2d()(f).shape == (2, 4, 8)


PAGE = (ROOT / "docs" / "unet.md").read_text(encoding="utf-8")


def test_the_unet_of_the_page_is_equivariant_at_every_size() -> None:
    first = next(block.text for block in blocks(PAGE) if block.language == "python")
    assert len([line for line in first.split("group = ")[0].splitlines() if line.strip()]) <= 32
    names = run(f"```python\n{first}```\n", "unet.md")
    model = names["UNet"](D4, 1, 2, (2, 3, 4)).double().eval()  # type: ignore[operator]
    rough = names["UNet"](D4, 1, 2, (2, 3, 4)).double().eval()  # type: ignore[operator]
    rough.enlarge.forward = lambda f, size: F.interpolate(f, (f.shape[2], *size))
    lost = []
    for size in range(15, 65):
        x = filled((1, 1, size, size), torch.float64, size)
        y = model(x)
        assert y.shape == (1, 2, size, size)
        for g in (1, 4):  # which generate the group
            gap = (model(D4.act(g, x)) - D4.act(g, y)).abs().max() / y.abs().max()
            assert gap <= 1e-12, (size, g)
        lost.append((rough(D4.act(1, x)) - D4.act(1, rough(x))).abs().max() > 1e-3)
    assert any(lost)
