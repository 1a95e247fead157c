"""Anti-aliased models: the sizes and the weights of before, a blur before every subsampling, and what is left alone."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert import Report, to_antialiased
from equilayers.functional import blur_pool2d
from equilayers.groups import Dihedral
from equilayers.nn import BlurPool2d, MaxBlurPool2d
from equilayers.testing import assert_equivariant
from refusals import assert_refused

SIZES = range(30, 36)  # all that strides of 2 and 3 tell apart
MODES = ("zeros", "reflect", "replicate", "circular")


def converted(model: nn.Module, **options: Any) -> nn.Module:
    made, report = to_antialiased(model, **options)
    assert report.complete
    return made


@pytest.mark.parametrize("stride", [None, 2, 3, (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("kernel", [*range(1, 8), (3, 2)], ids=str)
def test_sizes(kernel: Any, stride: Any) -> None:
    """Convolutions and pools of any setting put out what they did before."""
    half = min((kernel,) if isinstance(kernel, int) else kernel) // 2
    for padding, option in itertools.product(range(half + 2), (1, 2)):
        models: list[nn.Module] = [nn.Conv2d(2, 4, kernel, stride or 1, padding, dilation=option, groups=2)]
        if padding <= half:
            models.append(nn.MaxPool2d(kernel, stride, padding, dilation=option))
            models.append(nn.AvgPool2d(kernel, stride, padding, count_include_pad=option == 1))
        for model in models:
            made = converted(model)
            for x in (torch.randn(1, 2, height, 33) for height in SIZES):
                assert made(x).shape == model(x).shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [(3, 2, 1, 1), (5, 3, 2, 2), (1, 2, 0, 1), (3, 2, 0, 1), (1, 2, 1, 1)], ids=str)
def test_a_convolution_is_that_of_stride_1_and_a_blur(settings: tuple[int, ...], mode: str) -> None:
    kernel, stride, padding, dilation = settings
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        model = nn.Conv2d(2, 3, kernel, stride, padding, dilation, padding_mode=mode, dtype=dtype)
        made, x = converted(model), torch.randn(2, 2, 12, 13, dtype=dtype)
        dense = copy.deepcopy(model)
        dense.stride = (1, 1)
        torch.testing.assert_close(made(x), blur_pool2d(dense(x), stride=stride), atol=tolerance, rtol=tolerance)
        assert made.order == ("blur-conv-activation" if (kernel, padding) == (1, 0) else "conv-activation-blur")
        assert type(made.activation) is nn.Identity


def test_pools_are_those_of_stride_1_and_a_blur() -> None:
    x = torch.randn(2, 3, 12, 13)
    for model, dense in (
        (nn.MaxPool2d(3, 2, 1), F.max_pool2d(x, 3, 1, 1)),
        (nn.MaxPool2d(3, 2, 0, 2), F.max_pool2d(x, 3, 1, 0, 2)),
        (nn.MaxPool2d((3, 2), 2), F.max_pool2d(x, (3, 2), 1)),
        (nn.MaxPool2d(2), F.max_pool2d(x, 2, 1)),
        (nn.AvgPool2d(2), F.avg_pool2d(x, 2, 1)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        (nn.AvgPool2d(3, 2, 1, divisor_override=5), F.avg_pool2d(x, 3, 1, 1, divisor_override=5)),
    ):
        torch.testing.assert_close(converted(model)(x), blur_pool2d(dense, stride=2))
    pool = converted(nn.MaxPool2d(2))
    assert isinstance(pool, MaxBlurPool2d)
    assert (pool.spec.kernel_size, pool.spec.stride, pool.spec.taps) == ((2, 2), (2, 2), None)
    assert converted(nn.MaxPool2d(3, 2), taps=5).spec.taps == (1, 4, 6, 4, 1)
    assert converted(nn.Conv2d(1, 1, 3, 2), taps=4).spec.taps == (1, 3, 3, 1)


class Residual(nn.Module):
    """A shared pool, a strided 1x1 shortcut, a stem as of a ResNet, buffers, and modules in several modes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.long = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.short = nn.Conv2d(4, 8, 1, 2)
        self.again, self.last = self.pool, nn.AvgPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        f = self.pool(self.stem(x))
        f = self.last(self.again(torch.relu(self.long(f) + self.short(f))))
        return self.head(f.mean((-2, -1)))


