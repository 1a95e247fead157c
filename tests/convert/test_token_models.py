"""Models on tokens: converted whole, exact, and they learn; what cannot be tied is refused, and never certified."""

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equilayers.convert import to_equivariant, to_plain
from equilayers.groups import CyclicRotation, Dihedral, Group
from peers import required
from token_models import CLASSES, Patches, models

C4, D4 = CyclicRotation(4), Dihedral(4)
BY_HAND = ("by hand", "by hand, odd", "dense, by hand", "torch")
OF_OTHERS = (
    *("ViT", "ViT, odd", "DeiT", "DINOv2", "DINOv2, registers", "BEiT", "ConvNeXt", "ConvNeXtV2", "Swin"),
    *("SegFormer", "MONAI ViT"),
)

UNDER_C4 = ("ViT, odd", "BEiT", "ConvNeXtV2", "SegFormer")  # one of each kind


def images(size: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def error(model: nn.Module, x: Tensor, group: Group) -> float:
    """The largest difference after a move, by how far the outputs of the samples lie apart."""
    with torch.no_grad():
        y, spread = model(x), 0.0
        spread = float((y - y.mean(0)).abs().max())
        act = group.act if y.ndim == 4 else lambda _, t: t
        return max(float((model(group.act(g, x)) - act(g, y)).abs().max()) for g in range(group.order)) / spread


def learn(model: nn.Module, x: Tensor, steps: int = 10) -> list[float]:
    """The losses of some Adam steps on random labels, dropout left out."""
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    labels = torch.randint(CLASSES, model(x).argmax(1).shape, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("which", "group"),
    [*((which, D4) for which in (*BY_HAND, *OF_OTHERS)), *((which, C4) for which in (*BY_HAND, *UNDER_C4))],
    ids=str,
)
def test_families_are_converted_whole_exact_and_learn(which: str, group: Group) -> None:
    make, sizes = required(models, "transformers or monai", "models")[which]
    torch.manual_seed(0)
    model = required(make, "what it is made of", "einops")  # which MONAI's attention imports
    made, report = to_equivariant(model.eval(), group, images(sizes[0], 2))
    assert report.complete, str(report)
    assert report.parameters_after < 1.3 * report.parameters_before / group.order + 200
    losses = learn(made, images(sizes[0]))
    assert losses[-1] < losses[0]
    for size in sizes:
        assert error(made, images(size), group) < 1e-4
    # At other sizes DINOv2 resizes its embedding of places in float32, whatever it is given.
    assert error(made.double(), images(sizes[0]).double(), group) < 1e-10


class Hand(Patches):
    """Attention by hand with something between the embedding and the head."""

    def __init__(self, between: Callable[["Hand", Tensor], Tensor] = lambda _, x: x, **settings: int) -> None:
        super().__init__(**settings)
        self.between = between
        self.own = nn.Parameter(torch.zeros(settings.get("width", 32)))  # zeros show nothing of how they are tied

    def attend(self, x: Tensor) -> Tensor:
        return super().attend(self.between(self, x))


def sheared(model: Hand, x: Tensor) -> Tensor:
    """A mask that sees what comes before."""
    return x * torch.linspace(0, 1, x.shape[1])[:, None]


def headless() -> nn.Module:
    model = Patches()
    model.head = nn.Identity()  # type: ignore[assignment]
    return model


# What stands in the model, how it is made, and what is said of it.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "head width": (lambda: Hand(width=32, heads=16), "a head width of 2 holds no whole fibers of |G| = 4; 4 does"),
    "width": (
        lambda: nn.Sequential(nn.Conv2d(3, 30, 4, 4), Tokens(30)),
        "its 30 features are no whole fields of |G| = 4: 28 or 32 are",
    ),
    "unknown function": (
        lambda: Hand(lambda m, x: x + m.own.cumsum(0)),
        "own: cumsum depends on the order along an axis",
    ),
    "unknown to torch": (lambda: Hand(lambda m, x: x + Doubled.apply(m.own)), ""),
    "lopsided mask": (lambda: Hand(sheared), "mul: numbers (17, 1) that are no parameters"),
    "features moved differently": (
        lambda: Hand(lambda _, x: x + x.flip(1)[:, :, :1].flip(0)),
        "a slice takes (2, 17, 1) of (2, 17, 32)",
    ),
    "no head": (headless, "(3, 32) with fibers: wrap it"),
    "windows": (lambda: shifted(4, 1), "windows of even width"),
}


