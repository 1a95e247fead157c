r"""What becomes of labels in functions of torch, by the kind of the function: see `labels`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from equilayers._modules import mapped, tensors
from equilayers.convert._equivariant import kinds
from equilayers.convert._equivariant.labels import (
    Labels,
    Lost,
    Moved,
    Raw,
    constant,
    fresh_map,
    fresh_rows,
    gathered,
    hashed,
    mixed,
    planes,
    turns_as_map,
    whole_widths,
)
from equilayers.convert._equivariant.pairing import _shaped
from equilayers.convert._equivariant.products import Products

Lookup = Callable[[Tensor], Labels | None]


class Rules(Products):
    r"""The labels of what functions put out, from those of what they are given."""

    def of(self, name: str, function: Any, args: Any, kwargs: Any, get: Lookup) -> Callable[[Any], list[Labels]]:
        r"""What gives, once the function has been called, the labels of the tensors in its output."""
        name = name.strip("_")
        given = [get(t) or constant(t) for t in tensors((args, kwargs))]
        if any(isinstance(each, Lost) for each in given):
            return lambda out: [self.lost(given, "") for _ in tensors(out)]
        made = self._made(name, function, args, kwargs, lambda t: get(t) or constant(t))
        return made if callable(made) else lambda out: [made for _ in tensors(out)]

    def _made(self, name: str, function: Any, args: Any, kwargs: Any, get: Callable[[Tensor], Labels]) -> Any:
        given = [get(t) for t in tensors((args, kwargs))]
        by_name: dict[str, Callable[[], Any]] = {
            "setitem": lambda: self._assigned(function, args, get),
            "linear": lambda: self.linear(given),
            "cdist": lambda: self.distances(given),
            "glu": lambda: self._gated(args, kwargs, given[0]),
            "one_hot": lambda: lambda out: [self._placed(given[0], out.shape[-1])],
            "copy": lambda: lambda out: [self.met(given[1:], out.shape, name)],
            "zero": lambda: constant_of,
            "embedding": lambda: self._embedded(args, kwargs, get),
            "scaled_dot_product_attention": lambda: self.attention(args, kwargs, given, get),
        }
        by_name |= dict.fromkeys(kinds.JOINING, lambda: self._joined(function, args, kwargs, get))
        by_name |= dict.fromkeys(kinds.MOVEMENT, lambda: self._moved(name, function, args, kwargs, get))
        by_name |= dict.fromkeys(kinds.POINTWISE, lambda: lambda out: [self.met(given, next(tensors(out)).shape, name)])
        by_name |= dict.fromkeys(kinds.REDUCTIONS, lambda: self._reduced(name, args, kwargs, given[0]))
        by_name |= dict.fromkeys(kinds.CASTS, lambda: given[0])
        by_name |= dict.fromkeys(kinds.ALONG, lambda: self.along(given[0], (_axis(name, args, kwargs),)))
        by_name |= dict.fromkeys(kinds.CHOOSING, lambda: self._choosing(name, args, kwargs, given[0]))
        by_name |= dict.fromkeys(kinds.NORMS, lambda: self._normed(name, args, kwargs, given))
        by_name |= dict.fromkeys(kinds.SUMS, lambda: self._added(name, given))
        by_name |= dict.fromkeys(kinds.PRODUCTS, lambda: self.multiplied(name, function, args, given))
        by_name |= dict.fromkeys(kinds.MAPS, lambda: lambda out: [self.resampled(given, t, name) for t in tensors(out)])
        if name in ("max", "min") and len(list(tensors(args))) > 1:
            name = "maximum"
        unknown = f"{name or 'what torch does not show'} is not known here"
        # What puts out no tensor, as `size` does, loses nothing.
        return by_name.get(name, lambda: lambda out: [self.lost(given, unknown) for _ in tensors(out)])()

    def _gated(self, args: Any, kwargs: Any, label: Labels) -> Any:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        halves = self._each(label, lambda names: list(names.chunk(2, dim)), "glu", 2)
        return lambda out: [self.met(halves, out.shape, "glu")]

    def _choosing(self, name: str, args: Any, kwargs: Any, label: Labels) -> Any:
        r"""What depends on the order along an axis: known where the group leaves that axis alone."""
        at, default = kinds.CHOOSING[name]
        dim = kwargs.get("dim", args[at] if len(args) > at else default)
        if isinstance(label, Raw) and not label.sources:
            return constant_of
        if not isinstance(label, Moved) or dim is None or not self.stays(label, dim):
            return self.lost([label], f"{name} depends on the order along an axis that the group moves", uneven=True)
        rows = [gathered(each, (dim,), keepdim=True) for each in label.names]

        def chosen(t: Tensor) -> Labels:
            if t.ndim < rows[0].ndim:
                return Moved(tuple(each.squeeze(dim) for each in rows))
            place = torch.arange(t.shape[dim]).view(-1, *(1,) * ((t.ndim - 1 - dim) % t.ndim)) + (self.salt << 40)
            return Moved(tuple(mixed(each, place) for each in rows))

        return lambda out: [chosen(t) for t in tensors(out)]

    def _placed(self, label: Labels, count: int) -> Labels:
        r"""One entry for each number, at a new last axis."""
        if not isinstance(label, Moved):
            return label if isinstance(label, Lost) else self.lost([label], "one_hot of parameters")
        return Moved(tuple(mixed(each[..., None], torch.arange(count)) for each in label.names))

    def _normed(self, name: str, args: Any, kwargs: Any, given: Sequence[Labels]) -> Any:
        shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
        normal = self.along(given[0], range(-len(shape), 0))
        return lambda out: [self.met([normal, *given[1:]], next(tensors(out)).shape, name)]

    def _added(self, name: str, given: Sequence[Labels]) -> Any:
        product = self.product(given[1:], torch.matmul)
        return lambda out: [self.met([given[0], product], out.shape, name)]

    def _moved(self, name: str, function: Any, args: Any, kwargs: Any, get: Callable[[Tensor], Labels]) -> Any:
        r"""The same function on the names of its first tensor."""
        data = args[0] if args else kwargs["input"]
        label, index = get(data), [get(t) for t in tensors((args[1:], kwargs)) if t is not data]
        rows = name == "getitem" and isinstance(label, Raw) and data.ndim == 2 and isinstance(args[1], Tensor)
        if rows and args[1].dtype != torch.bool and isinstance(index[0], Moved):
            return self._embedded((args[1], data), {}, get)
        if any(isinstance(each, Moved) for each in index) and getattr(function, "__name__", "") not in (
            *("expand_as", "view_as", "reshape_as"),
        ):
            hint = "one_hot and a product with it are followed"
            return self.lost([label, *index], f"{name} looks things up by what comes from the image; {hint}")

        def on(names: Tensor) -> list[Tensor]:
            replaced = mapped(lambda t: _bits(names) if t is data else t, (args, kwargs))
            return [t.view(torch.int64) for t in tensors(function(*replaced[0], **replaced[1]))]

        return lambda out: self._each(label, on, name, len(list(tensors(out))))

    def _each(self, label: Labels, on: Callable[[Tensor], list[Tensor]], name: str, count: int) -> list[Labels]:
        if isinstance(label, Lost):
            return [label] * count
        if isinstance(label, Moved):
            columns = zip(*(on(each) for each in label.names), strict=True)
            if count == 1 and label.cut is None and name in kinds.REARRANGING:
                return [dataclasses.replace(label, names=tuple(column)) for column in columns]
            return [self.part(label, column, self._taken(name, label.names[0], column[0])) for column in columns]
        columns = zip(*(on(each) for each in (label.constant, *label.sources)), strict=True)
        return [Raw(first, tuple(rest)) for first, *rest in columns]

    def _taken(self, name: str, whole: Tensor, part: Tensor) -> str:
        r"""Why what a slice or a split puts out may be no whole."""
        if self.doubt:
            return self.doubt
        what = "a slice" if name == "getitem" else name
        n, width = self.group.order, part.shape[-1] if part.ndim else 1
        reason = (
            f"{what} takes {tuple(part.shape)} of {tuple(whole.shape)} without all that the group exchanges it with"
        )
        fields = part.ndim == whole.ndim and width != whole.shape[-1] and width % n
        return (
            f"{reason}; {width} channels are no whole fields of |G| = {n}: {whole_widths(width, n)} are"
            if fields
            else reason
        )

    def _embedded(self, args: Any, kwargs: Any, get: Callable[[Tensor], Labels]) -> Any:
        r"""Rows of a table."""
        index, table = (*args, kwargs.get("weight"))[:2]
        chosen = get(index)
        if isinstance(chosen, Moved):  # any row may be looked up: all of them are alike over the fiber
            rows = get(table)
            rows = self.settled(rows) if isinstance(rows, Raw) else rows
            if not isinstance(rows, Moved):
                return self.lost([chosen, rows], "it looks up by what comes from the image")
            width, names = table.shape[-1], [each[..., None] for each in chosen.names]
            return fresh_rows(names, planes(self.group, width, fibered=True), self.salt)
        return lambda out: self._each(get(table), lambda names: [names[index]], "embedding", len(list(tensors(out))))

    def _joined(self, function: Any, args: Any, kwargs: Any, get: Callable[[Tensor], Labels]) -> Labels:
        r"""Side by side; parameters beside what is moved have to be left alone by what it does along the other axes."""
        parts = list(tensors((args, kwargs)))
        labels = [get(t) for t in parts]
        moved = next((each for each in labels if isinstance(each, Moved)), None)

        def on(names: Sequence[Tensor]) -> Tensor:
            waiting = iter(names)
            replaced = mapped(lambda _: _bits(next(waiting)), (args, kwargs))
            out: Tensor = function(*replaced[0], **replaced[1])
            return out.view(torch.int64)

        if moved is None:
            raws = [each for each in labels if isinstance(each, Raw)]
            most = max(len(each.sources) for each in raws)
            none = [torch.full_like(each.constant, -1) for each in raws]
            columns = [[*each.sources, *[no] * (most - len(each.sources))] for each, no in zip(raws, none, strict=True)]
            sources = tuple(on([column[i] for column in columns]) for i in range(most))
            return Raw(on([each.constant for each in raws]), sources)
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
        joined = [self._beside(each, moved, () if function is torch.stack else (dim,)) for each in labels]
        names = [on([each.names[k] for each in joined]) for k in range(len(moved.names))]
        return self.checked(names, labels, "it joins features that the group moves differently")

    def _beside(self, label: Labels, partner: Moved, dims: Sequence[int]) -> Moved:
        r"""Its entries, with the names too of what they stand beside."""
        if isinstance(label, Moved):
            return label
        constant = label.constant if isinstance(label, Raw) else partner.names[0]
        rest = [gathered(each, dims, keepdim=True) for each in partner.names]
        if not isinstance(label, Raw) or not label.sources or isinstance(self.tied(label, rest), Lost):
            return Moved((constant,) * len(partner.names))
        return Moved(tuple(mixed(self.ties.names(label), each) for each in rest))

    def _assigned(self, function: Any, args: Any, get: Callable[[Tensor], Labels]) -> Labels:
        r"""Entries of a tensor that are overwritten by those of another, or by a number."""
        target, index, value = args
        if any(isinstance(get(t), Moved) for t in tensors(index)):
            return self._masked(target, index, value, get)
        labels = [get(target), *([get(value)] if isinstance(value, Tensor) else [])]
        moved = next((each for each in labels if isinstance(each, Moved)), None)
        if any(isinstance(each, Raw) and each.sources for each in labels):
            return self.lost(labels, "parameters are assigned to parts of a tensor")
        made = []
        for k in range(len(moved.names) if moved is not None else 1):
            names = [each.names[k] if isinstance(each, Moved) else each.constant for each in labels]  # type: ignore[union-attr]
            whole = names[0].expand(target.shape).clone()
            new = names[1] if len(names) > 1 else hashed(torch.tensor(int(value * 2**20)))
            function(_bits(whole), index, _bits(new))
            made.append(whole)
        return Raw(made[0]) if moved is None else self.checked(made, labels, "it assigns places lopsidedly")

    def _masked(self, target: Tensor, mask: Any, value: Any, get: Callable[[Tensor], Labels]) -> Labels:
        r"""Entries that are overwritten where what comes from the image says, all by one number."""
        given = [get(t) for t in tensors((target, mask, value))]
        number = not isinstance(value, Tensor) or value.numel() == 1
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not number:
            return self.lost(given, "it assigns where the image says what is not one number")
        wide = _shaped(given[1], lambda t: t.view(*t.shape, *(1,) * (target.ndim - mask.ndim)))
        return self.met([given[0], wide, *given[2:]], target.shape, "an assignment")

    def overwritten(self, whole: Tensor, label: Labels, part: Tensor, new: Labels) -> Labels:
        r"""The label of a tensor, some numbers of which are those of another one that was changed in place."""
        if _places(whole) == _places(part):
            return new
        if any(isinstance(each, Lost) or (isinstance(each, Raw) and each.sources) for each in (label, new)):
            return self.lost([label, new], "it is changed in place by a view of it")
        where = [torch.arange(len(_storage(t))).as_strided(*_places(t)) for t in (whole, part)]
        made, count = [], max(len(each.names) if isinstance(each, Moved) else 1 for each in (label, new))
        for k in range(count):
            before, after = (each.names[k] if isinstance(each, Moved) else each.constant for each in (label, new))  # type: ignore[union-attr]
            memory = before.new_zeros(len(_storage(whole)))
            memory[where[0]] = before
            memory[where[1]] = after
            made.append(memory[where[0]])
        if count == 1:
            return Raw(made[0])
        return self.checked(made, [label, new], "it changes places in place that the group exchanges with others")

    def _reduced(self, name: str, args: Any, kwargs: Any, label: Labels) -> Labels | Callable[[Any], list[Labels]]:
        at = kinds.REDUCTIONS[name]
        dims = kwargs.get("dim", kwargs.get("axis", args[at] if len(args) > at else None))
        if isinstance(label, Raw):
            if label.sources:
                return self.lost([label], "parameters are summed before they meet features")
            return constant_of
        if not isinstance(label, Moved):
            return label
        ndim = label.names[0].ndim
        dims = range(ndim) if dims is None else (dims,) if isinstance(dims, int) else dims

        def reduced(out: Any) -> list[Labels]:
            first, *others = tensors(out)
            whole = [each if label.summed else hashed(each) for each in label.names]
            names = [each.sum(tuple(dims), keepdim=True).reshape(first.shape) for each in whole]
            what = f"{name} over axes {tuple(dims)} of {tuple(whole[0].shape)} takes parts of fibers, or of places"
            part = self.part(label, names, what)
            made: Labels = Moved(tuple(names))
            if part.cut is not None and name in ("sum", "mean"):  # perhaps over the rest of them next
                made = dataclasses.replace(part, summed=True)
            elif part.cut is not None:
                made = self.lost([part], what, uneven=True)
            if others and not (isinstance(dims, Sequence) and len(dims) == 1 and self.stays(label, dims[0])):
                return [made, *(self.lost([label], "places of the largest are not known") for _ in others)]
            salt = self.salt
            return [made, *(Moved(tuple(hashed(each + salt) for each in names)) for _ in others)]

        return reduced

    def resampled(self, given: Sequence[Labels], out: Tensor, name: str) -> Labels:
        r"""Maps on another grid."""
        label = given[0]
        if isinstance(label, Raw) and len(label.sources) == 1 and out.ndim == 4:
            if out.shape == label.constant.shape:
                return label
            return self.ties.resize(label, out.shape, self.where)
        if isinstance(label, Moved) and out.ndim == 3 and out.shape[-1] == 1:
            return self.checked(
                [gathered(each, (-1,), keepdim=True) for each in label.names], given, f"{name} takes parts"
            )
        if not isinstance(label, Moved) or out.ndim != 4:
            return self.lost(given, f"{name} is not known here of what is no map")
        if out.shape[-2:] == (1, 1):
            names = [gathered(each, (-2, -1), keepdim=True) for each in label.names]
            return self.checked(names, given, f"{name} sums over places that the group exchanges with others")
        return self.mapped(label, out.shape)

    def mapped(self, label: Labels, shape: Sequence[int], *, fibered: bool | None = None) -> Labels:
        r"""A map that a layer makes of one; fibered: whether its channels are whole fields, as of its input if None."""
        if not isinstance(label, Moved):
            return label
        names, n = label.names, self.group.order
        if fibered and shape[1] != 1 and shape[1] % n:
            works = whole_widths(shape[1], n)
            return self.lost([label], f"{shape[1]} channels are no whole fields of |G| = {n}: {works} are")
        grid = torch.empty(tuple(shape), device="meta")
        map_ = names[0].ndim == 4 and all(
            self.group.act(g, grid).shape == grid.shape for g in self.group.generating_set()
        )
        if map_ and turns_as_map(self.group, names, fibered=False):
            own = False
        elif map_ and names[0].shape[1] % n == 0 and turns_as_map(self.group, names, fibered=True):
            own = True
        else:
            return self.lost([label], "it reads what does not turn as a map does", uneven=True)
        fibered = own if fibered is None else fibered
        return fresh_map(self.group, shape, self.salt, fibered=fibered and shape[1] % n == 0)


def _axis(name: str, args: Any, kwargs: Any) -> int:
    at = kinds.ALONG[name]
    axis: int = kwargs.get("dim", args[at] if len(args) > at else 1 if name == "normalize" else -1)
    return axis


def _storage(t: Tensor) -> Tensor:
    r"""All numbers in the memory that a tensor is a view of."""
    return t.new_empty(0).set_(t.untyped_storage())


def _places(t: Tensor) -> tuple[Sequence[int], Sequence[int], int]:
    return tuple(t.shape), t.stride(), int(t.storage_offset())


def constant_of(out: Any) -> list[Labels]:
    r"""The labels of constants."""
    return [constant(t) for t in tensors(out)]


def _bits(names: Tensor) -> Tensor:
    r"""Names as numbers that every function can move."""
    return names.view(torch.float64)
