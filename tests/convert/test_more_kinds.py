"""Kinds of networks that are converted whole: gates by linear layers, pools that round up, rows and columns, several
outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conversions import FORMS, Wired, leaves, settled, tied_on_purpose
from equilayers.convert import to_antialiased, to_equivariant, to_plain
from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.nn import GroupConv2d, GroupLinear, LiftingConv2d
from equilayers.testing import assert_equivariant, assert_invariant
from strategies import name

C4, D4 = CyclicRotation(4), Dihedral(4)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Excited(nn.Module):
    """Squeeze and excitation by linear layers, of means and of maxima."""

    def __init__(self, width: int, *, maxima: bool = False, norm: bool = False) -> None:
        super().__init__()
        inner = [nn.BatchNorm1d(8)] if norm else []
        self.layers = nn.Sequential(nn.Linear(width, 8), *inner, nn.ReLU(), nn.Linear(8, width))
        self.maxima = maxima

    def forward(self, f: Tensor) -> Tensor:
        batch, channels, *_ = f.shape
        gate = self.layers(F.adaptive_avg_pool2d(f, 1).view(batch, channels))
        if self.maxima:
            gate = gate + self.layers(f.amax((-2, -1)))
        return f * gate.sigmoid().view(batch, channels, 1, 1)


class Film(nn.Module):
    """A scale and a shift for every channel, and one number for all."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.one = nn.Linear(8, 16), nn.Linear(8, 1)

    def forward(self, f: Tensor) -> Tensor:
        pooled = f.mean((-2, -1))
        scale, shift = self.both(pooled)[..., None, None].chunk(2, 1)
        return (f * scale + shift) * self.one(torch.cat([pooled], 1))[..., None, None].sigmoid()


def slopes() -> nn.Module:
    layer = nn.PReLU(8)
    nn.init.uniform_(layer.weight)
    return layer


def rows_and_columns(*, stride: int = 1, **more: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 8, (1, 3), stride, (0, 1), **more), nn.ReLU(), nn.Conv2d(8, 8, (3, 1), 1, "same", **more)
    )


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "squeeze and excitation": lambda: Excited(8),
    "of means and maxima": lambda: Excited(8, maxima=True),
    "with a norm inside": lambda: Excited(8, norm=True),
    "scales and shifts": Film,
    "slopes": slopes,
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(8),
    "rows and columns": rows_and_columns,
    "strided rows": lambda: rows_and_columns(stride=2, groups=8),
    "dilated rows": lambda: nn.Conv2d(8, 8, (5, 1), padding=(4, 0), dilation=(2, 3)),
    "maxima, rounded up": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    "means, rounded up": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "field-wise dropout": lambda: nn.Dropout2d(0.5),
}


def network(what: str) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), LAYERS[what](), nn.Conv2d(8, 8, 3, padding=1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)),
    )


@pytest.mark.parametrize(
    ("group", "settings"),
    [(C4, {}), (D4, {"width": "equal-parameters"}), (D4, {"from_weights": True})],
    ids=["C4", "D4, wider", "D4, from weights"],
)
@pytest.mark.parametrize("what", LAYERS)
def test_converted_whole(what: str, group: Group, settings: dict[str, Any]) -> None:
    if settings.get("from_weights") and what in ("strided rows", "scales and shifts"):
        pytest.skip("there are no weights for it")
    made, report = to_equivariant(network(what), group, X, **settings)
    assert report.complete, str(report)
    settled(made, 16)
    for size in (15, 16):
        assert_invariant(made, torch.randn(2, 3, size, size), group)
    if what != "SyncBatchNorm":
        plain = to_plain(made)
        assert not any(type(module).__module__.startswith("equilayers") for module in plain.modules())
        torch.testing.assert_close(plain(X), made(X))