def test_a_whole_model() -> None:
    model = Residual()
    model.stem[1].running_mean.normal_()
    model.short.eval()
    model.long[0].weight.requires_grad_(False)
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    made, report = to_antialiased(model)
    assert [e.path for e in report.entries] == ["stem.0", "pool", "long.0", "long.2", "short", "last"]
    assert [(e.path, e.reason) for e in report.of("kept")] == [("long.2", "stride 1 does not alias")]
    assert report.of("replaced")[0].before == str(model.stem[0])
    assert report.parameters_before == report.parameters_after == sum(p.numel() for p in model.parameters())
    assert "5 replaced, 1 kept, 0 refused" in str(report)
    assert made.pool is made.again is not model.pool
    # The weights are those of before, under the name of the convolution inside; the model is as it was.
    for (name, value), (key, other) in zip(before.items(), made.state_dict().items(), strict=True):
        assert key.replace("conv.", "") == name
        assert torch.equal(value, other)
    assert repr(model) == text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not {p.data_ptr() for p in made.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert (made.short.training, made.short.conv.training, made.training) == (False, False, True)
    assert not made.long[0].conv.weight.requires_grad
    for size in SIZES:
        x = torch.randn(2, 3, size, size)
        assert made.pool(made.stem(x)).shape == model.pool(model.stem(x)).shape
        made(x).sum().backward()


def test_nothing_strided_means_nothing_changed() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 1), nn.AvgPool2d(3, 1), nn.Flatten(), nn.Linear(4 * 36, 2)
    model = nn.Sequential(*layers)
    made, report = to_antialiased(model)
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(made(x), model(x))
    assert [e.done for e in report.entries] == ["kept"] * 3
    assert repr(made) == repr(model)
    only, report = to_antialiased(nn.Linear(3, 2))
    assert isinstance(only, nn.Linear)
    assert report == Report((), 8, 8)


def test_what_is_kept_and_what_is_refused() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(-1))

    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3, 2))
    for module, done, words in (
        (nn.MaxPool2d(2, 3, ceil_mode=True), "refused", "ceil_mode=False"),
        (nn.AvgPool2d(2, 2, 1, ceil_mode=True), "refused", "ceil_mode=False"),
        (nn.MaxPool2d(2, return_indices=True), "kept", "its indices are asked for"),
        (nn.MaxPool2d(2, return_indices=True, ceil_mode=True), "kept", "its indices are asked for"),
        (nn.Conv2d(1, 2, 3), "kept", "stride 1"),
        (nn.Conv2d(1, 2, 3, padding="same"), "kept", "stride 1"),
        (Own(1, 2, 3, 2), "refused", "of its own"),
        (normed, "refused", "parametrised"),
        (type("Mine", (nn.MaxPool2d,), {})(2), "refused", "of its own"),
    ):
        made, report = to_antialiased(nn.Sequential(nn.ReLU(), module))
        (entry,) = report.entries
        assert (entry.path, entry.done) == ("1", done)
        assert words in entry.reason
        assert report.complete == (done == "kept")
        assert repr(made[1]) == repr(module)
        x = torch.randn(1, 1, 9, 9)
        out, expected = made(x), nn.Sequential(nn.ReLU(), module)(x)
        assert torch.equal(out[0], expected[0])
    words = ("model to be a torch.nn.Module", "got function")
    assert_refused(lambda: to_antialiased(lambda x: x), TypeError, "to_antialiased", *words)
    assert_refused(lambda: to_antialiased(nn.MaxPool2d(2), taps=9), ValueError, "MaxBlurPool2d", "taps", "9")


def test_what_it_makes_of_pools_commutes_with_turns_and_mirrors_at_every_size() -> None:
    group = Dihedral(4)
    for size in SIZES:
        for pool in (nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 3)):
            assert_equivariant(converted(pool), torch.randn(1, 1, size, size), group)
    with pytest.raises(AssertionError, match="lopsidedly"):
        assert_equivariant(nn.MaxPool2d(3, 2, 1), torch.randn(1, 1, 32, 32), group)
    assert isinstance(converted(nn.MaxPool2d(3, 2, 1, 2))[1], BlurPool2d)
