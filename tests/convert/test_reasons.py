"""What refuses a conversion is named alone: the module where the symmetry is lost first, and why."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert import to_equivariant
from equilayers.testing import assert_invariant
from planted import Does

TOKENS, WIDTH = 16, 32
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Scores = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Attention by hand, with something done to the scores."""

    def __init__(self, heads: int = 2, scores: Scores = lambda s: s, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.scores, self.causal = heads, scores, causal
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.causal:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = self.scores(q @ k.mT).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(b, n, WIDTH))
        return x + y


class OfTorch(nn.Module):
    """torch's attention, with a mask or with fewer keys."""

    def __init__(self, mask: Tensor | None = None, keys: int = TOKENS) -> None:
        super().__init__()
        self.mask, self.keys = mask, keys
        self.mha = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mha(x, x[:, : self.keys], x[:, : self.keys], attn_mask=self.mask)[0]
        return y


class Model(nn.Module):
    """Patches, attention, one step, attention, and a head."""

    def __init__(self, step: nn.Module, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = nn.Sequential(stem or nn.Identity(), nn.Conv2d(3, WIDTH, 4, stride=4))
        self.steps = nn.Sequential(Attention(), step, Attention())
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.steps(self.embed(x).flatten(2).mT).mean(1))
        return y


class Mixer(nn.Module):
    """Places mixed by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(TOKENS, 8), nn.GELU(), nn.Linear(8, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x.mT).mT


class Beside(nn.Module):
    """One layer makes features, and numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(WIDTH, WIDTH + 1)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.both(x).split((WIDTH, 1), -1)
        return x + y * gate.sigmoid()


def windows(x: Tensor) -> Tensor:
    """Attention without weights within windows of 2x2 places, shifted along one axis alone."""
    cells = x.unflatten(1, (4, 4)).roll(-1, 1).unflatten(2, (2, 2)).unflatten(1, (2, 2)).transpose(2, 3)
    flat = cells.flatten(3, 4).flatten(0, 2)
    cells = ((flat @ flat.mT).softmax(-1) @ flat).view(cells.shape).transpose(2, 3)
    return x + cells.flatten(3, 4).flatten(1, 2).roll(1, 1).flatten(1, 2)