@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_gates_from_weights_are_the_projected_ones(group: Group) -> None:
    """A network that is invariant keeps its outputs: its gates are told apart from the head that reads them."""
    n = group.order
    body = tied_on_purpose(group)[:3]
    gate = nn.Linear(3 * n, 3 * n)
    free = GroupLinear(group, 3, 3)
    with torch.no_grad():
        gate.weight.copy_(to_plain(free)[1].weight)
        gate.bias.copy_(to_plain(free)[1].bias)
    run = lambda m, x: m.head((f := m.body(x)).mean((-2, -1)) * m.gate(f.mean((-2, -1))))  # noqa: E731
    head = nn.Linear(3 * n, 4)
    with torch.no_grad():
        head.weight.copy_(torch.randn(4, 3).repeat_interleave(n, 1))
    model = Wired(run, body=body, gate=gate, head=head)
    assert_invariant(model, X, group)
    made, report = to_equivariant(model, group, X, from_weights=True)
    assert report.complete, str(report)
    assert isinstance(made.gate.layer, GroupLinear)
    torch.testing.assert_close(made.eval()(X), model.eval()(X))


def test_pools_that_round_up() -> None:
    """As many samples as torch takes, at every size; where that cannot be, a reason."""
    for kind, kernel, stride, pad in (
        *((nn.MaxPool2d, k, s, p) for k, s, p in ((2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 3, 0), (4, 3, 1), (2, 3, 0))),
        *((nn.AvgPool2d, k, s, p) for k, s, p in ((2, 2, 0), (3, 2, 1), (5, 3, 1), (2, 2, 1))),
    ):
        pool = kind(kernel, stride, pad, ceil_mode=True)
        made, report = to_antialiased(pool)
        assert report.complete == (stride <= kernel and 2 * pad <= kernel - stride + 1)
        for size in range(5, 18) if report.complete else ():
            x = torch.randn(1, 1, size, size + 1)
            assert made(x).shape == pool(x).shape
            assert bool(made(x).isfinite().all())
    mean = nn.AvgPool2d(2, 2, ceil_mode=True)
    constant = torch.ones(1, 1, 5, 5)
    torch.testing.assert_close(to_antialiased(mean)[0](constant), mean(constant))


def test_rows_become_squares_that_hold_them() -> None:
    made, report = to_equivariant(network("rows and columns"), C4, X)
    for path in ("1.0", "1.2"):
        assert {e.path: e.reason for e in report.entries}[path] == "a row turned is a column: its filter is 3x3"
    assert made[1][0].conv.weight.shape[-2:] == (3, 3)
    row = nn.Conv2d(3, 4, (1, 3), padding=(0, 1), bias=False)
    made, _ = to_equivariant(row, C4, X, from_weights=True)
    expected = torch.stack([C4.act(C4.inverse(g), row(C4.act(g, X))) for g in range(4)]).mean(0)
    torch.testing.assert_close(made(X), expected)
    for pad in ((0, 0), (1, 1)):
        assert not to_equivariant(nn.Conv2d(3, 4, (1, 3), padding=pad), C4, X)[1].complete


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pooled", [False, True])
def test_logits_and_features(form: str, pooled: bool) -> None:
    def run(m: Any, x: Tensor) -> Any:
        f = m.body(x)
        return FORMS[form](m.head(f.mean((-2, -1))), f.amax((-2, -1)) if pooled else f)

    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    made, report = to_equivariant(Wired(run, body=body, head=nn.Linear(8, 4)), C4, X)
    assert report.complete, str(report)
    assert type(made(X)) is type(FORMS[form](X, X))
    logits, features = leaves(made(X))
    assert (logits.shape, features.shape) == ((2, 4), (2, 8) if pooled else (2, 8, 16, 16))
    assert_invariant(lambda x: leaves(made(x))[0], X, C4)
    (assert_invariant if pooled else assert_equivariant)(lambda x: leaves(made(x))[1], X, C4)


def test_whole_fields_are_dropped() -> None:
    made, _ = to_equivariant(network("field-wise dropout"), C4, X)
    assert isinstance(made[0].conv, LiftingConv2d)
    assert isinstance(made[2].conv, GroupConv2d)
    kept = made[1].train()(torch.ones(50, 8, 2, 2)).unflatten(1, (2, 4)).flatten(2)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.amin(2), kept.amax(2))
    assert len(kept.amax(2).unique(dim=0)) == 4
    feature = torch.ones(50, 3, 4, 2, 2)  # (B, C, |G|, H, W), where torch's own layer drops (b, c)
    dropped = nn.Dropout3d(0.5)(feature).flatten(2)
    assert torch.equal(dropped.amin(2), dropped.amax(2))
