r"""Modules of torch's own operations: a function is traced once, and what is left needs nothing of this library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from equilayers._checks import Pair
from equilayers.groups import DirectProduct, Group, PermutationGroup


class _Tracer(fx.Tracer):
    r"""Does not look into the parts."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


class _Computed(nn.Module):
    def __init__(self, compute: Callable[..., Tensor], parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.compute, self.names = compute, list(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, *(getattr(self, name) for name in self.names))


def graph(name: str, compute: Callable[..., Tensor], **parts: nn.Module) -> fx.GraphModule:
    r"""A module called `name` from x to `compute(x, *parts)`.

    Sizes are symbols while it is traced: they know arithmetic and torch.sym_min, but no `if`.
    """
    root = _Computed(compute, parts)
    traced = _Tracer().trace(root)
    traced._tracer_cls = None  # or pickle would look for ours
    for node in traced.nodes:
        node.type = None  # annotations are strings here, and pickle would look for what they name
    return fx.GraphModule(root, traced, class_name=name)


def magnitude_relu(bias: Tensor) -> fx.GraphModule:
    r"""Of `equilayers.nn.HarmonicNonlinearity`; a magnitude of zero stays zero."""
    tiny, kept = torch.finfo(bias.dtype).tiny, bias.detach().clone()[:, :, None, None, None]

    def compute(z: Any) -> Any:
        streams = z.unflatten(2, (-1, 2))
        size = streams.norm(dim=3, keepdim=True).clamp(min=tiny)
        return (streams * ((size + kept).relu() / size)).flatten(2, 3)

    return graph("HarmonicNonlinearity", compute)


def averaged(layer: Any) -> fx.GraphModule:
    r"""Of `equilayers.convert.symmetrize` with a model of one tensor: one call of it on the orbit."""
    group, reduction, n = layer.group, layer.reduction, layer.group.order

    def compute(x: Tensor, model: nn.Module) -> Tensor:
        orbit = torch.cat([_moved(group, g, x) for g in range(n)])
        y: Tensor = model(orbit).unflatten(0, (n, -1))
        y = y.log_softmax(2) if reduction == "probabilities" else y
        if layer.output == "image":
            y = torch.stack([_moved(group, group.inverse(g), y[g]) for g in range(n)])
        if reduction == "probabilities":
            return y.logsumexp(0) - math.log(n)
        return y.mean(0) if reduction == "mean" else y.amax(0)

    return graph("Symmetrized", compute, model=layer.model)


def _moved(group: Group, g: int, x: Tensor) -> Tensor:
    r"""`group.act(g, x)` without its checks, for which there are no sizes yet."""
    if isinstance(group, DirectProduct):
        a, b = divmod(g, group.second.order)
        return _moved(group.first, a, _moved(group.second, b, x))
    if isinstance(group, PermutationGroup):
        places = group.act(g, torch.arange(group.degree)).tolist()
        return x.index_select(-1, x.new_tensor(places, dtype=torch.int64))
    return group._move(g, x) if g else x


def polyphase(stride: Pair, norm: float, exact: bool) -> fx.GraphModule:
    r"""Of `equilayers.nn.PolyphasePool2d`; of components with equal norms it keeps the first."""

    def compute(x: Any) -> Any:
        for dim, step in () if exact else zip((-2, -1), stride, strict=True):
            whole = (x.size(dim) + step - 1) // step * step
            places, length = (x.new_ones(size, dtype=torch.int64) for size in (whole, x.size(dim)))
            x = x.index_select(dim, (places.cumsum(0) - 1) % length.sum())
        starts = itertools.product(*map(range, stride))
        components = torch.stack([x[..., i :: stride[0], j :: stride[1]] for i, j in starts], 1)
        rows = components.flatten(2)
        largest = rows.double().norm(norm, 2).argmax(1)[:, None, None]
        return rows.gather(1, largest.expand(-1, -1, rows.size(2))).reshape(components[:, 0].shape)

    return graph("PolyphasePool2d", compute)
