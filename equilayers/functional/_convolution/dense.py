r"""Group convolutions as ordinary ones, with the expanded filter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from equilayers._torch_compat import in_dispatch_mode, is_tracing
from equilayers.functional._convolution.filters import expand, fold
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._weight_cache import Kept, WeightCache, is_plain
from equilayers.functional.cost import times_forgotten
from equilayers.groups import interpolates


def dense_conv2d(x: Tensor, spec: ConvSpec, weight: Tensor, bias: Tensor | None, cache: WeightCache | None) -> Tensor:
    r"""One ordinary convolution with the expanded filter, which is kept where no gradient is wanted."""
    made_of = (weight,) if bias is None else (weight, bias)
    plain = not torch.compiler.is_compiling() and is_plain(*made_of)
    if plain and weight.requires_grad and torch.is_grad_enabled() and _trains(x, spec):
        return _fields(_Dense.apply(x, weight, bias, spec), spec)
    made = lambda: _expanded(weight, bias, spec)  # noqa: E731
    if cache is None or not plain:
        filters, biases = made()
        return _fields(_convolved(x, filters, biases, spec), spec)
    filters, biases = cache.get(made_of, made, "dense")
    y = _convolved(x, filters, biases, spec)
    kept = cache.kept("dense")  # under a mode nothing is, or what another algorithm has left
    cache.last = None if kept is None else Repeat(spec, _call(x), kept)
    return _fields(y, spec)


class Repeat(NamedTuple):
    r"""A call of a layer that wanted no gradient, and the filter that it took."""

    spec: ConvSpec
    call: tuple[object, ...]
    kept: Kept


def repeated(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, cache: WeightCache) -> Tensor | None:
    r"""The convolution at once where the layer's last call was like this one, and its checks and filter hold.

    None where they may not. Of a narrow layer the checks take as long as its products.
    """
    last = None if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_tracing() else cache.last
    if last is None or last.spec is not spec or type(x) is not Tensor or x.is_nested or last.call != _call(x):
        return None
    made_of = (weight,) if bias is None else (weight, bias)
    kept: Kept = last.kept
    if in_dispatch_mode() or not is_plain(x) or not kept.serves() or not kept.unchanged(made_of):
        return None
    filters, biases = kept.value
    return _fields(_convolved(x, filters, biases, spec), spec)


def _call(x: Tensor) -> tuple[object, ...]:
    r"""What decides, beside the settings, whether an input is accepted and by which algorithm it is convolved."""
    modes = torch.get_num_threads(), torch.is_autocast_enabled("cpu"), times_forgotten()
    return x.shape, x.dtype, x.device, x.layout, *modes


def _trains(x: Tensor, spec: ConvSpec) -> bool:
    r"""Whether `_Dense` may take the training step: a tracer and torch.func want ordinary operations."""
    return not interpolates(spec.group) and not is_tracing() and is_plain(x)


def _expanded(weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> tuple[Tensor, Tensor | None]:
    biases = None if bias is None else bias.unsqueeze(1).expand(-1, spec.group.order).reshape(-1)
    return expand(weight, spec.group), biases


def _convolved(x: Tensor, filters: Tensor, biases: Tensor | None, spec: ConvSpec) -> Tensor:
    image = x if spec.lifting else x.flatten(1, 2)
    return F.conv2d(image, filters, biases, spec.stride, spec.padding, spec.dilation, spec.groups)


def _fields(y: Tensor, spec: ConvSpec) -> Tensor:
    r"""Outside `_Dense`: autograd lets nobody change a view in place that a function has made."""
    return torch.unflatten(y, 1, (-1, spec.group.order))


class _Dense(Function):
    r"""The same as one node of the graph: autograd spends more on the small steps than a narrow layer on its products.

    Where a second derivative is wanted, the gradient is that of the ordinary operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        filters, biases = _expanded(weight, bias, spec)
        ctx.spec = spec
        ctx.save_for_backward(x, weight, bias, filters)
        return _convolved(x, filters, biases, spec)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, filters = ctx.saved_tensors
        spec, needed = ctx.spec, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            made, made_bias = _expanded(weight, bias, spec)
            y = _convolved(x, made, made_bias, spec)
            wanted = [t for t, needs in zip((x, weight, bias), needed, strict=True) if needs]
            found = iter(torch.autograd.grad(y, wanted, v, create_graph=True))
            return *(next(found) if needs else None for needs in needed), None
        image = x if spec.lifting else x.flatten(1, 2)
        biases = None if bias is None else [filters.shape[0]]
        settings = spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups
        slopes = torch.ops.aten.convolution_backward(v, image, filters, biases, *settings, needed)
        dx = slopes[0].view(x.shape) if needed[0] else None
        dw = fold(slopes[1], spec.group, tuple(weight.shape[1:])) if needed[1] else None
        return dx, dw, slopes[2].view(-1, spec.group.order).sum(1) if needed[2] else None, None
