r"""Which entry of a tensor the group moves where: names of entries, that functions of torch are run on.

A label gives every entry of a tensor a name, a 64-bit integer: for the image as it is, and for the image moved by each
generator. What only moves entries moves their names; the name of a sum is made of the set of the names in it. So the
group moves the entries of a tensor if and only if the names for the moved image are those of before in other places.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equilayers.convert._report import Cause
from equilayers.groups import Group

# Odd numbers of 64 bits: multiplying by them loses nothing.
_FIRST, _SECOND, _THIRD, _FOURTH = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x2C7FA38C94D1AF35
_IN_CACHE = 1 << 15  # names that are hashed at a time on a CPU


@dataclass(frozen=True)
class Moved:
    r"""Entries that the group moves; names: for the image as it is, then for the image moved by each generator.

    cut: what took these entries without those that the group exchanges them with; None if none is missing. pairs:
    whether each is of two places, as scores of attention are. summed: whether the names are sums, of some axes alone.
    """

    names: tuple[Tensor, ...]
    cut: Cause | None = None
    pairs: bool = False
    summed: bool = False


@dataclass(frozen=True)
class Raw:
    r"""Entries made of parameters and constants alone.

    sources: the parameters' numbers that each entry is made of, by their index, -1 for none. constant: names of the
    constants in it.
    """

    constant: Tensor
    sources: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Lost:
    r"""Nothing is known of the entries, and why."""

    cause: Cause


Labels = Moved | Raw | Lost


def is_learned(label: Labels | None) -> bool:
    r"""Whether something in it is moved, or a parameter."""
    return isinstance(label, Moved) or (isinstance(label, Raw) and bool(label.sources))


def making_on(device: torch.device) -> AbstractContextManager[Any]:
    r"""New tensors are made on the device; where they are anyway no mode is entered, which would slow all calls."""
    return nullcontext() if torch.get_default_device() == device else device


def hashed(names: Tensor) -> Tensor:
    r"""Other names, as if drawn at random, alike for alike ones."""
    h = names * _FIRST
    flat = h.as_strided((h.numel(),), (1,))  # in the order of memory
    for part in (flat,) if h.is_cuda or h.numel() <= _IN_CACHE else flat.split(_IN_CACHE):
        part.bitwise_xor_(part >> 29).mul_(_SECOND)
        part.bitwise_xor_(part >> 32).mul_(_THIRD)
        part.bitwise_xor_(part >> 31)
    return h


def mixed(*parts: Tensor) -> Tensor:
    r"""Names made of several, entry by entry."""
    total = parts[0]
    for part in parts[1:-1]:
        total = hashed(total * _FOURTH + part)
    return hashed(total * _FOURTH + parts[-1] if len(parts) > 1 else total)


def gathered(names: Tensor, dims: Sequence[int], *, keepdim: bool = False) -> Tensor:
    r"""Names of sums over axes, made of the sets of the names in them."""
    return hashed(names).sum(tuple(dims), keepdim=keepdim) if dims else names


def constant(t: Tensor) -> Raw:
    r"""Constants are named by their value."""
    t = t.detach()
    if t.is_complex():
        t = torch.view_as_real(t).sum(-1)
    if t.is_floating_point():
        t = (t.float() + 0.0).view(torch.int32)  # -0.0 is 0.0
    return Raw(hashed(t.long()))


def balanced(names: Sequence[Tensor], *, fresh: bool = False) -> bool:
    r"""Whether the names for the moved images are those for the image in other places; fresh: just made by `mixed`."""
    sums = [int((each if fresh else hashed(each)).sum()) for each in names]
    return all(each == sums[0] for each in sums)


def matched(before: Tensor, after: Tensor) -> Tensor | None:
    r"""The permutation pi with `after[pi[i]] == before[i]` of flat names; None if there is none."""
    first, second = before.sort(stable=True), after.sort(stable=True)
    if not torch.equal(first.values, second.values):
        return None
    pi = torch.empty_like(first.indices)
    pi[first.indices] = second.indices
    return pi


def regular(group: Group, g: int, width: int) -> Tensor:
    r"""pi_g of an axis of whole fields, fibers innermost: entry (c, h) moves to (c, g·h)."""
    fiber = torch.tensor([group.compose(g, h) for h in range(group.order)])
    return (torch.arange(width).view(-1, group.order)[:, fiber]).flatten()


def regular_action(group: Group, width: int) -> Tensor:
    r"""The permutations of an axis of whole fields, (|G|, width)."""
    return torch.stack([regular(group, g, width) for g in range(group.order)])


def is_regular(group: Group, moves: Tensor) -> bool:
    r"""Whether these are the permutations of an axis of whole fields."""
    width = moves.shape[1]
    with making_on(moves.device):
        return width % group.order == 0 and torch.equal(moves, regular_action(group, width))


def fresh_map(group: Group, shape: Sequence[int], salt: int, *, fibered: bool) -> Moved:
    r"""Names of a map (B, C, H, W) that moves with the image, its channels whole fields if fibered."""
    names = hashed(torch.arange(torch.Size(shape).numel()) + (salt << 40)).view(*shape)
    moved = []
    for g in group.generating_set():
        after = group.act(g, names)
        if fibered:
            goes = regular(group, g, shape[1])
            after = torch.empty_like(after).index_copy_(1, goes, after)
        moved.append(after)
    return Moved((names, *moved))


def turns_as_map(group: Group, names: Sequence[Tensor], *, fibered: bool) -> bool:
    r"""Whether a tensor (B, C, H, W) moves as the image does, its channels whole fields if fibered."""
    before = names[0]
    for g, after in zip(group.generating_set(), names[1:], strict=True):
        wanted = group.act(g, before)
        if fibered:
            wanted = torch.empty_like(wanted).index_copy_(1, regular(group, g, before.shape[1]), wanted)
        if wanted.shape != after.shape or not torch.equal(wanted, after):
            return False
    return True


def fresh_rows(names: Sequence[Tensor], goes: Sequence[Tensor], salt: int) -> Moved:
    r"""Names of tokens (..., D), the rows of which move as those of the tokens they are made of.

    goes: of the last axis, for the image as it is and moved by each generator.
    """
    made = []
    for each, pi in zip(names, goes, strict=True):
        channel = torch.empty_like(pi).index_copy_(0, pi, torch.arange(len(pi)))
        made.append(mixed(gathered(each, (-1,))[..., None], channel + (salt << 40)))
    return Moved(tuple(made))


def planes(group: Group, width: int, *, fibered: bool) -> list[Tensor]:
    r"""How an axis goes, for the image as it is and moved by each generator: whole fields if fibered, else it stays."""
    return [regular(group, g, width) if fibered else torch.arange(width) for g in (0, *group.generating_set())]


def last_axis(group: Group, names: Sequence[Tensor]) -> Tensor | None:
    r"""How each element permutes the last axis, in all rows alike, (|G|, D); None if it does not, or the rows are lost.

    `(g·x)[..., pi_g i] = x[..., i]`, but for where the rows go.
    """
    width, before = names[0].shape[-1], names[0].reshape(-1, names[0].shape[-1])
    generators, found = group.generating_set(), []
    for g, each in zip(generators, names[1:], strict=True):
        after = each.reshape(-1, width)
        guesses = [torch.arange(width), matched(gathered(before, (0,)), gathered(after, (0,)))]
        if width % group.order == 0:
            guesses.insert(0, regular(group, g, width))
        pi = next((pi for pi in guesses if pi is not None and _rows_agree(before, after[:, pi])), None)
        if pi is None:
            return None
        found.append(pi)
    return products(group, found, width)


def _rows_agree(before: Tensor, after: Tensor) -> bool:
    place = torch.arange(before.shape[1])
    return balanced([gathered(mixed(each, place), (1,)) for each in (before, after)])


def products(group: Group, generators: Sequence[Tensor], width: int) -> Tensor | None:
    r"""The permutations of all elements from those of the generators, pi_gh = pi_g pi_h; None if they are no action."""
    by_element = {0: torch.arange(width)}
    waiting = [0]
    for h in waiting:
        for g, pi in zip(group.generating_set(), generators, strict=True):
            product, made = group.compose(g, h), pi[by_element[h]]
            if product not in by_element:
                by_element[product] = made
                waiting.append(product)
            elif not torch.equal(by_element[product], made):
                return None
    return torch.stack([by_element[g] for g in range(group.order)])


def whole_widths(width: int, order: int) -> str:
    r"""The widths nearest to one that are whole fields."""
    below, above = width // order * order, -(-width // order) * order
    return f"{below} or {above}" if below else str(above)