class Doubled(torch.autograd.Function):
    """What torch does not show."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        """Twice the parameter, the first entry more."""
        return x * 2 + torch.eye(len(x))[0].to(x)


class Tokens(nn.Module):
    """A linear layer at every place of a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.movedim(1, -1)).mean((1, 2))
        return y


class Windowed(Patches):
    """Attention within windows of a map, shifted by some places."""

    def __init__(self, window: int, shift: int) -> None:
        super().__init__(patch=2, tokens=64)
        self.window, self.shift = window, shift

    def attend(self, x: Tensor) -> Tensor:
        w, side = self.window, 8
        cells = x[:, 1:].unflatten(1, (side, side)).roll((-self.shift, -self.shift), (1, 2))
        cells = cells.unflatten(1, (side // w, w)).unflatten(3, (side // w, w)).transpose(2, 3)
        y = super().attend(cells.flatten(3, 4).flatten(0, 2)).view(cells.shape).transpose(2, 3)
        y = y.flatten(3, 4).flatten(1, 2).roll((self.shift, self.shift), (1, 2)).flatten(1, 2)
        return torch.cat((y.mean(1, keepdim=True), y), dim=1)


def shifted(window: int, shift: int) -> nn.Module:
    return Windowed(window, shift)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_tied_is_refused_with_the_reason(what: str) -> None:
    make, reason = REFUSED[what]
    torch.manual_seed(0)
    _, report = to_equivariant(make(), C4, images(16))
    assert not report.complete
    assert any(reason in entry.reason for entry in report.of("refused")), str(report)


def test_what_the_model_frees_is_forgotten() -> None:
    """Names of entries are six times as large as these: a deep model would not fit."""
    alive = []

    def between(_: Hand, x: Tensor) -> Tensor:
        y = x * 2
        first = weakref.ref(y)
        y = y + 1
        alive.append(first())
        return y

    assert to_equivariant(Hand(between), C4, images(16))[1].complete
    assert alive
    assert not any(each is not None for each in alive)


def test_windows_shifted_by_half_are_converted() -> None:
    made, report = to_equivariant(shifted(4, 2), D4, images(16))
    assert report.complete, str(report)
    assert error(made.double(), images(16).double(), D4) < 1e-10


def test_parameters_are_tied_over_orbits_and_stay_so() -> None:
    torch.manual_seed(0)
    model = Patches()
    made, report = to_equivariant(model, D4, images(16), from_weights=True)
    kept = {entry.path: entry.reason for entry in report.of("kept")}
    assert "token 32 -> 4 numbers, places 544 -> 68 numbers" in kept[""]
    places = made.places[0, 1:].unflatten(0, (4, 4)).unflatten(2, (-1, 8)).permute(2, 3, 0, 1)[None]
    for g in range(D4.order):
        torch.testing.assert_close(D4.act_regular(g, places), places, rtol=0, atol=0)
    plain = to_plain(made)
    assert not any(type(module).__module__.startswith("equilayers") for module in plain.modules())
    torch.testing.assert_close(plain(images(16)), made(images(16)))
    again = to_equivariant(model, D4, images(16))[0]
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(copy.deepcopy(again)(images(16)), made(images(16)))


def test_tables_and_layers_are_made_on_the_model_s_device() -> None:
    model, x = Patches(), images(16)
    with torch.device("meta"):  # no numbers come from it
        made, report = to_equivariant(model, D4, x)
    assert report.complete
    assert {each.device.type for each in made.parameters()} == {"cpu"}
