r"""Modules of torch's own operations: a function is traced once, and what is left needs nothing of this library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from equilayers._checks import refuse
from equilayers._torch_compat import without_tracer
from equilayers.functional.vector_maps import lifting_matrix, reading_matrix
from equilayers.groups import DirectProduct, Group, PermutationGroup
from equilayers.groups.vectors import NAMES
from equilayers.nn import AngleHead


class _Tracer(fx.Tracer):
    r"""Does not look into the parts."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


class _Computed(nn.Module):
    def __init__(self, compute: Callable[..., Any], parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.compute, self.names = compute, list(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.compute(x, *(getattr(self, name) for name in self.names))


class _ComputedOfTwo(nn.Module):
    def __init__(self, compute: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor, other: Any) -> Any:
        return self.compute(x, other)


def graph(name: str, compute: Callable[..., Any], **parts: nn.Module) -> fx.GraphModule:
    r"""A module called `name` from x to `compute(x, *parts)`.

    Sizes are symbols while it is traced: they know arithmetic and torch.sym_min, but no `if`.
    """
    return _traced(name, _Computed(compute, parts))


def graph_of_two(name: str, compute: Callable[[Any, Any], Any]) -> fx.GraphModule:
    r"""A module called `name` from x and another argument to `compute(x, other)`."""
    return _traced(name, _ComputedOfTwo(compute))


def _traced(name: str, root: nn.Module) -> fx.GraphModule:
    traced = _Tracer().trace(root)
    for node in traced.nodes:
        node.type = None  # annotations are strings here, and pickle would look for what they name
    return fx.GraphModule(root, without_tracer(traced), class_name=name)


def magnitude_relu(bias: Tensor) -> fx.GraphModule:
    r"""Of `equilayers.nn.HarmonicNonlinearity`; a magnitude of zero stays zero."""
    tiny, kept = torch.finfo(bias.dtype).tiny, bias.detach().clone()[:, :, None, None, None]

    def compute(z: Any) -> Any:
        streams = z.unflatten(2, (-1, 2))
        size = streams.norm(dim=3, keepdim=True).clamp(min=tiny)
        return (streams * ((size + kept).relu() / size)).flatten(2, 3)

    return graph("HarmonicNonlinearity", compute)


def vector_lifting(layer: Any) -> fx.GraphModule:
    r"""Of `equilayers.nn.VectorLiftingLinear`: one product with the expanded matrix at every position."""
    n, bias = layer.group.order, layer.bias
    linear = _linear(lifting_matrix(layer.weight, layer.spec), None if bias is None else bias.repeat(n))

    def compute(v: Any, linear: Any) -> Any:
        rows = v.movedim((1, 2), (-2, -1)).flatten(-2)
        return linear(rows).unflatten(-1, (n, len(layer.weight))).movedim((-1, -2), (1, 2))

    return graph("VectorLiftingLinear", compute, linear=linear.requires_grad_(layer.weight.requires_grad))


def vector_reading(layer: Any) -> fx.GraphModule:
    r"""Of `equilayers.nn.VectorHead` and `AngleHead`: one product with the expanded matrix at every position."""
    linear, angle = _linear(reading_matrix(layer.weight, layer.spec), None), isinstance(layer, AngleHead)

    def compute(f: Any, linear: Any) -> Any:
        rows = f.movedim((2, 1), (-2, -1)).flatten(-2)
        right, up = linear(rows).unflatten(-1, (len(layer.weight), 2)).unbind(-1)
        if angle:
            return (torch.atan2(up, right) / layer.spec.order).movedim(-1, 1)
        return torch.stack((right, up), -1).movedim((-2, -1), (1, 2))

    return graph(type(layer).__name__, compute, linear=linear.requires_grad_(layer.weight.requires_grad))


def _linear(matrix: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(matrix.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def averaged(layer: Any) -> fx.GraphModule:
    r"""Of `equilayers.convert.symmetrize` with a model of one tensor: one call of it on the orbit."""
    group, reduction, n = layer.group, layer.reduction, layer.group.order
    if layer.output in NAMES:  # which axes hold vectors is known of numbers of axes, which a graph leaves open
        hint = "Deploy the model it wraps, and average in the code around it."
        refuse("to_plain", "an average of outputs that stay or are images", f"output={layer.output!r}", hint, TypeError)

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


def polyphase(layer: Any) -> fx.GraphModule:
    r"""Of `equilayers.nn.PolyphasePool2d`; of components with equal norms it keeps the first."""
    stride, norm, exact = layer.stride, layer.norm, layer.exact

    def compute(x: Any) -> Any:
        for dim, step in () if exact else zip((-2, -1), stride, strict=True):
            whole = (x.size(dim) + step - 1) // step * step
            places, length = (x.new_ones(size, dtype=torch.int64) for size in (whole, x.size(dim)))
            x = x.index_select(dim, (places.cumsum(0) - 1) % length.sum())
        starts = itertools.product(*map(range, stride))
        components = torch.stack([x[..., i :: stride[0], j :: stride[1]] for i, j in starts], 1)
        rows = components.flatten(2)
        largest = rows.double().norm(norm, 2).argmax(1)
        y = rows.gather(1, largest[:, None, None].expand(-1, -1, rows.size(2))).reshape(components[:, 0].shape)
        return (y, torch.stack([largest // stride[1], largest % stride[1]], 1)) if layer.return_choice else y

    return graph("PolyphasePool2d", compute)


def unpolyphase(layer: Any) -> fx.GraphModule:
    r"""Of `equilayers.nn.PolyphaseUnpool2d`."""

    def compute(y: Any, choice: Any) -> Any:
        down, right = (choice[:, k, None] == choice.new_ones(step).cumsum(0) - 1 for k, step in enumerate(layer.stride))
        here = (down[:, :, None] & right[:, None, :])[:, :, None, :]  # (B, s, 1, s)
        maps = y.flatten(1, -3)
        cells = here[:, None, None] * maps[:, :, :, None, :, None]
        return cells.flatten(-2).flatten(-3, -2).unflatten(1, y.shape[1:-2])

    return graph_of_two("PolyphaseUnpool2d", compute)


def upsampling(layer: Any) -> fx.GraphModule:
    r"""Of `equilayers.nn.GroupUpsample`; without a size of its own it takes one in the call, as the layer does."""
    spec = layer.spec
    mode, corners = ("nearest-exact", None) if spec.mode == "nearest" else (spec.mode, spec.corners)

    def resized(x: Any, size: Any) -> Any:
        factor = None if size is not None else spec.scale
        again = None if factor is None else True
        y = F.interpolate(x.flatten(1, -3), size, factor, mode, corners, again)
        return y.unflatten(1, x.shape[1:-2])

    if spec.size is None and spec.scale is None:
        return graph_of_two("GroupUpsample", resized)
    return graph("GroupUpsample", lambda x: resized(x, spec.size))
