"""Fields of vectors against the first irrep of escnn, in and out of regular features, with the same filters."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equilayers.groups import Group
from equilayers.interop._escnn_fields import fields_of
from equilayers.interop.escnn import to_regular
from equilayers.nn import VectorHead, VectorLiftingConv2d, VectorLiftingLinear
from strategies import C4, D4, name

# What escnn's components are in ours: the same under rotations; with reflections, of axis pi/2, it counts from the top.
OURS_OF_THEIRS = {C4: ((1.0, 0.0), (0.0, 1.0)), D4: ((0.0, -1.0), (1.0, 0.0))}
each = pytest.mark.parametrize("group", OURS_OF_THEIRS, ids=name)


def types_of(escnn: types.ModuleType, group: Group) -> tuple[Any, Any, list[Any]]:
    """Two fields of vectors, three regular ones, and escnn's elements in the order of ours."""
    space = escnn.gspaces.flipRot2dOnR2(4) if group == D4 else escnn.gspaces.rot2dOnR2(group.order)
    vector = space.irrep(1, 1) if group == D4 else space.irrep(1)
    vectors, regular = space.type(*[vector] * 2), space.type(*[space.regular_repr] * 3)
    places, elements = fields_of("test", "type", regular).places, list(space.fibergroup.elements)
    unit = torch.eye(group.order, dtype=torch.float64)[elements.index(space.fibergroup.identity)]
    landed = [int(torch.from_numpy(space.regular_repr(e)).to(unit).mv(unit).argmax()) for e in elements]
    return vectors, regular, [elements[landed.index(place)] for place in places]


def from_theirs(group: Group, t: Tensor, dim: int) -> Tensor:
    """Components along an axis as ours."""
    basis = torch.tensor(OURS_OF_THEIRS[group], dtype=t.dtype)
    return torch.einsum("ij,...j->...i", basis, t.movedim(dim, -1)).movedim(-1, dim)


@each
def test_fields_move_alike(escnn: types.ModuleType, group: Group) -> None:
    vectors, _, elements = types_of(escnn, group)
    x = vectors(torch.randn(2, 4, 7, 7))
    for g, element in enumerate(elements):
        theirs = x.transform(element).tensor.unflatten(1, (2, 2))
        moved = group.act_vectors(g, from_theirs(group, x.tensor.unflatten(1, (2, 2)), 2))
        torch.testing.assert_close(moved, from_theirs(group, theirs, 2), rtol=0, atol=1e-5)


@each
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_lifting_and_head_compute_what_escnn_does(escnn: types.ModuleType, group: Group, kernel: int) -> None:
    vectors, regular, _ = types_of(escnn, group)
    places = fields_of("test", "type", regular).places
    lifting = escnn.nn.R2Conv(vectors, regular, kernel, padding=kernel // 2, bias=False).eval()
    blocks = lifting.filter.detach().unflatten(0, (3, -1)).unflatten(2, (-1, 2))  # (O, |G|, C, 2, k, k)
    ours: nn.Module = VectorLiftingConv2d(group, 2, 3, kernel, padding=kernel // 2, bias=False)
    weight = from_theirs(group, blocks[:, places[0]], 2)
    if kernel == 1:
        ours, weight = VectorLiftingLinear(group, 2, 3, bias=False), weight[..., 0, 0]
    ours.weight = nn.Parameter(weight)
    x = vectors(torch.randn(2, 4, 7, 7))
    v = from_theirs(group, x.tensor.unflatten(1, (2, 2)), 2)
    expected = to_regular(lifting(x))
    assert float(expected.detach().abs().max()) > 0.01
    torch.testing.assert_close(ours(v), expected, rtol=0, atol=1e-5)
    if kernel == 1:
        reading = escnn.nn.R2Conv(regular, vectors, 1, bias=False).eval()
        blocks = reading.filter.detach()[..., 0, 0].unflatten(0, (2, 2)).unflatten(2, (3, -1))  # (O, 2, C, |G|)
        head = VectorHead(group, 3, 2)
        first = from_theirs(group, blocks[..., places[0]], 1).transpose(1, 2)
        head.weight = nn.Parameter(group.order * first)
        f = regular(torch.randn(2, 3 * group.order, 7, 7))
        theirs = from_theirs(group, reading(f).tensor.unflatten(1, (2, 2)), 2)
        torch.testing.assert_close(head(to_regular(f)), theirs, rtol=0, atol=1e-5)
