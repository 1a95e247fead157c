"""Each layer's error against a slow reference, and the layer that loses the symmetry."""

import pytest
import torch
from torch import Tensor, nn

from equilayers.groups import CyclicTranslation, Group
from equilayers.nn import GroupConv2d, LiftingConv2d, OrbitPool
from equilayers.testing import LayerError, layer_errors
from planted import SIZE, Does, Net, image
from strategies import C4, D4, name


@torch.no_grad()
def error_by_loops(net: nn.Sequential, depth: int, group: Group, x: Tensor) -> float:
    """Of the output of the first layers, as an image or as what stays, relative to the largest entry."""
    first, x = net[:depth].double(), x.double()
    y = first(x)
    as_image, as_invariant, scale = 0.0, 0.0, float(y.abs().max())
    for g in range(1, group.order):
        moved = first(group.act(g, x))
        as_image = max(as_image, float((moved - group.act(g, y)).abs().max()))
        as_invariant = max(as_invariant, float((moved - y).abs().max()))
        scale = max(scale, float(moved.abs().max()))
    return min(as_image, as_invariant) / scale


@pytest.mark.parametrize("group", [C4, D4, CyclicTranslation(4)], ids=name)
def test_errors_are_those_of_a_loop(group: Group) -> None:
    """Images from one end to the other: one pixel keeps the symmetry, nine do not. Five channels are no vectors."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 5, 3, padding=1), nn.Sigmoid(), nn.Conv2d(5, 5, 1))
    x = image()
    rows = layer_errors(net, x, group)
    assert [(row.path, row.name) for row in rows] == [(f"{i}", type(layer).__name__) for i, layer in enumerate(net)]
    assert [row.parameters for row in rows] == [6, 140, 0, 30]
    assert [row.lost for row in rows] == [False, True, False, False]
    assert [row.action for row in rows] == ["image", "", "", ""]
    assert (rows[1].input_shape, rows[1].output_shape) == ((3, 3, SIZE, SIZE), (3, 5, SIZE, SIZE))
    for depth, row in enumerate(rows, start=1):
        assert row.error == pytest.approx(error_by_loops(net, depth, group, x), rel=1e-9, abs=1e-15)


def test_an_exact_network_keeps_it_in_every_layer() -> None:
    rows = layer_errors(Net(C4), image(), C4)
    assert [row.path for row in rows] == ["lift", "fault", "conv", "pool", "mean", "head"]
    assert [row.action for row in rows] == ["regular", "regular", "regular", "image", "invariant", "invariant"]
    assert all(row.error == 0 for row in rows[:-1])  # the head is a product, exact to rounding
    assert not any(row.lost for row in rows)


def test_what_is_found_again_is_not_lost() -> None:
    there, back = Does(lambda f: f.flip(-1).sigmoid()), Does(lambda f: f.flip(-1))
    rows = layer_errors(Net(C4, nn.Sequential(there, back)), image(), C4)
    errors = {row.path: (row.error > 1e-3, row.lost) for row in rows}
    assert errors["fault.0"] == (True, False)
    assert errors["fault.1"] == (False, False)


def test_both_branches_that_lose_it_are_named() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    assert [row.path for row in layer_errors(Branches(), image(), C4) if row.lost] == ["left", "right"]


def test_functions_between_layers_have_a_row_where_they_lose_it() -> None:
    class Flips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.pool = LiftingConv2d(C4, 1, 2, 3), OrbitPool()

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.pool(self.lift(torch.sigmoid(x)))).flip(-1)

    rows = layer_errors(Flips(), image(), C4)
    assert [(row.path, row.name, row.lost) for row in rows] == [
        ("lift", "LiftingConv2d", False),
        ("pool", "OrbitPool", False),
        ("", "Tensor.flip", True),
    ]
    (row,) = layer_errors(lambda x: x.flip(-1), image(), C4)
    assert isinstance(row, LayerError)
    assert (row.path, row.name, row.parameters, row.lost) == ("", "Tensor.flip", 0, True)


def test_a_layer_that_is_called_twice_has_two_rows() -> None:
    conv = GroupConv2d(C4, 2, 2, 3, padding=1)
    net = nn.Sequential(LiftingConv2d(C4, 1, 2, 3), conv, nn.ReLU(), conv)
    assert [row.path for row in layer_errors(net, image(), C4)] == ["0", "1", "2", "1"]
