r"""What becomes of parameters where they meet what the group moves."""

from __future__ import annotations

from collections.abc import Sequence

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
    matched,
    mixed,
    regular,
)
from equilayers.convert._equivariant.ties import Ties
from equilayers.groups import Group

ASYMMETRIC = "of even width, shifted by half of it, windows are symmetric where they divide the map"


class Meeting:
    r"""Ties parameters where they meet what is moved.

    group: whose generators move. ties: of parameters that were met. where: the module that is running.
    """

    def __init__(self, group: Group, ties: Ties) -> None:
        self.group = group
        self.ties = ties
        self.where = ""
        self.calls = 0

    @property
    def salt(self) -> int:
        r"""Another number at every call."""
        self.calls += 1
        return self.calls

    def lost(self, given: Sequence[Labels], reason: str) -> Lost:
        r"""Nothing is known of what comes out: the parameters in it cannot be tied, for the first reason of all."""
        first = next((each.reason for each in given if isinstance(each, Lost)), None)
        if first is None:
            first = f"{reason}, in {self.where}" if self.where else reason
        for each in given:
            if isinstance(each, Raw):
                self.ties.refuse(each, first)
        return Lost(first)

    def checked(self, names: Sequence[Tensor], given: Sequence[Labels], reason: str, *, fresh: bool = False) -> Labels:
        r"""Moved entries, if they are; fresh: whether their names were just made by `mixed`."""
        return Moved(tuple(names)) if balanced(names, fresh=fresh) else self.lost(given, reason)

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
        if not balanced(names, fresh=True):
            return self.lost(given, f"{name} joins features that the group moves differently")
        for raw in raws:
            tied = self.tied(raw, names) if raw.sources else raw
            if isinstance(tied, Lost):
                return self.lost([*given, tied], "")
            names = [mixed(each, self.ties.names(raw).expand(shape)) for each in names]
            if not balanced(names, fresh=True):
                what = "numbers that are no parameters, such as a mask or a table of places, are not symmetric"
                return self.lost(given, f"{name}: {what}" + (f"; {ASYMMETRIC}" if name in ("add", "attn_mask") else ""))
        return Moved(tuple(names))

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
        return Moved(tuple(mixed(self.ties.names(raw), each) for each in turned))


def _distinct(numbers: Tensor, axis: int) -> bool:
    r"""Whether entries differ along an axis."""
    return numbers.shape[axis] > 1 and not torch.equal(numbers, numbers.narrow(axis, 0, 1).expand_as(numbers))
