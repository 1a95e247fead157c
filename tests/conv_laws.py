"""Convolutions as the tests see them: settings, layers and inputs, the law they keep, and when they may refuse."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from equilayers.functional._convolution import patches as _patches
from equilayers.groups import Group
from equilayers.nn import GroupConv2d, LiftingConv2d
from equilayers.testing.strategies import conv_settings
from equilayers.testing.strategies._layers import reversed_axes
from linear_laws import LAYOUTS as PLAIN_LAYOUTS
from strategies import filled

Pair = tuple[int, int]
Layout = Callable[[Tensor], Tensor]
Model = Callable[[Tensor], Tensor]
Kind = type[LiftingConv2d] | type[GroupConv2d]

KINDS: tuple[Kind, ...] = (LiftingConv2d, GroupConv2d)
EXACT = ("bitwise", "orbit", "fourier")
ALGORITHMS = ("auto", "dense", *EXACT)
MODES = ("zeros", "reflect", "replicate", "circular")
ROUNDING = 32  # eps(dtype) * max|output|, for each layer

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


class Settings(NamedTuple):
    """What a convolution is but its channels, and the size (height, width) of the maps that go in."""

    size: Pair
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments of the reference, and of the functions."""
        return {name: value for name, value in self._asdict().items() if name not in ("size", "kernel_size")}

    def sampling_spans(self) -> Pair:
        """`H + 2p - d(k-1) - 1` along both axes."""
        axes = zip(self.size, self.padding, self.dilation, self.kernel_size, strict=True)
        height, width = (length + 2 * p - d * (k - 1) - 1 for length, p, d, k in axes)
        return height, width


def square(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, **rest: Any) -> Settings:
    """Settings that are alike along both axes."""
    return Settings(*((value, value) for value in (size, kernel, stride, padding, dilation)), **rest)


def has_quarter_turns(group: Group) -> bool:
    return group.n == 4  # type: ignore[attr-defined]


def entitled(group: Group, s: Settings) -> set[str]:
    """Words of every refusal to which a layer with these settings has a right."""
    found = set()
    for axis, room in enumerate(s.sampling_spans()):
        length, padding = s.size[axis], s.padding[axis]
        most = {"reflect": length - 1, "circular": length}.get(s.padding_mode, padding)
        if room < 0:
            found.add("the reach of the kernel")
        if padding > most:
            found.add(f"padding <= {most} for padding_mode='{s.padding_mode}'")
        if room % s.stride[axis] and axis in reversed_axes(group):
            found.add("The grid is lopsided")
    return found


def make(kind: Kind, group: Group, channels: int, features: int, s: Settings, algorithm: str, **rest: Any) -> nn.Module:
    return kind(group, channels, features, s.kernel_size, algorithm=algorithm, **s.keywords, **rest)


def input_of(layer: nn.Module, size: Pair, batch: int = 2, seed: int = 0) -> Tensor:
    """An image or a feature for the layer."""
    fiber = (layer.group.order,) if isinstance(layer, GroupConv2d) else ()
    return filled((batch, layer.in_channels, *fiber, *size), layer.weight.dtype, seed)


def action(group: Group, x: Tensor) -> Callable[[int, Tensor], Tensor]:
    """How the group moves an image (B, C, H, W) or a feature (B, C, |G|, H, W)."""
    return group.act if x.ndim == 4 else group.act_regular


def misses(model: Model, group: Group, x: Tensor, layout: Layout = torch.clone) -> list[int]:
    """The elements g for which `model(act(g, x))` is not the moved `model(x)` to the last bit.

    x (B, C, H, W) is an image and (B, C, |G|, H, W) a feature; so is what comes out, and fewer axes do not move. x is
    taken as it lies in memory, what is moved is brought into `layout`; the identity is tried where that is another.
    """
    y, move = model(x), action(group, x)
    elements = range(layout is torch.clone, group.order)
    return [g for g in elements if not torch.equal(model(layout(move(g, x))), _expected(group, g, y))]


def worst(model: Model, group: Group, x: Tensor) -> float:
    """The largest error of the law in units of eps(dtype) * max|output|."""
    y, move = model(x), action(group, x)
    gaps = [(model(move(g, x)) - _expected(group, g, y)).abs().max().item() for g in range(1, group.order)]
    return max(gaps, default=0.0) / (y.abs().max().item() * torch.finfo(y.dtype).eps)


def _expected(group: Group, g: int, y: Tensor) -> Tensor:
    return y if y.ndim < 4 else action(group, y)(g, y)


def channels_last(x: Tensor) -> Tensor:
    """A copy whose channels lie side by side, as in an image that was read from a file."""
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


LAYOUTS = PLAIN_LAYOUTS | {"channels last": channels_last}


@st.composite
def settings(draw: st.DrawFn, group: Group, max_groups: int = 1) -> Settings:
    """Settings that the group allows, on maps of 19 pixels at most."""
    size, drawn = draw(conv_settings(group))
    return Settings(size, **drawn, groups=draw(st.integers(1, max_groups)))


def limit_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let no block of patches be larger than so many bytes or rows."""
    limits = [limit for limit in vars(_patches) if limit.isupper() and isinstance(getattr(_patches, limit), int)]
    assert limits
    for limit in limits:
        monkeypatch.setattr(_patches, limit, size)


def grid() -> Iterator[Settings]:
    """Every square map of 4 to 64 with every stride to 4, kernel to 7, padding to 3 and padding mode."""
    axes = itertools.product(range(4, 65), range(1, 5), range(1, 8), range(4), MODES)
    for size, stride, kernel, padding, mode in axes:
        yield square(size, kernel, stride, padding, padding_mode=mode)
