"""The law of a layer, element by element and to the last bit, and what linear layers are tried on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equilayers.groups import Group
from equilayers.nn import GroupLinear, LiftingLinear
from strategies import filled

Model = Callable[[Tensor], Tensor]
Layout = Callable[[Tensor], Tensor]


def misaligned(x: Tensor) -> Tensor:
    """A copy that starts one entry into its buffer: no vector instruction finds it aligned."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def strided(x: Tensor) -> Tensor:
    """A copy with its axes reversed in memory and gaps between its entries."""
    return x.new_empty(*x.shape[::-1], 2)[..., 1].permute(*reversed(range(x.ndim))).copy_(x)


LAYOUTS: dict[str, Layout] = {"plain": torch.clone, "misaligned": misaligned, "strided": strided}


def acting(group: Group, feature: bool) -> Callable[[int, Tensor], Tensor]:
    return group.act_regular if feature else group.act


def breaks(model: Model, group: Group, x: Tensor, out: str, layout: Layout = torch.clone) -> list[int]:
    """The elements g for which `model(act(g, x))` is not the moved `model(x)` to the last bit.

    Args:
        model: the map under test.
        group: the symmetry.
        x: input; "lift" and "invariant" take x as an image, "regular" and "pool" as a regular feature.
        out: what becomes of the input: "lift" and "regular" give features, "invariant" and "pool" nothing to move,
            except for the space of a pooled 5-D feature.
        layout: how the moved input lies in memory; x itself is taken as it lies.
    """
    y = model(x)
    move_in = acting(group, out in ("regular", "pool"))
    still = out == "invariant" or (out == "pool" and y.ndim < 3)
    move_out = (lambda g, y: y) if still else acting(group, out in ("lift", "regular"))
    return [g for g in range(group.order) if not torch.equal(model(layout(move_in(g, x))), move_out(g, y))]


def layers(group: Group, space: tuple[int, ...], dtype: torch.dtype, algorithm: str) -> list[tuple[nn.Module, str]]:
    lifting = LiftingLinear(group, space, 9, algorithm=algorithm, dtype=dtype)
    return [(lifting, "lift"), (GroupLinear(group, 5, 9, algorithm=algorithm, dtype=dtype), "regular")]


def input_of(layer: nn.Module, batch: int, seed: int = 0) -> Tensor:
    shape = layer.in_shape if isinstance(layer, LiftingLinear) else (layer.in_features, layer.group.order)
    return filled((batch, *shape), layer.weight.dtype, seed)
