"""How weights begin: Glorot's and He's draws, and a first layer that is tied at the start and never after."""

import math

import pytest
import torch
from torch import nn

from baselines.study.models import mlp, weight_tied_cnn, weight_tied_mlp
from baselines.study.starts import departure, start, tied
from baselines.study.training import Recipe, train
from equilayers.groups import Group, group_from_name
from equilayers.metrics import logit_invariance_error
from studies import TOY_SHAPE as SHAPE
from studies import toy_data

groups = pytest.mark.parametrize("name", ["C4", "T3", "D4"])


def network(group: Group, init: str = "symmetric") -> nn.Sequential:
    torch.manual_seed(0)
    model = mlp(SHAPE, 3, (14, 16))  # 14 rows: three orbits of four, and two rows left over
    start(model, init, group)
    return model.double()


@groups
def test_a_network_tied_at_the_start_is_invariant_and_nothing_is_tied(name: str) -> None:
    group = group_from_name(name)
    model, other, x = network(group), network(group, "torch"), torch.randn(20, *SHAPE, dtype=torch.float64)
    assert logit_invariance_error(model, x, group) < 1e-15  # drawn in float32
    assert logit_invariance_error(other, x, group) > 1e-4
    assert [p.shape for p in model.parameters()] == [p.shape for p in other.parameters()]
    assert model[1].weight.std() > 0.5 * other[1].weight.std()
    rows = model[1].weight[: 14 // group.order * group.order].detach()
    assert len(rows.unique(dim=0)) == len(rows), "an orbit's rows are different ones"


@groups
def test_departure_is_the_distance_to_the_nearest_orbits(name: str) -> None:
    group, n = group_from_name(name), group_from_name(name).order
    weight = torch.randn(14, 36, dtype=torch.float64)
    begun = tied(weight, group)
    assert departure(begun, group) < 1e-15 < departure(weight, group)
    # A basis of what is tied, and the distance to the space it spans.
    columns = [tied(e.view(14, 36), group).flatten() for e in torch.eye(14 * 36, dtype=torch.float64)]
    basis = torch.linalg.svd(torch.stack(columns, 1), full_matrices=False)
    span = basis.U[:, basis.S > 1e-9]
    rest = weight.flatten() - span @ (span.T @ weight.flatten())
    assert departure(weight, group) == pytest.approx(float(rest.norm() / weight.norm()), rel=1e-9)
    assert torch.equal(begun[::n][: 14 // n], weight[: 14 // n])


def test_whole_orbits_keep_tied_what_random_elements_untie() -> None:
    group, data, errors = group_from_name("C4"), toy_data(), {}
    for elements in ("all", "random"):
        model = network(group).float()
        train(model, data, group, Recipe(4, 16, 0.01, nu=0.03, elements=elements, select="last"), 0)
        errors[elements] = float(logit_invariance_error(model, data.test.x, group))
        assert departure(model[1].weight.detach(), group) > 0
    assert errors["random"] > 1e3 * errors["all"]


@pytest.mark.parametrize("init", ["glorot", "he"])
def test_draws_have_the_spread_of_their_authors(init: str) -> None:
    torch.manual_seed(0)
    c4 = group_from_name("C4")
    for model in (mlp((1, 12, 12), 9), weight_tied_mlp(c4, (1, 12, 12), 9), weight_tied_cnn(c4, (1, 12, 12), 9)):
        start(model, init, c4)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any()
        first = next(p for p in model.parameters() if p.ndim > 1)
        inputs, outputs = first[0].numel(), len(first)
        outputs *= first[0, 0].numel() if isinstance(model[0], nn.Conv2d) or "Conv" in type(model[0]).__name__ else 1
        bound = math.sqrt(6 / (inputs + outputs)) if init == "glorot" else math.sqrt(6 / inputs)
        assert 0.97 * bound < first.abs().max() <= bound
