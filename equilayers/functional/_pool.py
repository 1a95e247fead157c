r"""Pooling over the fiber: from equivariant to invariant."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import check_choice, check_float, overridable, refuse, widened

ORBIT_REDUCTIONS = ("max", "mean", "logsumexp", "norm")
NETWORK_LIMIT = 8  # planes up to which a sorting network of whole planes beats sorting each fiber


@overridable
def orbit_pool(f: Tensor, reduction: str = "max") -> Tensor:
    r"""Pool the fiber of a regular feature to one number, which the group leaves unchanged.

    Args:
        f: regular feature (B, C, |G|) or (B, C, |G|, H, W), floating-point.
        reduction: "max", "mean", "logsumexp" or "norm" (Euclidean).

    Returns:
        (B, C) or (B, C, H, W), of the dtype and device of f; sums of half precision are taken in float32.

    Raises:
        TypeError: f is not floating-point.
        ValueError: f has no fiber axis, or an unknown reduction.

    Law: `orbit_pool(act_regular(g, f)) == act(g, orbit_pool(f))`, and plainly `orbit_pool(f)` where there is no space:
        bitwise for "max", "mean" and "norm", whose terms are sorted before they are added; rounding for "logsumexp".
        A NaN in the fiber gives NaN. Equal maxima share the gradient, so the gradient is equivariant as well.

    Source: Cohen and Welling 2016, section 6.3 (arXiv:1602.07576).
    """
    check_float("orbit_pool", "f", f)
    check_choice("orbit_pool", "reduction", reduction, ORBIT_REDUCTIONS)
    if f.ndim < 3 or f.shape[2] == 0:
        hint = "Lift first: LiftingLinear and LiftingConv2d make regular features."
        refuse("orbit_pool", "f of shape (B, C, |G|) or (B, C, |G|, H, W)", tuple(f.shape), hint)
    if reduction == "max":
        return largest(f)
    wide = widened(f)
    if reduction == "mean":
        return (sorted_sum(wide) / f.shape[2]).to(f.dtype)
    if reduction == "logsumexp":
        return wide.logsumexp(2).to(f.dtype)
    squares = sorted_sum(wide * wide)
    # At zero the norm has no derivative; zero is the choice that keeps training alive.
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), squares).to(f.dtype)


@overridable
def invariant_avg_pool2d(x: Tensor) -> Tensor:
    r"""The mean over the map, summed in an order that rotations and mirrors leave unchanged.

    Args:
        x: (..., H, W), floating-point: images (B, C, H, W) or regular features (B, C, |G|, H, W).

    Returns:
        (...), of the dtype and device of x: (B, C) or (B, C, |G|).

    Raises:
        TypeError: x is not floating-point.
        ValueError: x has no map, or an empty one.

    Law: `pool(act(g, x)) == pool(x)`, bitwise, for every rotation and mirror of the map; of a regular feature the fiber
        alone is permuted. A plain mean adds in another order when the map is rotated.
    """
    check_float("invariant_avg_pool2d", "x", x)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        hint = "Pool images (B, C, H, W) or features (B, C, |G|, H, W)."
        refuse("invariant_avg_pool2d", "x of shape (..., H, W), H and W positive", tuple(x.shape), hint)
    if torch.compiler.is_compiling():  # a compiler reorders sums as it likes
        return x.mean((-2, -1))
    return cast(Tensor, _MapMean.apply(x))


class _MapMean(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.mT if x.shape[-2] > x.shape[-1] else x  # a quarter turn may have set it upright
        height, width = x.shape[-2:]
        # Each line adds the cosets of a subgroup to those of the one before: half turn, quarter turn, mirror. Two terms
        # commute, and the subgroups are normal, so every sum is the same for all images of the map.
        total = widened(x)
        total = total + torch.rot90(total, 2, (-2, -1))
        total = total + torch.rot90(total, 1, (-2, -1)) if height == width else total
        total = total + total.flip(-1)
        copies = 8 if height == width else 4
        return (_tree_sum(total.flatten(-2)) / (copies * height * width)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return (v / (ctx.shape[-2] * ctx.shape[-1]))[..., None, None].expand(ctx.shape)

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:  # noqa: ARG004
        return cast(Tensor, _MapMean.apply(t))


def _tree_sum(x: Tensor) -> Tensor:
    r"""The sum over the last axis by halves: elementwise additions, which do not depend on where a row stands."""
    while (length := x.shape[-1]) > 1:
        half = length // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat((folded, x[..., 2 * half :]), -1) if length % 2 else folded
    return x.squeeze(-1)


def largest(f: Tensor) -> Tensor:
    r"""The maximum over axis 2, whose gradient equal maxima share: torch's amax with a backward of whole planes."""
    if torch.compiler.is_compiling():
        return f.amax(2)
    return cast(Tensor, _Largest.apply(f))


class _Largest(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(f: Tensor) -> Tensor:
        first, *others = f.unbind(2)
        return functools.reduce(torch.maximum, others, first) if others else first.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        hits = _hits(ctx, v.dtype)
        share = v / functools.reduce(torch.add, hits)
        return torch.stack([hit * share for hit in hits], 1).movedim(1, 2)  # planes lie as the layers want them

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        hits = _hits(ctx, t.dtype)
        moved = [hit * plane for hit, plane in zip(hits, t.unbind(2), strict=True)]
        return functools.reduce(torch.add, moved) / functools.reduce(torch.add, hits)


def _hits(ctx: Any, dtype: torch.dtype) -> list[Tensor]:
    r"""For each plane 1 where it has the maximum, else 0."""
    f, top = ctx.saved_tensors
    return [(plane == top).to(dtype) for plane in f.unbind(2)]


def sorted_sum(f: Tensor) -> Tensor:
    r"""The sum over axis 2 with its terms sorted first: bitwise the same for every order of the terms."""
    if torch.compiler.is_compiling():
        return f.sum(2)  # a compiler reorders sums as it likes
    return cast(Tensor, _SortedSum.apply(f))


class _SortedSum(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(f: Tensor) -> Tensor:
        planes = list(f.unbind(2))
        if len(planes) <= NETWORK_LIMIT:
            for i, j in sorting_network(len(planes)):
                planes[i], planes[j] = torch.minimum(planes[i], planes[j]), torch.maximum(planes[i], planes[j])
        else:
            planes = list(f.sort(2).values.unbind(2))
        return functools.reduce(torch.add, planes) if len(planes) > 1 else planes[0].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.terms = inputs[0].shape[2]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return v.unsqueeze(2).expand(*v.shape[:2], ctx.terms, *v.shape[2:])

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:  # noqa: ARG004
        return cast(Tensor, _SortedSum.apply(t))


@functools.lru_cache(maxsize=64)
def sorting_network(n: int) -> tuple[tuple[int, int], ...]:
    r"""Comparators (i, j), i < j, that sort n planes: odd-even transposition for two, Batcher's merge exchange above.

    Source: Knuth, The Art of Computer Programming 3, Algorithm 5.2.2M.
    """
    pairs = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
            if d < p:
                break
        p >>= 1
    return tuple(pairs)
