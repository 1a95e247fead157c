r"""How vectors of the plane become regular features, and features vectors, with checked settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import (
    autocast,
    check_choice,
    check_float,
    check_int,
    check_same_dtype,
    in_autocast,
    overridable,
    refuse,
)
from equilayers.functional._convolution.filters import expand
from equilayers.functional._convolution.geometry import ConvSettings, ConvSpec, check_size, conv_spec
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.groups import Group, Rotations, as_group
from equilayers.groups.vectors import check_axes, check_vectors, turn

VECTOR_ALGORITHMS = ("auto", "bitwise", "orbit", "dense")


@dataclass(frozen=True)
class VectorSpec:
    r"""The settings of a map between vectors and regular features, checked once.

    order: of what turns m times as fast as vectors. conv: of a convolution, which it is at every pixel otherwise.
    """

    group: Rotations
    axes: str
    algorithm: str
    order: int = 1
    conv: ConvSpec | None = None

    @property
    def exactness(self) -> str:
        r"""The level: "rounding" where the weight is expanded, "approximate" where the group interpolates."""
        if self.group.exactness != "bitwise":
            return self.group.exactness
        return "rounding" if self.algorithm in ("auto", "dense") else "bitwise"

    @property
    def dense(self) -> bool:
        r"""Whether the weight is expanded here and now."""
        alone = self.group.order == 1 or self.group.exactness != "bitwise" or torch.compiler.is_compiling()
        return alone or self.algorithm in ("auto", "dense")

    def with_algorithm(self, caller: str, algorithm: str) -> VectorSpec:
        r"""The same with another algorithm, which is checked."""
        return replace(self, algorithm=_algorithm(caller, self.group, algorithm, self.conv is not None))

    def turned(self, g: int, v: Tensor) -> Tensor:
        r"""The components alone turned, along axis 2."""
        return turn(v, self.group.vector_matrix(g, order=self.order, axes=self.axes))

    def back(self, g: int, v: Tensor) -> Tensor:
        r"""g^-1 · v: pixels moved and components turned."""
        back = self.group.inverse(g)
        return self.turned(back, self.group.act(back, v) if v.ndim == 5 else v)


def vector_spec(caller: str, group: Group | str, axes: str, algorithm: str, order: int = 1) -> VectorSpec:
    r"""The checked settings of a map at every position; TypeError or ValueError where they make no sense."""
    group = _rotations(caller, group)
    check_int(caller, "order", order, 1)
    return VectorSpec(group, check_axes(caller, axes), _algorithm(caller, group, algorithm, False), order)


def vector_conv_spec(caller: str, given: ConvSettings, axes: str) -> VectorSpec:
    r"""The checked settings of a convolution of fields; TypeError or ValueError where they make no sense."""
    group = _rotations(caller, given.group)
    algorithm = _algorithm(caller, group, given.algorithm, True)
    conv = conv_spec(caller, given._replace(group=group, algorithm="auto"))
    return VectorSpec(group, check_axes(caller, axes), algorithm, conv=conv)


def _rotations(caller: str, group: Group | str) -> Rotations:
    group = as_group(caller, group)
    if not isinstance(group, Rotations):
        hint = "Vectors turn under rotations and mirrors; shifts leave them as they are, and need no tying."
        refuse(caller, "group to be CyclicRotation or Dihedral", repr(group), hint)
    return group


def _algorithm(caller: str, group: Group, algorithm: str, convolves: bool) -> str:
    check_choice(caller, "algorithm", algorithm, VECTOR_ALGORITHMS)
    if convolves and group.exactness != "bitwise" and algorithm in ("bitwise", "orbit"):
        hint = "It rotates fields by interpolation, which is never exact."
        refuse(caller, f"algorithm in {{'auto', 'dense'}} for {group!r}", repr(algorithm), hint)
    return algorithm


@overridable
def lift(caller: str, v: Tensor, weight: Tensor, bias: Tensor | None, spec: VectorSpec) -> Tensor:
    r"""`lift_vectors` with checked settings."""
    check_vectors(caller, v)
    if weight.ndim != 3 or v.shape[1:3] != weight.shape[1:]:
        layout = ", ".join(map(str, weight.shape[1:]))
        refuse(caller, f"v of shape (B, {layout}, *positions)", tuple(v.shape), "Its channels must be the weight's.")
    v, weight, bias = _of_one_dtype(caller, "v", v, weight, bias)
    if spec.dense:
        biases = None if bias is None else bias.repeat(spec.group.order)
        y = F.linear(_rows(v), lifting_matrix(weight, spec), biases).unflatten(-1, (spec.group.order, -1))
    else:
        _check_space(caller, spec.group, v)
        matrix, planes = weight.flatten(1), []
        for h in range(spec.group.order):
            y = F.linear(_rows(spec.back(h, v)), matrix, bias)
            planes.append(y if v.ndim < 5 else spec.group.act(h, y.movedim(-1, 1)).movedim(1, -1))
        y = torch.stack(planes, -2)
    return y.movedim((-1, -2), (1, 2))


@overridable
def lift_convolved(
    caller: str,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: VectorSpec,
    cache: WeightCache | None = None,
) -> Tensor:
    r"""`lift_vectors_conv2d` with checked settings; cache: of the expanded filter."""
    if spec.conv is None:
        refuse(caller, "settings of a convolution", "none", "Make them with vector_conv_spec.")
    _check_convolution(caller, v, weight, spec.conv)
    v, weight, bias = _of_one_dtype(caller, "v", v, weight, bias)
    v, conv = spec.conv.padded(v)
    if spec.dense:
        keep = cache is not None and is_plain(weight) and not torch.compiler.is_compiling()
        make = lambda: expanded_field(weight, spec)  # noqa: E731
        filters = cache.get(weight, make, "dense") if cache is not None and keep else make()
        biases = None if bias is None else bias.repeat_interleave(spec.group.order)
        y = F.conv2d(v.flatten(1, 2), filters, biases, conv.stride, conv.padding, conv.dilation, conv.groups)
        return y.unflatten(1, (-1, spec.group.order))
    filters, planes = weight.flatten(1, 2), []
    for h in range(spec.group.order):
        moved = spec.back(h, v).clone(memory_format=torch.contiguous_format)
        image = moved.view(-1).view(moved.shape).flatten(1, 2)  # in the plain order, axes of length one too
        y = F.conv2d(image, filters, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        planes.append(spec.group.act(h, y))
    return torch.stack(planes, 2)


@overridable
def read_out(caller: str, f: Tensor, weight: Tensor, spec: VectorSpec) -> Tensor:
    r"""`regular_to_vectors` with checked settings."""
    group = spec.group
    group.check_fiber(check_float(caller, "f", f), caller)
    if weight.ndim != 3 or weight.shape[2] != 2 or f.shape[1] != weight.shape[1]:
        wanted = f"f of shape (B, {weight.shape[1]}, {group.order}, *positions) for a weight (O, C, 2)"
        refuse(caller, wanted, tuple(f.shape), "Its channels must be the weight's.")
    f, weight, _ = _of_one_dtype(caller, "f", f, weight, None)
    if spec.dense:
        v = F.linear(f.movedim((1, 2), (-1, -2)).flatten(-2), reading_matrix(weight, spec))
        return v.unflatten(-1, (-1, 2)).movedim((-2, -1), (1, 2))
    _check_space(caller, group, f)
    matrix, terms = weight.transpose(1, 2).flatten(0, 1), []
    for h in range(group.order):
        plane = f[:, :, h] if f.ndim < 5 else group.act(group.inverse(h), f[:, :, h])
        rows = plane.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        v = F.linear(rows, matrix).unflatten(-1, (-1, 2)).movedim((-2, -1), (1, 2))
        terms.append(spec.turned(h, v if f.ndim < 5 else group.act(h, v)))
    return _coset_sum(torch.stack(terms), group) / group.order


def lifting_matrix(weight: Tensor, spec: VectorSpec) -> Tensor:
    r"""The matrix (|G|·O, 2·C) from vectors to a regular feature: row (h, o) is h · weight_o."""
    return torch.stack([spec.turned(h, weight) for h in range(spec.group.order)]).flatten(0, 1).flatten(1)


def reading_matrix(weight: Tensor, spec: VectorSpec) -> Tensor:
    r"""The matrix (2·O, |G|·C) from a regular feature to vectors: column (h, c) is h · weight[:, c] / |G|."""
    n = spec.group.order
    turned = torch.stack([spec.turned(h, weight) for h in range(n)], 1) / n  # (O, |G|, C, 2)
    return turned.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)


def _coset_sum(terms: Tensor, group: Rotations) -> Tensor:
    r"""The sum over the elements, axis 0, in a tree of cosets: elements exchange its branches, which commute."""
    turns = group.n
    planes = terms.unflatten(0, (-1, turns))
    while turns > 1:  # r and r + half a turn
        turns //= 2
        planes = planes[:, :turns] + planes[:, turns:]
    planes = planes[:, 0]
    return planes[0] if len(planes) == 1 else planes[0] + planes[1]


def expanded_field(weight: Tensor, spec: VectorSpec) -> Tensor:
    r"""The filter of the ordinary convolution, (O·|G|, 2·C, kh, kw): row (o, h) is h · weight_o."""
    n = spec.group.order
    moved = expand(weight.flatten(1, 2), spec.group).unflatten(1, (-1, 2)).unflatten(0, (-1, n))
    return torch.stack([spec.turned(h, moved[:, h]) for h in range(n)], 1).flatten(2, 3).flatten(0, 1)


def _rows(v: Tensor) -> Tensor:
    r"""Vectors (B, C, 2, *S) as rows (B, *S, 2·C), on memory of their own."""
    return v.movedim((1, 2), (-2, -1)).clone(memory_format=torch.contiguous_format).flatten(-2)


def _of_one_dtype(
    caller: str, name: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Input and parameters as autocast wants them, which share a dtype otherwise."""
    if in_autocast(x):
        return autocast(x), autocast(weight), None if bias is None else autocast(bias)
    check_same_dtype(caller, name, x, weight)
    return x, weight, bias


