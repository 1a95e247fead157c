r"""How the weights of a network begin: torch's draw, Glorot's, He's, or a first layer that is tied at the start."""

import torch
from torch import Tensor, nn

from equilayers.groups import Group
from equilayers.nn import LiftingLinear

INITS = ("torch", "glorot", "he", "symmetric")


def start(model: nn.Module, init: str, group: Group) -> None:
    r"""Draw the weights of a network anew, as `init` says; "torch" leaves them as torch drew them.

    "symmetric" ties the first two layers of a perceptron at the start, where they are not tied for good.

    Source: Glorot and Bengio 2010; He et al. 2015 (arXiv:1502.01852), uniform both, biases 0.
    """
    if init == "symmetric":
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        if not any(isinstance(layer, LiftingLinear) for layer in model.modules()):
            tie_at_the_start(layers[0], layers[1], group)
    elif init != "torch":
        for module in model.modules():
            if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim > 1:
                _draw(module, weight, init)


def _draw(module: nn.Module, weight: Tensor, init: str) -> None:
    weight = weight.detach()
    weight = weight.flatten(1) if isinstance(module, LiftingLinear) else weight  # its inputs are no filter's pixels
    if init == "glorot":
        nn.init.xavier_uniform_(weight)
    else:
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")
    if isinstance(bias := getattr(module, "bias", None), Tensor):
        nn.init.zeros_(bias)


def tie_at_the_start(first: nn.Linear, second: nn.Linear, group: Group) -> None:
    r"""Let the rows of the first layer (O, H·W) be orbits, and the columns of the second equal over each orbit.

    The network is invariant then, and nothing keeps it so. The O mod |G| rows that make no whole orbit are averaged
    over the group.
    """
    with torch.no_grad():
        first.weight.copy_(tied(first.weight, group))
        orbits = len(first.weight) // group.order
        together = orbits * group.order
        first.bias[:together] = first.bias[:orbits].repeat_interleave(group.order)
        second.weight[:, :together] = second.weight[:, :orbits].repeat_interleave(group.order, 1)


def tied(weight: Tensor, group: Group) -> Tensor:
    r"""Rows (O, H·W) whose orbits begin with the first O // |G| of them: row `o·|G| + g` is `act(g, row o)`."""
    orbits = len(weight) // group.order
    rows = _orbit(weight[:orbits], group).transpose(0, 1).flatten(0, 1)
    return torch.cat((rows, _orbit(weight[len(rows) :], group).mean(0)))


def departure(weight: Tensor, group: Group) -> float:
    r"""How far rows that began as `tied` are from orbits: the distance to the nearest, relative to their length."""
    n, weight = group.order, weight.double()
    orbits = len(weight) // n
    rows, rest = weight[: orbits * n].unflatten(0, (orbits, n)), weight[orbits * n :]
    upright = torch.stack([_act(group.inverse(g), rows[:, g], group) for g in range(n)])
    apart = (upright - upright.mean(0)).square().sum() + (rest - _orbit(rest, group).mean(0)).square().sum()
    return float((apart / weight.square().sum()).sqrt())


def _orbit(rows: Tensor, group: Group) -> Tensor:
    r"""The orbit (|G|, N, H·W) of flat square images (N, H·W)."""
    return torch.stack([_act(g, rows, group) for g in range(group.order)])


def _act(g: int, rows: Tensor, group: Group) -> Tensor:
    side = round(rows.shape[-1] ** 0.5)
    return group.act(g, rows.unflatten(-1, (side, side))).flatten(-2)