class Biased(nn.Module):
    """Attention whose biases a network makes of distances."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
        self.attention = Attention()
        self.attention.scores = self.biased

    def biased(self, scores: Tensor) -> Tensor:
        """The scores, each with what is made of the distance of its tokens."""
        places = torch.arange(TOKENS)
        biases: Tensor = self.mlp((places[:, None] - places)[..., None].to(scores))[..., 0]
        return scores + biases

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x)
        return y


LOWER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
TABLE = torch.arange(TOKENS * WIDTH).view(TOKENS, WIDTH).sin()
CAUSAL = "a causal mask has an order of the tokens"
HALF = "a slice takes (2, 8, 32) of (2, 16, 32) without all that the group exchanges it with"
# What the step is, the module in it that is to blame, and what is said of it.
STEPS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "half of the tokens": (lambda: Does(lambda x: x[:, :8]), "", HALF),
    "half of them, stepped on": (lambda: Does(lambda x: F.gelu(x.chunk(2, 1)[0]) * 2), "", "chunk takes (2, 8, 32)"),
    "tokens by index": (lambda: Does(lambda x: x[:, torch.tensor([0, 3, 5])]), "", "a slice takes (2, 3, 32)"),
    "every other pixel": (
        lambda: Does(lambda x: x.mT.unflatten(2, (4, 4))[..., ::2, ::2].flatten(2).mT),
        "",
        "a slice samples every so many pixels",
    ),
    "parts of fibers": (lambda: Does(lambda x: x * x[..., :10].mean(-1, True)), "", "10 channels are no whole fields"),
    "causal": (lambda: Attention(causal=True), "", CAUSAL),
    "causal by a mask": (lambda: Attention(scores=lambda s: s.masked_fill(~LOWER, -1e9)), "", f"masked_fill: {CAUSAL}"),
    "causal, of torch": (lambda: OfTorch(~LOWER), ".mha", f"attn_mask: {CAUSAL}"),
    "a mask of pairs": (
        lambda: Attention(scores=lambda s: s + torch.arange(TOKENS**2).view(TOKENS, TOKENS).cos()),
        "",
        "a mask or a table (16, 16) of pairs of places",
    ),
    "keys that are half of the tokens": (lambda: OfTorch(keys=8), "", HALF),
    "a table of places": (lambda: Does(lambda x: x + TABLE), "", "add: numbers (16, 32) that are no parameters"),
    "an unknown function": (
        lambda: Does(lambda x: x.cumsum(1)),
        "",
        "cumsum depends on the order along an axis that the group moves",
    ),
    "what depends on features": (
        lambda: Does(lambda x: x.take_along_dim(x.argsort(1), 1)),
        "",
        "argsort depends on the order along an axis",
    ),
    "head width": (lambda: Attention(heads=16), "", "a head width of 2 holds no whole fibers of |G| = 4; 4 does"),
    "a network of places": (Biased, ".mlp.0", "it makes numbers of constants, not of the input"),
    "means of columns": (lambda: Does(lambda x: x + x.unflatten(1, (4, 4)).mean(2)[:, :1]), "", "mean over axes (2,)"),
    "places mixed by layers": (Mixer, "", "multiply from the left by a square torch.nn.Parameter"),
    "fields and numbers": (Beside, "", "33 channels of steps.1.both are no whole fields of |G| = 4, so that all"),
    "windows": (lambda: Does(windows), "", "windows of even width, shifted by half of it"),
}


@pytest.mark.parametrize("what", STEPS)
def test_the_first_place_is_refused_and_nothing_else(what: str) -> None:
    make, inner, words = STEPS[what]
    torch.manual_seed(0)
    _, report = to_equivariant(Model(make()), "C4", X)
    refused = [(entry.path, entry.reason) for entry in report.of("refused")]
    assert [path for path, _ in refused] == [f"steps.1{inner}"], str(report)
    assert words in refused[0][1]
    later = [entry for entry in report.entries if "it follows from" in entry.reason]
    assert {entry.done for entry in later} == {"kept"}
    assert "steps.2.qkv" in {entry.path for entry in later}


class Decoder(nn.Module):
    """Learned queries with layers of their own before they see features, and means over one axis after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, WIDTH))
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.own = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.read = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q = self.mix(self.norm(self.queries.expand(len(x), -1, -1))).relu()
        q = self.read(q + self.own(q, q, torch.zeros_like(q))[0], x, x)[0]
        return q + x.unflatten(1, (4, 4)).mean(1).mean(1, keepdim=True)


class Remembering(nn.Module):
    """Cuts its windows to the smallest map that it saw, and keeps a table of its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.biases, self.kept = 4, nn.Parameter(torch.randn(TOKENS, WIDTH)), None

    def train(self, mode: bool = True) -> "Remembering":
        """Forget the table."""
        self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.window = min(self.window, int(x.shape[1] ** 0.5))
        self.kept = self.biases * 2 if self.kept is None else self.kept
        return x + self.kept[: self.window**2].repeat(x.shape[1] // self.window**2, 1)


@pytest.mark.parametrize("step", [Decoder, Remembering])
def test_models_that_are_converted(step: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    made, report = to_equivariant(Model(step()), "D4", X)
    assert report.complete, str(report)
    assert_invariant(made.double().eval(), X.double(), "D4", atol=1e-12)


def test_the_same_model_without_the_fault_is_converted() -> None:
    for step in (Attention(), OfTorch(), Does(lambda x: x + 1), Attention(scores=lambda s: s + torch.eye(TOKENS))):
        assert to_equivariant(Model(step), "C4", X)[1].complete


def test_faults_that_do_not_follow_from_each_other_are_all_named() -> None:
    model = Model(Attention(causal=True), nn.ZeroPad2d((0, 4, 0, 4)))
    _, report = to_equivariant(model, "C4", F.pad(X, (0, -4, 0, -4)))
    assert [entry.path for entry in report.of("refused")] == ["embed.0", "steps.1"]