def _check_space(caller: str, group: Group, t: Tensor) -> None:
    if t.ndim == 5:
        group.check_space(tuple(t.shape[3:]), caller)


def _check_convolution(caller: str, v: Tensor, weight: Tensor, conv: ConvSpec) -> None:
    check_vectors(caller, v)
    if weight.ndim != 5 or weight.shape[2] != 2:
        hint = "Its filters are fields of vectors."
        refuse(caller, "weight of shape (O, C, 2, kh, kw)", tuple(weight.shape), hint)
    if weight.shape[0] % conv.groups:
        refuse(caller, f"output channels divisible by groups={conv.groups}", weight.shape[0], "Change one of them.")
    if v.ndim != 5 or v.shape[1] != conv.groups * weight.shape[1]:
        layout = f"v of shape (B, {conv.groups * weight.shape[1]}, 2, H, W)"
        refuse(caller, layout, tuple(v.shape), "A flow (B, 2, H, W) is flow[:, None].")
    conv.group.check_space(tuple(v.shape[-2:]), caller)
    check_size(caller, conv, (v.shape[-2], v.shape[-1]))


__all__ = [
    "VECTOR_ALGORITHMS",
    "VectorSpec",
    "expanded_field",
    "lift",
    "lift_convolved",
    "lifting_matrix",
    "read_out",
    "reading_matrix",
    "vector_conv_spec",
    "vector_spec",
]
