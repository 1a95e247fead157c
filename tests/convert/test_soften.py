"""Softness: the model as it is at 1, the converted one at 0, the formula between, bounds of layers, annealing."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conversions import Wired, settled
from equilayers.convert import set_softness, soften, softness_bounds, to_equivariant, to_plain
from equilayers.convert._equivariant.softness import Soft
from equilayers.groups import CyclicRotation, Dihedral
from refusals import assert_refused

C4, D4 = CyclicRotation(4), Dihedral(4)
X = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Tokens(nn.Module):
    """Patches, one encoder layer, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).mT).mean(1))


def gated(m: nn.Module, x: Tensor) -> Tensor:
    f = m.norm(m.depth(m.enter(x)).relu())
    return m.head((f * m.gate(f.mean((-2, -1)))[..., None, None].sigmoid()).mean((-2, -1)))


def network() -> nn.Module:
    """Layers on maps of every kind that has a tied form."""
    parts = {
        "enter": nn.Conv2d(3, 16, 3, padding=1),
        "depth": nn.Conv2d(16, 16, 3, padding=1, groups=16),
        "norm": nn.Sequential(nn.GroupNorm(2, 16), nn.Conv2d(16, 16, 3)),
        "gate": nn.Linear(16, 16),
        "head": nn.Linear(16, 5),
    }
    return Wired(gated, **parts)


def images(last: type[nn.Module] = nn.Conv2d) -> nn.Module:
    """Strides that are symmetric at even sizes, down and up."""
    inner = nn.Conv2d(3, 16, 4, 2, 1), nn.PReLU(16), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.PReLU(8)
    return nn.Sequential(*inner, last(8, 2, 3, padding=1))


MAKES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "logits": (network, "enter"),
    "images": (images, "0"),
    "tokens": (Tokens, "patches"),
}
MAKES["images of a transposed one"] = (lambda: images(nn.ConvTranspose2d), "2")


@pytest.mark.parametrize(("make", "first"), MAKES.values(), ids=MAKES.keys())
@torch.no_grad()
def test_from_the_model_to_the_exact_one(make: Callable[[], nn.Module], first: str) -> None:
    model = settled(make()).double()
    soft, report = soften(model, D4, X)
    assert report.complete, str(report)
    assert torch.equal(soft(X), model(X))
    exact, _ = to_equivariant(model, D4, X, from_weights=True)
    torch.testing.assert_close(to_plain(to_equivariant(soft, D4, X, from_weights=True)[0])(X), exact(X))
    act_out = D4.act if soft(X).ndim == 4 else lambda g, y: y
    errors = []
    free = model.get_submodule(first).weight
    tied = set_softness(soft, 0.0).get_submodule(first).weight.clone()
    torch.testing.assert_close(soft(X), exact(X))
    for softness in (1.0, 0.5, 0.1, 0.0):
        set_softness(soft, softness)
        torch.testing.assert_close(soft.get_submodule(first).weight, tied + softness * (free - tied))
        errors.append(max(float((soft(D4.act(g, X)) - act_out(g, soft(X))).abs().max()) for g in range(8)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-12
    torch.testing.assert_close(to_plain(soft)(X), exact(X))


@torch.no_grad()
def test_bounds_of_layers() -> None:
    """They hold, and random inputs come within a factor of 20: of random weights most directions are alike."""
    soft, _ = soften(network().double(), C4, X)
    set_softness(soft, 0.3)
    bounds = softness_bounds(soft)
    assert len(bounds) == 12
    layers = {"depth": 16, "norm.1": 16, "gate": 16}
    for path, channels in layers.items():
        layer, worst = soft.get_submodule(path), 0.0
        layer.bias.zero_()
        for seed in range(20):
            shape = (1, channels // 4, 4) if path == "gate" else (1, channels // 4, 4, 6, 6)
            f = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            y = layer(f.flatten(1, 2)).unflatten(1, (-1, 4))
            for g in range(4):
                moved = layer(C4.act_regular(g, f).flatten(1, 2)).unflatten(1, (-1, 4))
                worst = max(worst, float((moved - C4.act_regular(g, y)).norm() / f.norm()))
        assert bounds[f"{path}.weight"] / 20 < worst <= bounds[f"{path}.weight"]
    assert set(softness_bounds(set_softness(soft, 0.0)).values()) == {0.0}


def test_annealing_trains_the_free_weights() -> None:
    model, x = network(), X.float()
    soft, _ = soften(model, C4, x)
    optimizer, losses = torch.optim.Adam(soft.parameters(), 1e-2), []
    for step in range(8):
        set_softness(soft, 1 - step / 7)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(soft(x), torch.tensor([1, 2]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    made, report = to_equivariant(soft, C4, x, from_weights=True)
    assert report.complete
    assert all(entry.distance < 1e-6 for entry in report.of("replaced") if entry.distance is not None)
    torch.testing.assert_close(made(x), soft(x))
    again = copy.deepcopy(soft)
    again.load_state_dict(soft.state_dict())
    torch.testing.assert_close(again(x), soft(x))
    assert not any(isinstance(part, Soft) for part in to_plain(soft).modules())


def test_refusals() -> None:
    soft, _ = soften(images(), C4, X.float())
    for value in (-0.1, 1.5):
        assert_refused(lambda v=value: set_softness(soft, v), ValueError, "set_softness", "[0, 1]")
    assert_refused(lambda: set_softness(images(), 0.5), ValueError, "set_softness", "soft weights", "soften")
    with pytest.raises(ValueError, match="interpol"):
        soften(images(), CyclicRotation(8, interpolation="bilinear"), X)
