r"""What becomes of labels in products with parameters, which are tied by how the group moves what they meet."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equilayers.convert._equivariant.labels import (
    Labels,
    Lost,
    Moved,
    Raw,
    fresh_rows,
    hashed,
    last_axis,
    mixed,
    planes,
    regular,
)
from equilayers.convert._equivariant.pairing import Pairing, _first, _shaped

Terms = tuple[str, str, str]


class Products(Pairing):
    r"""The labels of linear maps by hand."""

    def stays(self, label: Moved, dim: int) -> bool:
        r"""Whether the group leaves an axis alone."""
        acts = last_axis(self.group, [each.movedim(dim, -1) for each in label.names])
        return acts is not None and torch.equal(acts, torch.arange(acts.shape[1]).expand_as(acts))

    def unknown_axis(self, x: Moved) -> str:
        r"""Why a linear layer cannot be tied."""
        return f"the group moves the last axis of what it reads, {x.names[0].shape[-1]} long, in no way that is known"

    def multiplied(self, name: str, function: Any, args: Any, given: Sequence[Labels]) -> Labels:
        r"""Of a matrix product or an `einsum`."""
        if name == "rmatmul":
            given = given[::-1]
        if len(given) == 2 and any(isinstance(each, Raw) and each.sources for each in given):
            terms = _named(args[0]) if name == "einsum" else _of_matrices(*(_first(each).ndim for each in given))
            back = (terms[1], terms[0], terms[2])
            for x, weight, letters in ((given[0], given[1], terms), (given[1], given[0], back)):
                if isinstance(x, Moved) and isinstance(weight, Raw) and terms[2] != "?":
                    return self.contracted(x, weight, letters)
        if name == "einsum":
            return self.product(given, lambda *t: torch.einsum(args[0], *t))
        return self.product(given, function if name != "rmatmul" else operator.matmul)

    def distances(self, given: Sequence[Labels]) -> Labels:
        r"""Of features to rows that are learned."""
        sides = [self.settled(each) if isinstance(each, Raw) and each.sources else each for each in given]
        return self.product(sides, lambda a, b: a @ b.mT, (-1, -1))

    def contracted(self, x: Moved, weight: Raw, terms: Terms) -> Labels:
        r"""Sums of products with a parameter, over some axes of both; terms: the letters of the axes, as of `einsum`.

        What it makes has fibers innermost if what is summed over is moved; of a square one over places, places.
        """
        ofx, ofw, out = terms
        summed, shared = [c for c in ofx if c not in out], [c for c in ofw if c in ofx and c in out]
        rows, made = [c for c in ofx if c in out and c not in shared], [c for c in out if c not in ofx]
        odd = set(summed) - set(ofw) or set(ofw) - set(ofx) - set(out) or not summed
        if odd or not all(self.stays(x, ofx.index(c)) for c in shared):
            return self.lost([x, weight], "parameters are multiplied with features by hand")
        shape = weight.constant.shape
        sizes = [shape[ofw.index(c)] for c in made]
        names = [t.permute([ofx.index(c) for c in (*rows, *shared, *summed)]).flatten(-len(summed)) for t in x.names]
        acts = last_axis(self.group, names)
        if acts is None:
            return self.lost([x, weight], "the group moves what it sums over in no way that is known", uneven=True)
        count, still = acts.shape[1], torch.equal(acts, acts[:1].expand_as(acts))
        last, square = ofx[-1] in summed, sizes == [count]
        goes = [torch.arange(torch.Size(sizes).numel())] * (1 + len(self.group.generating_set()))
        for k, g in enumerate(self.group.generating_set(), 1):
            if square and not last:
                goes[k] = acts[g]
            elif not still and sizes and sizes[-1] % self.group.order == 0:
                goes[k] = regular(self.group, g, len(goes[0]))

        def matrix(t: Tensor) -> Tensor:
            order = [ofw.index(c) for c in (*shared, *made, *summed)]
            return t.permute(order).reshape(*(shape[i] for i in order[: len(shared)]), len(goes[0]), count)

        table = _shaped(weight, matrix)
        before = hashed(torch.arange(shape.numel())).view(_first(table).shape)
        moves = self.arranged(before, goes, acts)
        tied = self.tied(table, moves) if isinstance(table, Raw) else table
        if isinstance(tied, Lost):
            return self.lost([tied, x], "")
        new = fresh_rows(names, goes, self.salt)
        order = [[*rows, *shared, *made].index(c) for c in out]
        wide = [t.reshape(*t.shape[:-1], *sizes).permute(order) for t in new.names]
        return Moved(tuple(wide))

    def linear(self, given: Sequence[Labels]) -> Labels:
        r"""`F.linear` by hand with parameters: the weight is tied by how the group moves both sides."""
        x, weight, *bias = given
        if not isinstance(x, Moved) or not isinstance(weight, Raw) or not weight.sources:
            return self.lost(given, "linear with a weight that is no parameter of its own is not known here")
        acts, width = last_axis(self.group, x.names), weight.constant.shape[0]
        if acts is None:
            return self.lost(given, self.unknown_axis(x), uneven=True)
        goes = planes(self.group, width, fibered=width % self.group.order == 0)
        names = self.arranged(mixed(torch.arange(width)[:, None], torch.arange(acts.shape[1])), goes, acts)
        sides = [(weight, names), *((each, [t.sum(1) for t in names]) for each in bias)]
        tied = [self.tied(raw, moves) if isinstance(raw, Raw) else raw for raw, moves in sides]
        if any(isinstance(each, Lost) for each in tied):
            return self.lost([*tied, *given], "")
        return fresh_rows(x.names, goes, self.salt)

    def arranged(self, matrix: Tensor, goes: Sequence[Tensor], acts: Tensor) -> list[Tensor]:
        r"""Names (..., rows, columns) of a matrix as they are and moved by each generator, whose rows go as `goes`."""
        moves = [matrix]
        for rows, g in zip(goes[1:], self.group.generating_set(), strict=True):
            after = torch.empty_like(matrix)
            after[..., rows[:, None], acts[g][None]] = matrix
            moves.append(after)
        return moves


def _named(equation: str) -> Terms:
    r"""The letters of an equation of two; "?" where they are not known."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    return (letters[0], letters[1], out) if arrow and len(letters) == 2 and "." not in equation else ("", "", "?")


def _of_matrices(first: int, second: int) -> Terms:
    r"""The letters of a product of matrices, or of stacks of some, with so many axes."""
    if min(first, second) < 2:
        return "", "", "?"
    stack = "abcdefgh"[: max(first, second) - 2]
    return f"{stack[len(stack) + 2 - first :]}mk", f"{stack[len(stack) + 2 - second :]}kn", f"{stack}mn"
