r"""Index tables of a convolution: its output positions in orbits, and the places that its taps read.

The output positions are split into orbits under the group, p = k·q with q among the representatives; the positions of
one k are a *frame*, see `patches`. Where quarter turns carry a map to one of another shape, only the elements k that
carry the wide shape to this one count, and q stands on the wide map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers._tables import table
from equilayers.functional._convolution.geometry import ConvSpec, swaps_axes
from equilayers.functional._fourier.orbits import orbit_places
from equilayers.functional._index_tables import Table, moved_places, to_indices, to_tensor
from equilayers.groups import Dihedral, Group


@dataclass(frozen=True, eq=False)
class Part:
    r"""Some orbits of output positions, represented by Q of them, and the frames k they are computed in; int32 places.

    start: (frames, Q), places of k·q in the padded input.
    taps: (frames, |G|·M), how far from there the tap of (u, m) lies, fiber and all.
    place: (frames, Q), places of k·q on a map of the output.
    plane: (frames, |G|), where the plane k·u of the output begins.
    free: whether no element fixes any of the positions.
    share: (Q, 1, 1), one over the number of frames that a position of the orbit is computed in; None where it is one.
    """

    start: Tensor
    taps: Tensor
    place: Tensor
    plane: Tensor
    free: bool
    share: Tensor | None

    @property
    def outputs(self) -> int:
        r"""How many numbers of each feature are computed, in all frames."""
        return self.place.numel() * self.plane.shape[1]

    def split(self, orbits: int) -> list[Part]:
        r"""The same in pieces of one size, as nearly as may be, and of at most so many orbits."""
        q = self.start.shape[1]
        if q <= orbits:
            return [self]
        orbits = -(-q // -(-q // orbits))
        cuts = [slice(first, min(first + orbits, q)) for first in range(0, q, orbits)]
        share = lambda cut: None if self.share is None else self.share[cut]  # noqa: E731
        return [
            Part(self.start[:, cut], self.taps, self.place[:, cut], self.plane, self.free, share(cut)) for cut in cuts
        ]


@table
def parts(spec: ConvSpec, size: Pair, device: torch.device) -> tuple[Part, ...]:
    r"""How the outputs for an input of this size are computed.

    Free orbits take every frame. Under a dihedral group any other position is fixed by a mirror, so that rotations
    alone reach its whole orbit; under rotations the one other position is the centre, which one frame reaches.
    """
    group, out = spec.group, spec.out_size(size)
    (ph, pw), (sh, sw) = spec.padding, spec.stride
    padded = size[0] + 2 * ph, size[1] + 2 * pw
    elements = _carrying(group, out)
    wide_out, wide_padded = _wide(group, out), _wide(group, padded)
    inside, outside = moved_places(group, padded, elements), moved_places(group, out, elements)
    taps = _taps(spec, inside, padded, elements)
    still = outside if out == wide_out else moved_places(group, wide_out, _carrying(group, wide_out))
    representatives = np.flatnonzero(still.min(0) == np.arange(out[0] * out[1]))
    fixers = (still[:, representatives] == representatives).sum(0)
    plane = group.cayley_table[elements] * (out[0] * out[1])
    rotations = sum(k < group.n for k in elements) if isinstance(group, Dihedral) else 1
    made = []
    for free, frames in (True, len(elements)), (False, rotations):
        chosen = (fixers == 1) == free
        q = representatives[chosen]
        start = inside[:frames, sh * (q // wide_out[1]) * wide_padded[1] + sw * (q % wide_out[1])]
        share = len(elements) / (fixers[chosen] * frames)
        weights = None if (share == 1).all() else to_tensor(share.reshape(-1, 1, 1), device)
        tables = [to_indices(t, device) for t in (start, taps[:frames], outside[:frames, q], plane[:frames])]
        part = Part(tables[0], tables[1], tables[2], tables[3], free, weights)
        made += [part] if len(q) else []
    return tuple(made)


def _wide(group: Group, size: Pair) -> Pair:
    r"""The size of the map, lying on its long side where the group turns it upright."""
    return (min(size), max(size)) if swaps_axes(group) else size


def _carrying(group: Group, size: Pair) -> list[int]:
    r"""The elements that carry the wide map to one of this size, rotations first."""
    index = torch.empty(_wide(group, size))
    return [k for k in range(group.order) if tuple(group.act(k, index).shape) == size]


def _taps(spec: ConvSpec, inside: Table, padded: Pair, elements: list[int]) -> Table:
    r"""Table (K, |G|·M): how far the tap (k·u, k·u·t) lies from k·p, for all t or, lifting, one of each orbit."""
    group, lifting = spec.group, spec.lifting
    n, (kh, kw), (dh, dw) = group.order, spec.kernel_size, spec.dilation
    taps = orbit_places(group, (kh, kw))[0].reshape(n, -1) if lifting else moved_places(group, (kh, kw))
    width = _wide(group, padded)[1]
    reach = inside[:, dh * (taps // kw) * width + dw * (taps % kw)] - inside[:, :1, None]  # (k, u, m)
    fiber = group.cayley_table[elements] * (0 if lifting else padded[0] * padded[1])
    return (reach + fiber[:, :, None]).reshape(len(elements), -1)
