"""The gradient flow of a linear network follows its closed form, and its largest singular value never rises."""

import math

import pytest
import torch

from baselines.study.parts.gradient_flow import displacement, gradient_flow
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from strategies import name


@pytest.mark.parametrize("group", [CyclicRotation(4), Dihedral(1), CyclicTranslation(3)], ids=name)
def test_the_closed_form(group: Group) -> None:
    flow = gradient_flow(torch.randn(20, 1, 6, 6), group, outputs=4)
    assert flow.error.max() < 1e-5
    assert (flow.sigma.diff() < 0).all()
    assert (flow.loss.diff() < 0).all()
    assert flow.kept >= 1 / group.order - 1e-9  # the invariant directions, at the least


def test_by_hand() -> None:
    """T2 exchanges the two numbers of a sample: the gap is (a - b)(1, -1).

    After long the part along (1, -1) is gone, which here is 1/e^(t) of the start, and LI with it.
    """
    x = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    square = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(displacement(x, CyclicTranslation(2)), (4 + 16) / 2 * square)
    flow = gradient_flow(x, CyclicTranslation(2), outputs=1, times=(0, 1, 8))
    assert math.isclose(flow.loss[1] / flow.loss[0], math.exp(-2), rel_tol=1e-4)
    assert flow.loss[2] < 1e-6 * flow.loss[0]
    assert flow.kept == 0.5
