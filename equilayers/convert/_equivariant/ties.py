r"""Which numbers of a model's parameters have to be equal, and how they are kept so."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from equilayers.convert._equivariant.labels import Raw, fresh_map, hashed, matched
from equilayers.convert._report import Cause
from equilayers.groups import Group


class Tied(nn.Module):
    r"""A parametrisation that keeps one number for all entries of a class: exact, whatever is learned.

    Args:
        classes: of the parameter's shape, from 0 on.

    Law: `P[e] == P[pi_g e]` bitwise for every entry e, where the classes are the orbits of pi.
    """

    classes: Tensor

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        self.register_buffer("classes", classes, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers[self.classes]

    def right_inverse(self, parameter: Tensor) -> Tensor:
        r"""The means over the classes: the nearest tied parameter."""
        classes = self.classes.flatten()
        sums = parameter.new_zeros(int(classes.max()) + 1, dtype=torch.float64)
        sums.index_add_(0, classes, parameter.detach().flatten().double())
        return (sums / classes.bincount()).to(parameter.dtype)

    def extra_repr(self) -> str:
        return f"{self.classes.numel()} -> {int(self.classes.max()) + 1}"


def orbits(moves: Tensor) -> Tensor:
    r"""The orbit of each entry under permutations (|G|, D), numbered from 0 on."""
    return moves.argsort(1).amin(0).unique(return_inverse=True)[1]


class Ties:
    r"""The numbers of several parameters, one after another, and which of them have to be equal.

    version: grows with every tie that is new. wrong: by parameter, why it cannot be tied.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.root = torch.arange(0)
        self.version = 0
        self.starts: dict[Tensor, int] = {}
        self.met = torch.zeros(0, dtype=torch.bool)
        self.used: set[Tensor] = set()
        self.wrong: dict[Tensor, Cause] = {}
        self.resized: dict[tuple[int, ...], tuple[Tensor, Tensor, str]] = {}
        for parameter in parameters:
            self.starts[parameter] = self._more(parameter.numel())
        self.parameters = len(self.root)  # numbers after these are of what was resized

    def copy(self) -> Ties:
        r"""As many numbers, tied alike so far."""
        made = copy.copy(self)
        made.met, made.used, made.wrong, made.resized = self.met.clone(), {*self.used}, {**self.wrong}, {**self.resized}
        return made

    def alike(self, other: Ties) -> bool:
        r"""Whether the parameters are tied alike."""
        return torch.equal(self.root[: self.parameters], other.root[: self.parameters])

    def adopt(self, other: Ties) -> None:
        r"""What was found with a copy."""
        self.__dict__.update(other.__dict__)

    def _more(self, count: int) -> int:
        start = len(self.root)
        self.root = torch.cat((self.root, torch.arange(start, start + count)))
        self.met = torch.cat((self.met, torch.zeros(count, dtype=torch.bool)))
        return start

    def label(self, parameter: Tensor) -> Raw:
        r"""The label of a parameter."""
        numbers = torch.arange(parameter.numel()).view(parameter.shape) + self.starts[parameter]
        return Raw(torch.zeros_like(numbers), (numbers,))

    def names(self, raw: Raw) -> Tensor:
        r"""Names of the entries, alike where what they are made of has to be equal."""
        names = raw.constant
        for source in raw.sources:
            names = hashed(names * 31 + torch.where(source < 0, -1, self.root[source]))
        return names

    def tie(self, first: Tensor, second: Tensor) -> bool:
        r"""Numbers have to be equal; False if a number of a parameter would have to equal a constant."""
        first, second = first.flatten(), second.flatten()
        if bool(((first < 0) != (second < 0)).any()):
            return False
        first, second = first[first >= 0], second[second >= 0]
        self.met[first] = True
        while bool((differ := self.root[first] != self.root[second]).any()):
            self.version += 1
            a, b = self.root[first[differ]], self.root[second[differ]]
            self.root = self.root.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            while not torch.equal(self.root, roots := self.root[self.root]):
                self.root = roots
        return True

    def owners(self, raw: Raw) -> list[Tensor]:
        r"""The parameters that an entry is made of."""
        starts = torch.tensor([*self.starts.values()])
        found: set[int] = set()
        for source in raw.sources:
            resized = [origin for at, origin, _ in self.resized.values() if bool(torch.isin(at, source).any())]
            numbers = torch.cat([each.flatten() for each in (source, *resized)]).unique()
            numbers = numbers[(numbers >= 0) & (numbers < self.parameters)]
            found |= set((torch.searchsorted(starts, numbers, right=True) - 1).tolist())
        parameters = list(self.starts)
        return [parameters[i] for i in sorted(found)]

    def refuse(self, raw: Raw, cause: Cause) -> None:
        r"""The parameters that an entry is made of cannot be tied."""
        for parameter in self.owners(raw):
            self.wrong.setdefault(parameter, cause)

    def resize(self, raw: Raw, shape: torch.Size, where: str) -> Raw:
        r"""The label of parameters on a grid that was resized to another one, symmetrically: numbers of its own."""
        (source,) = raw.sources
        key = (*source.shape, *shape, int(hashed(source).sum()))
        if key not in self.resized:
            start = self._more(shape.numel())
            self.resized[key] = torch.arange(start, start + shape.numel()).view(shape), source, where
        numbers = self.resized[key][0]
        return Raw(torch.zeros_like(numbers), (numbers,))

    def carry_back(self, group: Group) -> None:
        r"""Tie what was resized as what it became has to be: turned as a map, whole fields in the channels or not."""
        for numbers, source, where in self.resized.values():
            if not bool(self.met[numbers].any()):
                continue
            for fibered in (False, True):
                if fibered and numbers.shape[1] % group.order:
                    continue
                if self._orbits(group, numbers, fibered=fibered, tying=False):
                    self._orbits(group, source, fibered=fibered, tying=True)
                    break
            else:
                raw = Raw(source, (source,))
                reason = "it is resized, and what it becomes is not to turn as a map"
                self.refuse(raw, Cause(where, reason, parameters=tuple(self.owners(raw))))

    def _orbits(self, group: Group, source: Tensor, *, fibered: bool, tying: bool) -> bool:
        r"""Tie a grid by its orbits; or only say whether what has to be equal in it lies in one orbit."""
        if source.shape[-1] != source.shape[-2]:
            return False
        names = fresh_map(group, source.shape, 0, fibered=fibered).names
        moves = [matched(names[0].flatten(), each.flatten()) for each in names[1:]]
        flat = source.flatten()
        if tying:
            return all(self.tie(flat, flat[pi]) for pi in moves if pi is not None)
        orbits = Ties([])
        orbits._more(len(flat))
        for pi in moves:
            if pi is not None:
                orbits.tie(torch.arange(len(flat)), pi)
        first = torch.full((len(self.root),), len(flat)).scatter_reduce(0, self.root[flat], orbits.root, "amin")
        return torch.equal(first[self.root[flat]], orbits.root)

    def is_met(self, parameter: Tensor) -> bool:
        r"""Whether a parameter met what the group moves."""
        start = self.starts[parameter]
        return bool(self.met[start : start + parameter.numel()].any())

    def classes(self, parameter: Tensor) -> Tensor | None:
        r"""The class of each entry of a parameter, from 0 on; None if one reaches into another parameter."""
        start = self.starts[parameter]
        stop = start + parameter.numel()
        roots = self.root[start:stop]
        others = torch.cat((self.root[:start], self.root[stop : self.parameters]))
        if bool((roots < start).any()) or bool(torch.isin(others, roots).any()):
            return None
        return roots.unique(return_inverse=True)[1].view(parameter.shape)
