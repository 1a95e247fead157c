r"""What becomes of labels in products of two tensors that come from the image, and in attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equilayers.convert._equivariant.labels import (
    Labels,
    Lost,
    Moved,
    Raw,
    balanced,
    gathered,
    hashed,
    mixed,
    whole_widths,
)
from equilayers.convert._equivariant.meeting import ASYMMETRIC, CAUSAL, Meeting

Axes = tuple[int, int]
MULTIPLIED = f"it multiplies what the group moves differently; of windows: {ASYMMETRIC}"


class Pairing(Meeting):
    r"""The labels of sums over pairs of entries."""

    def along(self, label: Labels, dims: Sequence[int]) -> Labels:
        r"""Entries that are computed from all along some axes, and keep their places."""
        if isinstance(label, Moved):
            names = [mixed(each, gathered(each, dims, keepdim=True).expand_as(each)) for each in label.names]
            made = self.checked(names, [label], "it normalises parts of fibers", fresh=True)
            return dataclasses.replace(made, pairs=label.pairs) if isinstance(made, Moved) else made
        if isinstance(label, Raw) and label.sources and list(dims) == [-1]:
            return self.along(self.settled(label), dims)
        if isinstance(label, Raw) and label.sources:
            return self.lost([label], "parameters are normalised before they meet features")
        if isinstance(label, Raw):
            return Raw(mixed(label.constant, gathered(label.constant, dims, keepdim=True).expand_as(label.constant)))
        return label

    def product(self, given: Sequence[Labels], function: Callable[..., Tensor], summed: Axes = (-1, -2)) -> Labels:
        r"""Sums of products of the entries of two tensors, over one axis of each: made of the sets of pairs."""
        if any(isinstance(each, Lost) for each in given):
            return self.lost(given, "")
        if any(isinstance(each, Raw) and each.sources for each in given):
            return self.lost(given, "parameters are multiplied with features by hand")
        moved = [each for each in given if isinstance(each, Moved)]
        if not moved:
            names = [hashed(each.constant + i) for i, each in enumerate(given) if isinstance(each, Raw)]
            return Raw(function(*names))
        several = [each.names if isinstance(each, Moved) else (each.constant,) * len(moved[0].names) for each in given]  # type: ignore[union-attr]
        names = [
            hashed(function(*(hashed(t + i) for i, t in enumerate(column)))) for column in zip(*several, strict=True)
        ]
        whole = all(
            balanced([gathered(t, (axis,)) for t in each.names])
            for each, axis in zip(given, summed, strict=False)
            if isinstance(each, Moved) and each.names[0].ndim >= -axis
        )
        reason = MULTIPLIED if whole else self._partial(moved[0])
        made = self.checked(names, given, reason)
        pairs = len(moved) > 1 and not any(each.pairs for each in moved)
        return dataclasses.replace(made, pairs=pairs) if isinstance(made, Moved) else made

    def _partial(self, label: Moved) -> str:
        width, n = label.names[0].shape[-1], self.group.order
        if width % n:
            return f"a head width of {width} holds no whole fibers of |G| = {n}; {whole_widths(width, n)} does"
        return "it sums over parts of fibers"

    def attention(self, args: Any, kwargs: Any, given: Sequence[Labels], get: Callable[[Tensor], Labels]) -> Labels:
        r"""Of the function of torch."""
        q, k, v = given[:3]
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        if kwargs.get("is_causal", args[5] if len(args) > 5 else False):
            return self.lost(given, CAUSAL)
        scores = self.product([q, k], lambda a, b: a @ b.transpose(-1, -2), (-1, -1))
        if isinstance(mask, Tensor) and isinstance(scores, Moved):
            scores = self.met([scores, get(mask)], scores.names[0].shape, "attn_mask")
        weights = self.along(scores, (-1,))
        if isinstance(weights, Lost) or not isinstance(v, Moved):
            return self.lost([*given, weights], "its values do not come from the image")
        return self.checked(
            [hashed(w @ hashed(t)) for w, t in zip(weights.names, v.names, strict=True)]
            if isinstance(weights, Moved)
            else v.names,
            given,
            "attention mixes values that the group moves differently",
        )

    def attended(self, module: nn.MultiheadAttention, given: dict[str, Any], get: Callable[[Tensor], Labels]) -> Labels:
        r"""Tokens (B, N, 1) that attention puts out: each is made of the set of its pairs with the tokens it sees."""
        labels = [get(given[name]) for name in ("query", "key", "value")]
        if not all(isinstance(each, Moved) for each in labels):
            return self.lost(labels, "its tokens do not come from the image")
        q, k, v = ([self._tokens(module, t) for t in each.names] for each in labels if isinstance(each, Moved))
        pairs: Labels = Moved(
            tuple(mixed(a[:, None, :, None], mixed(b, c)[:, None, None]) for a, b, c in zip(q, k, v, strict=True)),
            pairs=True,
        )
        for name in ("attn_mask", "key_padding_mask"):
            mask = given.get(name)
            if mask is not None and isinstance(pairs, Moved):
                label = get(mask)
                if name == "key_padding_mask":
                    label = _shaped(label, lambda t: t.view(-1, 1, 1, t.shape[-1]))
                elif mask.ndim == 3:
                    label = _shaped(label, lambda t: t.unflatten(0, (-1, module.num_heads)))
                shape = torch.broadcast_shapes(pairs.names[0].shape, mask.shape[-1:], _first(label).shape)
                pairs = self.met([pairs, label], shape, name)
        if not isinstance(pairs, Moved):
            return pairs
        names = [gathered(each, (1, 3))[..., None] for each in pairs.names]
        if given["query"].ndim == 2:
            names = [each[0] for each in names]
        elif not module.batch_first:
            names = [each.transpose(0, 1) for each in names]
        return self.checked(names, labels, "attention mixes values that the group moves differently")

    def _tokens(self, module: nn.MultiheadAttention, names: Tensor) -> Tensor:
        r"""Names (B, N) of whole tokens."""
        names = gathered(names, (-1,))
        if names.ndim == 1:
            return names[None]
        return names if module.batch_first else names.T


def _first(label: Labels) -> Tensor:
    return label.names[0] if isinstance(label, Moved) else label.constant  # type: ignore[union-attr]


def _shaped(label: Labels, view: Callable[[Tensor], Tensor]) -> Labels:
    if isinstance(label, Moved):
        return dataclasses.replace(label, names=tuple(map(view, label.names)))
    if isinstance(label, Raw):
        return Raw(view(label.constant), tuple(map(view, label.sources)))
    return label
