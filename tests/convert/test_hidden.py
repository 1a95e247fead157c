"""Kinds of models that nobody had in mind: exact after training too, or refused at the place that is to blame."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert import to_equivariant, to_plain
from equilayers.groups import Group
from equilayers.testing import assert_equivariant, invariance_error
from planted import Does
from strategies import C4, D4

WIDTH, TOKENS = 16, 16
X = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Patches, one step, and a head."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.embed, self.step, self.head = nn.Conv2d(3, WIDTH, 2, 2), step, nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.step(self.embed(x).flatten(2).mT)).mean(1)
        return y


class Steps(nn.Module):
    """Some layers and parameters, and a function of them and of what comes in."""

    def __init__(self, run: Callable[["Steps", Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for key, part in parts.items():
            setattr(self, key, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Centred(nn.Module):
    """Less a running mean, of every channel or of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().unflatten(-1, (len(self.mean), -1)).mean((0, 1, 3)), 0.1)
        return (x - self.mean).relu()


def clamped(x: Tensor) -> Tensor:
    """Large numbers of the first token are cut off, through a view of it: at most inputs there are none."""
    x = x + 0
    x[:, 0].clamp_(max=9)
    return x


def added(m: Steps, x: Tensor) -> Tensor:
    """Numbers that are added in place to a view of tokens."""
    x = x + 0
    x[..., :8].add_(m.places)
    x[x < -1] = 0
    return x


def experts(m: Steps, x: Tensor) -> Tensor:
    """Of three experts the best one for every token."""
    best, which = m.gate(x).softmax(-1).max(-1)
    weights = F.one_hot(which, 3).to(x) * best[..., None]
    return x + sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(m.experts))


def talking(m: Steps, x: Tensor) -> Tensor:
    """Attention whose heads are mixed before the softmax, queries and keys by one `einsum`."""
    q, k = torch.einsum("bnd,shde->sbhne", x, m.both)
    scores = torch.einsum("bhij,hg->bgij", q @ k.mT, m.mixed).softmax(-1)
    return x + (scores @ x.unflatten(-1, (2, 8)).transpose(1, 2)).transpose(1, 2).flatten(2)


def nearest(m: Steps, x: Tensor) -> Tensor:
    """The nearest of some learned rows."""
    return x + m.codes[torch.cdist(x, m.codes.expand(len(x), -1, -1)).argmin(-1)]


def linear(n: int = WIDTH) -> nn.Linear:
    return nn.Linear(WIDTH, n)


def free(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def number() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, WIDTH))


CONVERTED: dict[str, Callable[[], nn.Module]] = {
    "a weight used twice": lambda: Steps(lambda m, x: F.linear(m.up(x).relu(), m.up.weight.T), up=linear(24)),
    "rows chosen by what comes in": lambda: Steps(
        lambda m, x: x + m.rows((x.mean(-1) * 3 + 4).clamp(0, 7).to(torch.int64)), rows=nn.Embedding(8, WIDTH)
    ),
    "a list of parameters": lambda: Steps(lambda m, x: (x * (1 + m.of[0])).relu(), of=nn.ParameterList([number()])),
    "in place": lambda: Steps(added, places=nn.Parameter(torch.zeros(TOKENS, 8))),
    "gated": lambda: nn.Sequential(linear(32), nn.GLU()),
    "the best expert": lambda: Steps(experts, gate=linear(3), experts=nn.ModuleList(linear() for _ in range(3))),
    "talking heads": lambda: Steps(talking, both=free(2, 2, WIDTH, 8), mixed=free(2, 2)),
    "places mixed by a matrix": lambda: Steps(lambda m, x: x + (m.mix @ x).relu(), mix=free(TOKENS, TOKENS)),
    "nearest row": lambda: Steps(nearest, codes=nn.Parameter(torch.randn(5, WIDTH))),
    "one running mean": lambda: Centred(1),
}
CUT = "without all that the group exchanges it with"
# What stands between, and what is said of it.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an if": (lambda: Does(lambda x: x if x.mean() < 9 else x + x[:, :1]), "bool makes a number of what comes from"),
    "a count": (lambda: Does(lambda x: x + x[:, : int((x > 99).sum())].sum(1, True)), "int makes a number"),
    "through a view": (lambda: Does(clamped), f"a slice takes (2, 16) of (2, 16, 16) {CUT}"),
    "running means": (lambda: Centred(WIDTH), "mean: a buffer that training changes"),
    "where few are": (
        lambda: Does(lambda x: x.index_put((x.mean(-1) > 9,), torch.arange(16.0).to(x))),
        "index_put is not known here",
    ),
}


