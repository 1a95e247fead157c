r"""Convolutions as group correlations of patches, computed once for every rotation of the input.

For fiber element u the patch at p is read with its taps rotated by u: `A[p, u, (t, c)] = f[c, u, p + u·t]`. Then a
group convolution is the group correlation of A over u, position by position, and `correlation` does the rest.

Why it is bitwise equivariant whatever a matrix product does: the output positions are split into orbits, p = k·q with q
among the representatives, and the positions of one k, a *frame*, go through products of their own. Read from frame k,
fiber element k·u and all, the input looks like the input rotated by k^-1 does from frame 0:

    A_k[q, u, (t, c)] = f[c, k·u, k·q + k·u·t]

so rotating the input exchanges the frames, and each frame is the same numbers in the same places of equal memory. Of
the frames that a position fixed by some elements could take, it takes one; rotating the input may exchange that for
another one in which its fiber is permuted, which the exact transforms in `_fourier` carry over bit by bit. All other
positions may use the transform with the fewest products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._convolution.filters import expand, from_planes, reversed_weight, to_planes
from equilayers.functional._convolution.frames import Part, parts
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._fourier.correlation import operators_of, transform, weight_planes_of
from equilayers.functional._fourier.irreps import Fourier
from equilayers.functional._fourier.orbits import orbit_table
from equilayers.functional.cost import BLOCK_ROWS

# Patches of one block and frame: rows enough to keep a matrix product busy, bytes enough to be worth a call, no more,
# for what the caches of a core hold costs least.
BLOCK_BYTES, MOST_BYTES = 1_500_000, 6_000_000


class Frame(NamedTuple):
    r"""One frame of a part, for as many samples as make a block.

    places: (samples, Q, |G|·M), what the patches read of the padded input. target: (samples, Q·|G|), places of outputs.
    """

    places: Tensor
    target: Tensor
    part: Part


@dataclass(frozen=True)
class PatchKernel:
    r"""The `Kernel` of a convolution with zero padding.

    x is a feature (B, C, |G|, H, W), or an image (B, C, H, W) where the convolution lifts; y (B, O, |G|, H', W')
    lies in memory as (B, |G|, H', W', O), which the next layer reads as it is.
    """

    spec: ConvSpec
    fast: Fourier
    exact: Fourier
    size: Pair

    def correlate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.apply(x, self.operators(weight), bias, weight.shape[0])

    def bias_gradient(self, v: Tensor) -> Tensor:
        return v.sum((0, 2, 3, 4))

    def operators(self, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        r"""The matrices of the fast transform of the weight, and those of the exact one."""
        if self.spec.lifting:
            table = orbit_table(self.spec.group, self.spec.kernel_size, weight.device)
            places = table.weight_planes(weight.flatten(2).flatten(0, 1)).unflatten(0, weight.shape[:2])
            planes = places.permute(0, 2, 3, 1).flatten(2)
        else:
            planes = to_planes(weight, self.spec.group)
        return operators_of(planes, self.fast), operators_of(planes, self.exact)

    def apply(
        self, x: Tensor, operators: tuple[list[Tensor], list[Tensor]], bias: Tensor | None, features: int
    ) -> Tensor:
        r"""The output for x and prepared operators."""
        height, width = self.spec.out_size(self.size)
        size = len(x), features, self.spec.group.order, height, width
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        last = out.permute(0, 2, 3, 4, 1)
        fast, exact = operators
        each = sum(part.outputs for part in parts(self.spec, self.size, x.device))
        results = x.new_empty(0, features)
        orders: dict[int, Tensor] = {}  # where each output stands among the results, by the number of samples
        for samples, steps in self._blocks(x):
            block = last[samples].view(-1, features)
            if not len(results):  # the first block is the largest
                results = x.new_empty(len(block) // self._outputs * each, features)
            targets, end = [], 0
            for patches, target, part in steps:
                start, end = end, end + len(target)
                planes = results[start:end].view(*patches.shape[:2], features)
                weights, method = (fast, self.fast) if part.free else (exact, self.exact)
                transform(patches, weights, bias, method, planes)
                targets.append(target)
            if len(block) not in orders:
                places = torch.cat(targets)
                count = torch.arange(len(places), device=x.device)
                orders[len(block)] = places.new_empty(len(block)).index_copy_(0, places, count)
            torch.index_select(results[:end], 0, orders[len(block)], out=block)
        return out

    def input_adjoint(self, v: Tensor, weight: Tensor) -> Tensor:
        spec, out = self.spec, self.spec.out_size(self.size)
        if spec.stride == (1, 1) and not spec.lifting:  # a group convolution of the same kind
            padding = spec.spans[0] - spec.padding[0], spec.spans[1] - spec.padding[1]
            back = replace(self, spec=replace(spec, padding=padding), size=out)
            return back.correlate(v, reversed_weight(weight, self.spec.group), None)
        rest = [span % stride for span, stride in zip(spec.sampling_span(self.size), spec.stride, strict=True)]
        filters = expand(weight, spec.group)
        x = F.conv_transpose2d(v.flatten(1, 2), filters, None, spec.stride, spec.padding, rest, 1, spec.dilation)
        return x if self.spec.lifting else x.unflatten(1, (-1, self.spec.group.order))

    def weight_gradient(self, v: Tensor, x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_zeros(v.shape[1], *x.shape[1:-2], *self.spec.kernel_size)
        planes = weight_planes_of(self._pairs(v, x), self.fast)
        if not self.spec.lifting:
            return from_planes(planes, self.spec.group, self.spec.kernel_size)
        table = orbit_table(self.spec.group, self.spec.kernel_size, x.device)
        flat = planes.unflatten(2, (-1, x.shape[1])).permute(0, 3, 1, 2).flatten(2)  # (O, C, |G|·M)
        # A weight is divided among its places, and their gradients agree: one place stands for the sum.
        return flat.index_select(2, table.first).unflatten(2, self.spec.kernel_size)

    def _pairs(self, v: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        r"""Planes of v (rows, |G|, O) and of the patches (rows, |G|, M·C) they meet, every position once."""
        n, features = self.spec.group.order, v.shape[1]
        last = v.permute(0, 2, 3, 4, 1).contiguous()
        for samples, steps in self._blocks(x):
            for patches, target, part in steps:
                planes = last[samples].view(-1, features).index_select(0, target).view(-1, n, features)
                if part.share is not None:
                    planes = (planes.unflatten(0, (-1, len(part.share))) * part.share.to(v.dtype)).flatten(0, 1)
                yield planes, patches

    def _blocks(self, x: Tensor) -> Iterator[tuple[slice, Iterator[tuple[Tensor, Tensor, Part]]]]:
        r"""Samples, and for each frame their patches (rows, |G|, M·C), the places of the outputs, and the part.

        All blocks share the padded input and all frames the patches: memory that is new each time costs more than what
        is done in it.
        """
        batch, channels = x.shape[:2]
        rows, pieces = self._pieces(batch, channels * x.element_size(), x.device)
        step = torch.arange(rows, device=x.device, dtype=torch.int32)[:, None]
        inputs, outputs = step * self._inputs, step.long() * self._outputs
        frames = [
            Frame(_sums(inputs + start, taps), _sums(outputs + place, plane).flatten(1), piece)
            for piece in pieces
            for start, taps, place, plane in zip(piece.start, piece.taps, piece.place, piece.plane, strict=True)
        ]
        buffer = x.new_empty(max(frame.places.numel() for frame in frames), channels)
        source = self._source(x, rows)

        def steps(block: Tensor) -> Iterator[tuple[Tensor, Tensor, Part]]:
            self._pad(block, source)
            for places, target, part in frames:
                chosen = places[: len(block)].flatten()
                patches = torch.index_select(source, 0, chosen, out=buffer[: len(chosen)])
                planes = patches.view(len(block) * places.shape[1], self.spec.group.order, -1)
                yield planes, target[: len(block)].flatten(), part

        for first in range(0, batch, rows):
            samples = slice(first, min(first + rows, batch))
            yield samples, steps(x[samples])

    def _source(self, x: Tensor, samples: int) -> Tensor:
        r"""Rows for so many padded maps, channels last, with zeros where there is padding."""
        (height, width), (ph, pw) = self.size, self.spec.padding
        padded = x.new_empty(samples, *x.shape[2:-2], height + 2 * ph, width + 2 * pw, x.shape[1])
        for axis, pad in (-3, ph), (-2, pw):
            if pad > 0:
                padded.narrow(axis, 0, pad).zero_()
                padded.narrow(axis, -pad, pad).zero_()
        return padded.flatten(0, -2)

    def _pad(self, x: Tensor, rows: Tensor) -> None:
        r"""Write the maps of x, channels last, into the middle of `_source`; negative padding crops them."""
        (height, width), (ph, pw) = self.size, self.spec.padding
        fiber = x.shape[2:-2]
        padded = rows[: len(x) * self._inputs].view(len(x), *fiber, height + 2 * ph, width + 2 * pw, x.shape[1])
        middle, last = padded, x.movedim(1, -1)
        for axis, pad in (-3, ph), (-2, pw):
            larger, smaller = (middle, last) if pad > 0 else (last, middle)
            larger = larger.narrow(axis, abs(pad), smaller.shape[axis])
            middle, last = (larger, last) if pad > 0 else (middle, larger)
        middle.copy_(last)

    @property
    def _inputs(self) -> int:
        (height, width), (ph, pw) = self.size, self.spec.padding
        return (1 if self.spec.lifting else self.spec.group.order) * (height + 2 * ph) * (width + 2 * pw)

    @property
    def _outputs(self) -> int:
        return self.spec.group.order * math.prod(self.spec.out_size(self.size))

    def _pieces(self, batch: int, entry_bytes: int, device: torch.device) -> tuple[int, list[Part]]:
        r"""How many samples make a block, and the parts in pieces that fit one."""
        whole = parts(self.spec, self.size, device)
        orbit_bytes = whole[0].taps.shape[1] * entry_bytes
        wanted = min(max(BLOCK_ROWS, BLOCK_BYTES // orbit_bytes), max(1, MOST_BYTES // orbit_bytes))
        rows = max(1, round(wanted / max(part.start.shape[1] for part in whole)))
        pieces = [piece for part in whole for piece in part.split(wanted)]
        return max(1, -(-batch // max(1, -(-batch // rows)))), pieces  # blocks of one size, as nearly as may be


def _sums(a: Tensor, b: Tensor) -> Tensor:
    r"""All sums of rows a (R, Q) and b (N,): (R, Q, N)."""
    return a[:, :, None] + b
