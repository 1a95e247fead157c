"""The Reynolds operator on images and on several outputs: each is turned back, or refused, never averaged as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conversions import FORMS, leaves
from equilayers.convert import symmetrize, to_plain
from equilayers.functional import reynolds
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group
from equilayers.groups.vectors import AXES
from refusals import assert_refused
from strategies import S3, name

C4, D4, T3 = CyclicRotation(4), Dihedral(4), CyclicTranslation(3)
GROUPS = (C4, D4, T3, DirectProduct(CyclicRotation(2), CyclicTranslation(2)))
X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def segmentor() -> nn.Module:
    """An ordinary network from images to images."""
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))


@pytest.mark.parametrize("group", GROUPS, ids=name)
@pytest.mark.parametrize("reduction", ["mean", "probabilities", "max"])
def test_images_are_turned_back(group: Group, reduction: str) -> None:
    model = segmentor()
    averaged = symmetrize(model, group, reduction, output="image")
    y = averaged(X)
    for g in range(group.order):
        moved, expected = averaged(group.act(g, X)), group.act(g, y)
        assert torch.equal(moved, expected) or reduction == "probabilities"
        torch.testing.assert_close(moved, expected)
    back = torch.stack([group.act(group.inverse(g), model(group.act(g, X))) for g in range(group.order)])
    slow = {"mean": back.mean(0), "max": back.amax(0), "probabilities": back.softmax(2).mean(0).log()}[reduction]
    torch.testing.assert_close(y, slow)
    torch.testing.assert_close(to_plain(averaged)(X), y)
    samples = torch.stack([group.act(i % group.order, x) for i, x in enumerate(X)])  # each moved by another element
    torch.testing.assert_close(averaged(samples), torch.stack([group.act(i % group.order, v) for i, v in enumerate(y)]))
    assert not torch.allclose(symmetrize(model, group, reduction, output="invariant")(X), y)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("group", [*GROUPS, Dihedral(2)], ids=name)
def test_vectors_are_turned_back(group: Group, axes: str) -> None:
    """A field (B, 2, H, W) and a vector (B, 2) of an ordinary network, and logits (B, 3) that stay."""
    body, head = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Linear(2, 3)

    class Flow(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            flow = body(x)
            return flow, (flow * flow.new_tensor([1.0, 2.0])[:, None, None]).amax((2, 3)), head(flow.amax((2, 3)))

    size = (8, 8) if group in GROUPS[:2] else (8, 5) if group == Dihedral(2) else (6, 6)
    x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1))
    output = "vector" if axes == "right-up" else f"vector:{axes}"
    averaged = symmetrize(Flow(), group, output=output)
    flow, vector, logits = averaged(x)
    for g in range(group.order):
        moved = averaged(group.act(g, x))
        assert torch.equal(moved[0], group.act_vectors(g, flow[:, None], axes=axes)[:, 0])
        assert torch.equal(moved[1], group.act_vectors(g, vector[:, None], axes=axes)[:, 0])
        assert torch.equal(moved[2], logits)
    assert float(flow.detach().abs().max()) > 0.05
    for reduction in ("max", "probabilities"):
        call = lambda: symmetrize(Flow(), group, reduction, output)  # noqa: B023, E731
        assert_refused(call, ValueError, "symmetrize", "reduction='mean'")
    assert_refused(lambda: to_plain(averaged), TypeError, "to_plain", output)


@pytest.mark.parametrize("form", FORMS)
def test_several_outputs(form: str) -> None:
    body, head = segmentor(), nn.Linear(3, 5)

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Any:
            f = body(x)
            return FORMS[form](head(f.amax((-2, -1))), f)

    averaged = symmetrize(Both(), C4, output="image")
    out, moved = averaged(X), averaged(C4.act(1, X))
    assert type(out) is type(Both()(X))
    torch.testing.assert_close(leaves(moved)[0], leaves(out)[0])
    torch.testing.assert_close(leaves(moved)[1], C4.act(1, leaves(out)[1]))
    torch.testing.assert_close(leaves(out)[1], symmetrize(body, C4, output="image")(X))
    with pytest.raises(ValueError, match="output='image' or 'invariant'"):
        symmetrize(Both(), C4)(X)


@pytest.mark.parametrize(
    ("f", "group", "x"),
    [
        (lambda t: t, C4, X),
        (lambda t: t.sum(1), C4, X),
        (lambda t: {"mask": t.mean(1, keepdim=True), "logits": t.sum((-2, -1))}, D4, X),
        (lambda t: t.tanh(), S3, torch.randn(2, 3)),
    ],
)
def test_what_may_move_is_refused(f: Callable[[Tensor], Any], group: Group, x: Tensor) -> None:
    words = ("output='image' or 'invariant'", "turned back before the mean")
    assert_refused(lambda: reynolds(f, group, x), ValueError, "reynolds", *words)
    reynolds(f, group, x, output="invariant")
    reynolds(f, group, x, output="image")


def test_settings() -> None:
    assert_refused(lambda: symmetrize(segmentor(), C4, output="map"), ValueError, "symmetrize", "'image'", "'map'")
    assert "output='image'" in repr(symmetrize(segmentor(), C4, output="image"))
    assert reynolds(lambda t: (t.sum(1), None), C4, X, output="image")[1] is None
    oblong = lambda t: t[..., 1:]  # noqa: E731
    assert_refused(lambda: reynolds(oblong, C4, X, output="image"), ValueError, "reynolds", "H == W")
