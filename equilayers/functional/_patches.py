r"""Convolutions as group correlations of patches, computed once for every turn of the input.

For fiber element u the patch at p is read with its taps turned by u: `A[p, u, (t, c)] = f[c, u, p + u·t]`. Then a group
convolution is the group correlation of A over u, position by position, and `_correlation` does the rest.

Why it is bitwise equivariant whatever a matrix product does: the output positions are split into orbits, p = k·q with q
among the representatives, and the positions of one k, a *frame*, go through products of their own. Read from frame k,
fiber element k·u and all, the input looks like the input turned by k^-1 does from frame 0:

    A_k[q, u, (t, c)] = f[c, k·u, k·q + k·u·t]

so turning the input exchanges the frames, and each frame is the same numbers in the same places of equal memory. Of the
frames that a position fixed by some elements could take, it takes one; turning the input may exchange that for another
one in which its fiber is permuted, which the exact transforms in `_fourier` carry over bit by bit. All other positions
may use the transform with the fewest products.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from equilayers.functional._correlation import operators_of, transform, weight_planes_of
from equilayers.functional._filters import expand, from_planes, moved_places, reversed_weight, to_planes
from equilayers.functional._fourier import Fourier
from equilayers.functional._geometry import Geometry, Pair
from equilayers.functional._tables import orbit_table
from equilayers.groups import Dihedral, Group

Table = NDArray[np.int64]

BLOCK_BYTES = 3_000_000  # of patches per block


@dataclass(frozen=True, eq=False)
class Part:
    r"""Some orbits of output positions, represented by Q of them, and the frames k they are computed in.

    start: (frames, Q), places of k·q in the padded input.
    taps: (frames, |G|·M), how far from there the tap of (u, m) lies, fiber and all.
    target: (frames, Q·|G|), places of (k·u, k·q) in the output.
    free: whether no element fixes any of the positions.
    share: (Q, 1, 1), one over the number of frames that a position of the orbit is computed in; None where it is one.
    """

    start: Tensor
    taps: Tensor
    target: Tensor
    free: bool
    share: Tensor | None

    def split(self, orbits: int) -> list[Part]:
        r"""The same in pieces of at most so many orbits."""
        q = self.start.shape[1]
        if q <= orbits:
            return [self]
        n = self.target.shape[1] // q
        cuts = [slice(first, min(first + orbits, q)) for first in range(0, q, orbits)]
        share = lambda cut: None if self.share is None else self.share[cut]  # noqa: E731
        target = self.target.unflatten(1, (q, n))
        tables = ((self.start[:, cut], self.taps, target[:, cut].flatten(1)) for cut in cuts)
        return [Part(*three, self.free, share(cut)) for three, cut in zip(tables, cuts, strict=True)]


@functools.lru_cache(maxsize=128)
def parts(group: Group, geometry: Geometry, size: Pair, lifting: bool, device: torch.device) -> tuple[Part, ...]:
    r"""How the outputs for an input of this size are computed.

    Free orbits take every frame. Under a dihedral group any other position is fixed by a mirror, so that turns alone
    reach its whole orbit; under turns the one other position is the centre, which one frame reaches.
    """
    n, out = group.order, geometry.out_size(size)
    (ph, pw), (sh, sw) = geometry.padding, geometry.stride
    padded = size[0] + 2 * ph, size[1] + 2 * pw
    inside, outside = moved_places(group, padded), moved_places(group, out)
    taps = _taps(group, geometry, inside, padded, lifting)
    representatives = np.flatnonzero(outside.min(0) == np.arange(out[0] * out[1]))
    fixers = (outside[:, representatives] == representatives).sum(0)
    made = []
    for free, frames in (True, n), (False, group.n if isinstance(group, Dihedral) else 1):
        chosen = (fixers == 1) == free
        q = representatives[chosen]
        start = inside[:frames, sh * (q // out[1]) * padded[1] + sw * (q % out[1])]
        target = group.cayley_table[:frames, None, :] * (out[0] * out[1]) + outside[:frames, q, None]
        share = n / (fixers[chosen] * frames)
        tensor = functools.partial(torch.tensor, device=device)
        weights = None if (share == 1).all() else tensor(share).view(-1, 1, 1)
        part = Part(tensor(start), tensor(taps[:frames]), tensor(target.reshape(frames, -1)), free, weights)
        made += [part] if len(q) else []
    return tuple(made)


def _taps(group: Group, geometry: Geometry, inside: Table, padded: Pair, lifting: bool) -> Table:
    r"""Table (|G|, |G|·M): how far the tap (k·u, k·u·t) lies from k·p, for all t or, lifting, one of each orbit."""
    n, (kh, kw), (dh, dw) = group.order, geometry.kernel_size, geometry.dilation
    taps = orbit_table(group, (kh, kw)).gather.view(n, -1).numpy() if lifting else moved_places(group, (kh, kw))
    reach = inside[:, dh * (taps // kw) * padded[1] + dw * (taps % kw)] - inside[:, :1, None]  # (k, u, m)
    fiber = group.cayley_table * (0 if lifting else padded[0] * padded[1])
    return (reach + fiber[:, :, None]).reshape(n, -1)


@dataclass(frozen=True)
class PatchKernel:
    r"""The `Kernel` of a convolution with zero padding.

    x is a feature (B, C, |G|, H, W), or an image (B, C, H, W) where `lifting`; y (B, O, |G|, H', W') lies in memory as
    (B, |G|, H', W', O), which the next layer reads without turning it around.
    """

    group: Group
    fast: Fourier
    exact: Fourier
    geometry: Geometry
    size: Pair
    lifting: bool
    features_axis: int = 1

    def correlate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.apply(x, self.operators(weight), bias, weight.shape[0])

    def operators(self, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        r"""What `apply` needs of the weight: the matrices of the fast transform, and those of the exact one."""
        if self.lifting:
            table = orbit_table(self.group, self.geometry.kernel_size, weight.device)
            places = table.weight_planes(weight.flatten(2).flatten(0, 1)).unflatten(0, weight.shape[:2])
            planes = places.permute(0, 2, 3, 1).flatten(2)
        else:
            planes = to_planes(weight, self.group)
        return operators_of(planes, self.fast), operators_of(planes, self.exact)

    def apply(
        self, x: Tensor, operators: tuple[list[Tensor], list[Tensor]], bias: Tensor | None, features: int
    ) -> Tensor:
        r"""The output for x and prepared operators."""
        height, width = self.geometry.out_size(self.size)
        out = x.new_empty(x.shape[0], self.group.order, height, width, features)
        fast, exact = operators
        orders: dict[int, Tensor] = {}  # where each output stands among the results, by the number of samples
        for samples, steps in self._blocks(x):
            block = out[samples].view(-1, features)
            results, targets = [], []
            for patches, target, part in steps:
                transformed = (fast, bias, self.fast) if part.free else (exact, bias, self.exact)
                results.append(transform(patches, *transformed).view(-1, features))
                targets.append(target)
            if len(block) not in orders:
                places = torch.cat(targets)
                steps_of = torch.arange(len(places), device=x.device)
                orders[len(block)] = places.new_empty(len(block)).index_copy_(0, places, steps_of)
            torch.index_select(torch.cat(results), 0, orders[len(block)], out=block)
        return out.permute(0, 4, 1, 2, 3)

    def spread(self, v: Tensor, weight: Tensor) -> Tensor:
        geometry, out = self.geometry, self.geometry.out_size(self.size)
        if geometry.stride == (1, 1) and not self.lifting:  # a group convolution of the same kind
            padding = geometry.spans[0] - geometry.padding[0], geometry.spans[1] - geometry.padding[1]
            back = replace(self, geometry=replace(geometry, padding=padding), size=out)
            return back.correlate(v, reversed_weight(weight, self.group), None)
        rest = [room % stride for room, stride in zip(geometry.rooms(self.size), geometry.stride, strict=True)]
        filters, g = expand(weight, self.group), geometry
        x = F.conv_transpose2d(v.flatten(1, 2), filters, None, g.stride, g.padding, rest, 1, g.dilation)
        return x if self.lifting else x.unflatten(1, (-1, self.group.order))

    def compare(self, v: Tensor, x: Tensor) -> Tensor:
        planes = weight_planes_of(self._pairs(v, x), self.fast)
        if not self.lifting:
            return from_planes(planes, self.group, self.geometry.kernel_size)
        table = orbit_table(self.group, self.geometry.kernel_size, x.device)
        flat = planes.unflatten(2, (-1, x.shape[1])).permute(0, 3, 1, 2).flatten(2)  # (O, C, |G|·M)
        # A weight is divided among its places, and their gradients agree: one place stands for the sum.
        return flat.index_select(2, table.first).unflatten(2, self.geometry.kernel_size)

    def _pairs(self, v: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        r"""Planes of v (rows, |G|, O) and of the patches (rows, |G|, M·C) they meet, every position once."""
        n, features = self.group.order, v.shape[1]
        last = v.permute(0, 2, 3, 4, 1).contiguous()
        for samples, steps in self._blocks(x):
            for patches, target, part in steps:
                planes = last[samples].view(-1, features).index_select(0, target).view(-1, n, features)
                if part.share is not None:
                    planes = (planes.unflatten(0, (-1, len(part.share))) * part.share.to(v.dtype)).flatten(0, 1)
                yield planes, patches

    def _blocks(self, x: Tensor) -> Iterator[tuple[slice, Iterator[tuple[Tensor, Tensor, Part]]]]:
        r"""Samples, and for each frame their patches (rows, |G|, M·C), the places of the outputs, and the part.

        The patches of all frames share one buffer: memory that is new each time costs more than what is done in it.
        """
        batch, channels = x.shape[:2]
        rows, pieces = self._pieces(batch, channels * x.element_size(), x.device)
        step = torch.arange(rows, device=x.device)[:, None]
        inputs, outputs = step * self._inputs, step * self._outputs
        frames = [
            ((inputs + start)[:, :, None] + taps, outputs + target, piece)
            for piece in pieces
            for start, taps, target in zip(piece.start, piece.taps, piece.target, strict=True)
        ]
        buffer = x.new_empty(max(places.numel() for places, _, _ in frames), channels)

        def steps(block: Tensor) -> Iterator[tuple[Tensor, Tensor, Part]]:
            source, count = self._padded(block), len(block)
            for places, target, piece in frames:
                chosen = places[:count].flatten()
                patches = torch.index_select(source, 0, chosen, out=buffer[: len(chosen)])
                yield patches.view(count * places.shape[1], self.group.order, -1), target[:count].flatten(), piece

        for first in range(0, batch, rows):
            samples = slice(first, min(first + rows, batch))
            yield samples, steps(x[samples])

    @property
    def _inputs(self) -> int:
        (height, width), (ph, pw) = self.size, self.geometry.padding
        return (1 if self.lifting else self.group.order) * (height + 2 * ph) * (width + 2 * pw)

    @property
    def _outputs(self) -> int:
        return self.group.order * math.prod(self.geometry.out_size(self.size))

    def _pieces(self, batch: int, entry_bytes: int, device: torch.device) -> tuple[int, list[Part]]:
        r"""How many samples make a block, and the parts in pieces that fit one."""
        whole = parts(self.group, self.geometry, self.size, self.lifting, device)
        orbit_bytes = whole[0].taps.shape[1] * entry_bytes
        rows = BLOCK_BYTES // (orbit_bytes * max(part.start.shape[1] for part in whole))
        pieces = [piece for part in whole for piece in part.split(max(1, BLOCK_BYTES // orbit_bytes))]
        return min(max(rows, 1), batch), pieces

    def _padded(self, x: Tensor) -> Tensor:
        r"""Rows of C channels: the padded maps of all samples and fiber elements, one after the other."""
        ph, pw = self.geometry.padding
        last = x.movedim(1, -1)
        padded = F.pad(last, (0, 0, pw, pw, ph, ph)) if ph or pw else last
        return padded.reshape(-1, x.shape[1])