@pytest.mark.parametrize("what", CONVERTED)
def test_converted_and_exact_after_training(what: str) -> None:
    torch.manual_seed(0)
    made, report = to_equivariant(Between(CONVERTED[what]()).double(), D4, X)
    assert report.complete, str(report)
    optimizer = torch.optim.Adam(made.train().parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (made(X).square() * torch.arange(4)).sum().backward()
        optimizer.step()
    assert float(invariance_error(made.eval(), 3 * X, D4).amax()) < 1e-11


class Pixels(nn.Module):
    """Channels become pixels, beside the enlarged image; within, or at the end, of one channel or of several."""

    def __init__(self, *, factor: int, channels: int, within: bool) -> None:
        super().__init__()
        self.back = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PixelUnshuffle(2), nn.Conv2d(32, 8, 1))
        self.shuffle = nn.Sequential(nn.Conv2d(8, channels * factor**2, 3, padding=1), nn.PixelShuffle(factor))
        self.last = nn.Conv2d(channels, 3, 1) if within else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.shuffle(self.back(x).relu()).relu())
        return y + F.interpolate(x[:, : y.shape[1]], size=y.shape[-2:], mode="bilinear")


@pytest.mark.parametrize(
    ("group", "settings"),
    [
        (D4, {"factor": 2, "channels": 8, "within": True}),
        (D4, {"factor": 3, "channels": 3, "within": False}),
        (C4, {"factor": 3, "channels": 1, "within": False}),
    ],
)
def test_channels_become_pixels(group: Group, settings: dict[str, Any]) -> None:
    made, report = to_equivariant(Pixels(**settings).double(), group, X)
    assert report.complete, str(report)
    assert_equivariant(made, X, group)
    torch.testing.assert_close(to_plain(made)(X), made(X))


@pytest.mark.parametrize("what", REFUSED)
def test_refused_where_it_is_to_blame(what: str) -> None:
    make, words = REFUSED[what]
    _, report = to_equivariant(Between(make()).double(), C4, X)
    assert [entry.path for entry in report.of("refused")] == ["step"], str(report)
    assert words in report.of("refused")[0].reason


@pytest.mark.parametrize(
    ("layer", "width", "words"),
    [
        (nn.PixelUnshuffle(2), 12, "take nn.Conv2d with a stride"),
        (
            nn.Sequential(nn.Conv2d(3, 16, 1), Does(lambda f: F.pixel_shuffle(f, 2))),
            4,
            "take the module nn.PixelShuffle",
        ),
    ],
)
def test_shuffles_that_are_refused(layer: nn.Module, width: int, words: str) -> None:
    _, report = to_equivariant(nn.Sequential(layer, nn.Conv2d(width, 8, 1)), C4, X.float())
    assert words in report.of("refused")[0].reason


def test_images_that_do_not_move_show_no_symmetry() -> None:
    """Convolutions on images that are not square, of which it is not known where entries go."""
    cut = nn.Sequential(nn.Conv2d(3, 8, 3), Does(lambda f: f * f.roll(1, -1).relu()), nn.AdaptiveAvgPool2d(1))
    _, report = to_equivariant(nn.Sequential(*cut, nn.Flatten(), nn.Linear(8, 3)), C4, torch.zeros(1, 3, 8, 12))
    assert not report.complete


def test_what_is_seen_at_large_inputs_alone() -> None:
    """Of convolutions nothing more than the outputs is asked: images of several strengths are tried."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3), Does(lambda f: f.mT.clamp(max=9).mT * (f.mT[..., :1] < 9).mT))
    net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    assert not to_equivariant(net, C4, X.float())[1].complete
