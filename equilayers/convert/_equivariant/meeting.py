r"""What becomes of parameters where they meet what the group moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equilayers.convert._equivariant.labels import (
    Labels,
    Lost,
    Moved,
    Raw,
    balanced,
    gathered,
    hashed,
    is_regular,
    last_axis,
    matched,
    mixed,
    regular,
)
from equilayers.convert._equivariant.ties import Ties
from equilayers.convert._report import Cause
from equilayers.groups import Group

ASYMMETRIC = "windows of even width, shifted by half of it, are symmetric where they divide the map"
APART = "joins features that the group moves differently"
PLACED = (
    "; a linear layer over places makes fields of them: in its place multiply from the left by a square "
    "torch.nn.Parameter, as gMLP does, which is tied so that places stay places"
)
CAUSAL = "a causal mask has an order of the tokens"


class Meeting:
    r"""Ties parameters where they meet what is moved.

    group: whose generators move. ties: of parameters that were met. where: the module that is running.
    """

    def __init__(self, group: Group, ties: Ties) -> None:
        self.group = group
        self.ties = ties
        self.where = ""
        self.hint: Callable[[], str] = str  # what is known of what the function is given
        self.doubt = ""  # what is known against the function that is called, whatever it is given
        self.calls = 0

    @property
    def salt(self) -> int:
        r"""Another number at every call."""
        self.calls += 1
        return self.calls

    def cause(self, reason: str, given: Sequence[Labels] = ()) -> Cause:
        r"""What goes wrong in the module that is running, with the parameters in it."""
        owners = (p for each in given if isinstance(each, Raw) for p in self.ties.owners(each))
        return Cause(self.where, reason, self.salt, tuple(owners))

    def lost(self, given: Sequence[Labels], reason: str, *, uneven: bool = False) -> Lost:
        r"""Nothing is known of what comes out: the parameters in it cannot be tied, for the first reason of all.

        uneven: whether the reason is that entries are missing, so that it follows from what cut them off before.
        """
        known = [each.cause for each in given if isinstance(each, Lost)]
        known += [each.cut for each in given if isinstance(each, Moved) and each.cut is not None and uneven]
        first = min(known, key=lambda cause: cause.number) if known else self.cause(reason, given)
        for each in given:
            if isinstance(each, Raw):
                self.ties.refuse(each, first)
        return Lost(first)

    def checked(self, names: Sequence[Tensor], given: Sequence[Labels], reason: str, *, fresh: bool = False) -> Labels:
        r"""Moved entries, if they are; fresh: whether their names were just made by `mixed`."""
        return Moved(tuple(names)) if balanced(names, fresh=fresh) else self.lost(given, reason, uneven=True)

    def part(self, label: Moved, names: Sequence[Tensor], reason: str) -> Moved:
        r"""Some entries of a tensor: nothing is wrong yet, since others may come back beside them."""
        cut = None if balanced(names) else label.cut or self.cause(reason)
        return Moved(tuple(names), cut, label.pairs)

    def tied(self, raw: Raw, names: Sequence[Tensor]) -> Raw | Lost:
        r"""Parameters that meet entries with these names, tied so that the group leaves them alone."""
        for source in raw.sources:
            shape = (1,) * (names[0].ndim - source.ndim) + tuple(source.shape)
            numbers = source.reshape(shape)
            even = [_distinct(numbers, axis) for axis in range(numbers.ndim)]
            if not all(even):  # an axis along which it is the same needs no name
                numbers = numbers[tuple(slice(None) if own else slice(0, 1) for own in even)]
            dims = [i for i, own in enumerate(even) if not own or numbers.shape[i] == 1]
            smaller = [gathered(each, dims, keepdim=True) for each in names]
            shape = torch.broadcast_shapes(smaller[0].shape, numbers.shape)
            numbers = numbers.expand(shape).flatten()
            self.ties.met[numbers[numbers >= 0]] = True
            for after in smaller[1:]:
                pi = matched(smaller[0].expand(shape).flatten(), after.expand(shape).flatten())
                if pi is None or not self.ties.tie(numbers, numbers[pi]):
                    return self.lost([raw], "the group moves what it meets in another way")
        return raw

    def met(self, given: Sequence[Labels], shape: Sequence[int], name: str) -> Labels:
        r"""Entries computed each from those at its place: parameters are tied over the orbits of entries."""
        if any(isinstance(each, Lost) for each in given):
            return self.lost(given, "")
        moved = [each for each in given if isinstance(each, Moved)]
        raws = [each for each in given if isinstance(each, Raw)]
        if not moved:
            parts = [each.constant.expand(shape) for each in raws]
            return Raw(mixed(*parts), tuple(s.expand(shape) for each in raws for s in each.sources))
        wide = [[t.expand(shape) for t in each.names] for each in moved]
        names = [mixed(*column) for column in zip(*wide, strict=True)]
        pairs = any(each.pairs for each in moved)
        cuts = [each.cut for each in moved if each.cut is not None]
        even = balanced(names, fresh=True)
        if not even and (not cuts or any(each.sources for each in raws)):
            return self.lost(given, f"{name} {APART}{self.hint() or self._apart(moved)}", uneven=True)
        for raw in raws:
            tied = self.tied(raw, names) if raw.sources else raw
            if isinstance(tied, Lost):
                return self.lost([*given, tied], "")
            names = [mixed(each, self.ties.names(raw).expand(shape)) for each in names]
            if even and not balanced(names, fresh=True):
                return self.lost([*moved, raw], _not_left_alone(name, raw, pairs=pairs))
        return Moved(tuple(names), None if even else min(cuts, key=lambda cut: cut.number), pairs)

    def _apart(self, moved: Sequence[Moved]) -> str:
        r"""What to do where a layer over places made fields of them."""
        axes = [[t.movedim(-2, -1) for t in each.names] for each in moved if each.names[0].ndim > 2]
        found = [last_axis(self.group, names) for names in axes]
        fields = {acts is not None and is_regular(self.group, acts) for acts in found}
        return PLACED if len(fields) > 1 else ""

    def settled(self, raw: Raw) -> Labels:
        r"""Parameters that a layer reads as tokens: they are left alone, so alike over the fibers of the last axis."""
        width = raw.constant.shape[-1]
        if width % self.group.order:
            return self.lost([raw], f"{width} features are no whole fields of |G| = {self.group.order}")
        channel = hashed(torch.arange(width))
        turned = [
            torch.empty_like(channel).index_copy_(0, regular(self.group, g, width), channel)
            for g in (0, *self.group.generating_set())
        ]
        tied = self.tied(raw, [each.expand(raw.constant.shape) for each in turned])
        if isinstance(tied, Lost):
            return tied
        names = [mixed(self.ties.names(raw), each) for each in turned]
        return self.checked(names, [raw], _not_left_alone("what reads them", raw, pairs=False), fresh=True)


def _not_left_alone(name: str, raw: Raw, *, pairs: bool) -> str:
    r"""Why constants that meet features break the symmetry."""
    if pairs and _triangular(raw.constant):
        return f"{name}: {CAUSAL}"
    shape = tuple(raw.constant.shape)
    if pairs:
        return f"{name}: a mask or a table {shape} of pairs of places is another one after a move; {ASYMMETRIC}"
    what = f"numbers {shape} that are no parameters, such as a table of places, are others after a move"
    return f"{name}: {what}; a torch.nn.Parameter in their place is tied"


def _triangular(names: Tensor) -> bool:
    r"""Whether it holds one number on and below the diagonal of the last two axes, and another one above."""
    if names.ndim < 2 or names.shape[-1] != names.shape[-2] or names.shape[-1] < 2:
        return False
    below = torch.ones(names.shape[-2:], dtype=torch.bool).tril()
    seen, hidden = names[..., below], names[..., ~below]
    first, second = seen.flatten()[0], hidden.flatten()[0]
    return bool((seen == first).all() and (hidden == second).all() and first != second)


def _distinct(numbers: Tensor, axis: int) -> bool:
    r"""Whether entries differ along an axis."""
    return numbers.shape[axis] > 1 and not torch.equal(numbers, numbers.narrow(axis, 0, 1).expand_as(numbers))
