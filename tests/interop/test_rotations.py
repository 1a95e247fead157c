"""Circular harmonics against escnn's: the same filters, carried over the same outputs, and errors side by side."""

import os
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.rotations import SIZES, curves, group_subjects
from equilayers.functional._convolution.filters import expand
from equilayers.groups import CyclicRotation
from equilayers.nn import GroupConv2d, HarmonicConv2d, LiftingConv2d

C8 = CyclicRotation(8, interpolation="bilinear")
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def spanned(conv: Any) -> Tensor:
    """The filters of escnn's convolution for each unit weight, (numbers of a filter, weights)."""
    filters = []
    with torch.no_grad():
        for number in range(conv.weights.numel()):
            conv.weights.zero_()
            conv.weights[number] = 1
            filters.append(conv.expand_parameters()[0].flatten().double())
    return torch.stack(filters, 1)


def carried(conv: Any, filters: Tensor) -> float:
    """Give escnn's convolution the weights nearest to the filters; how far from them it stays, relatively."""
    columns = spanned(conv)
    weights = torch.linalg.lstsq(columns, filters.flatten()[:, None]).solution
    with torch.no_grad():
        conv.weights.copy_(weights[:, 0])
    return float((columns @ weights - filters.flatten()[:, None]).norm() / filters.norm())


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_harmonic_filters_are_escnns_of_so2(escnn: types.ModuleType, size: int, order: int) -> None:
    space = escnn.gspaces.rot2dOnR2(-1, maximum_frequency=2)
    image, stream = (escnn.nn.FieldType(space, [kind]) for kind in (space.trivial_repr, space.irrep(order)))
    conv = escnn.nn.R2Conv(image, stream, size, bias=False, frequencies_cutoff=lambda r: 3 * r)
    layer = HarmonicConv2d(1, 1, size, None, order)
    own = slice(2 * order, 2 * order + (2 if order else 1))
    with torch.no_grad():
        filters = layer.filters()[own].double()
        assert carried(conv, filters) < 1e-6
        x = torch.randn(2, 1, 9, 9)
        theirs = conv(escnn.nn.GeometricTensor(x, image)).tensor
        torch.testing.assert_close(layer(x)[:, 0, own], theirs, rtol=1e-4, atol=1e-5)
        assert order == 0 or carried(conv, filters.flip(0)) > 0.1  # as it would turn the other way around


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("kind", [LiftingConv2d, GroupConv2d], ids=lambda kind: kind.__name__)
def test_steered_filters_are_escnns_of_c8(escnn: types.ModuleType, kind: type[GroupConv2d], size: int) -> None:
    space = escnn.gspaces.rot2dOnR2(8)
    regular = escnn.nn.FieldType(space, [space.regular_repr])
    source = escnn.nn.FieldType(space, [space.trivial_repr]) if kind is LiftingConv2d else regular
    conv = escnn.nn.R2Conv(source, regular, size, bias=False, frequencies_cutoff=lambda r: 3 * r)
    layer = kind(C8, 1, 1, size, bias=False)
    with torch.no_grad():
        assert carried(conv, expand(layer.weight, C8).double()) < 1e-6
        x = torch.randn(2, *([1] if kind is LiftingConv2d else [8]), 9, 9)
        theirs = conv(escnn.nn.GeometricTensor(x, source)).tensor
        ours = layer(x if kind is LiftingConv2d else x[:, None])[:, 0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eighth_turns_err_less_than_escnns(escnn: types.ModuleType) -> None:
    """Random filters of either, the same smooth images; multiples of 90 degrees at rounding level."""
    kinds = ("C8 3x3", "C8 5x5", "C8 7x7", "C16 5x5") if THOROUGH else ("C8 5x5", "C16 5x5")
    sizes = {kind: SIZES[: 2 if THOROUGH and "C8" in kind else 1] for kind in kinds}
    found = {
        name: curves(subject, sizes[kind])
        for name, subject in group_subjects(draws=2 if THOROUGH else 1).items()
        for kind in kinds
        if kind in name
    }
    for kind, pixels_of_kind in sizes.items():
        for pixels in pixels_of_kind:
            ours, theirs = (found[f"{name} {kind}, three"][pixels] for name in ("GroupConv2d", "escnn"))
            assert float(ours.error[0]) < float(theirs.error[0])
            assert float(ours.error[1]) < 1e-13
