r"""Index tables of a convolution: its output positions in orbits, and the places that its taps read.

The output positions are split into orbits under the group, p = k·q with q among the representatives; the positions of
one k are a *frame*, see `patches`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._fourier.orbits import orbit_places
from equilayers.functional._index_tables import Table, moved_places, to_tensor
from equilayers.groups import Dihedral


@dataclass(frozen=True, eq=False)
class Part:
    r"""Some orbits of output positions, represented by Q of them, and the frames k they are computed in.

    start: (frames, Q), int32, places of k·q in the padded input.
    taps: (frames, |G|·M), int32, how far from there the tap of (u, m) lies, fiber and all.
    target: (frames, Q·|G|), int64, places of (k·u, k·q) in the output.
    free: whether no element fixes any of the positions.
    share: (Q, 1, 1), one over the number of frames that a position of the orbit is computed in; None where it is one.
    """

    start: Tensor
    taps: Tensor
    target: Tensor
    free: bool
    share: Tensor | None

    def split(self, orbits: int) -> list[Part]:
        r"""The same in pieces of one size, as nearly as may be, and of at most so many orbits."""
        q = self.start.shape[1]
        if q <= orbits:
            return [self]
        orbits = -(-q // -(-q // orbits))
        n = self.target.shape[1] // q
        cuts = [slice(first, min(first + orbits, q)) for first in range(0, q, orbits)]
        share = lambda cut: None if self.share is None else self.share[cut]  # noqa: E731
        target = self.target.unflatten(1, (q, n))
        pieces = ((cut, target[:, cut].flatten(1)) for cut in cuts)
        return [Part(self.start[:, cut], self.taps, piece, self.free, share(cut)) for cut, piece in pieces]


@functools.lru_cache(maxsize=128)
def parts(spec: ConvSpec, size: Pair, device: torch.device) -> tuple[Part, ...]:
    r"""How the outputs for an input of this size are computed.

    Free orbits take every frame. Under a dihedral group any other position is fixed by a mirror, so that rotations
    alone reach its whole orbit; under rotations the one other position is the centre, which one frame reaches.
    """
    group, out = spec.group, spec.out_size(size)
    n, (ph, pw), (sh, sw) = group.order, spec.padding, spec.stride
    padded = size[0] + 2 * ph, size[1] + 2 * pw
    inside, outside = moved_places(group, padded), moved_places(group, out)
    taps = _taps(spec, inside, padded)
    representatives = np.flatnonzero(outside.min(0) == np.arange(out[0] * out[1]))
    fixers = (outside[:, representatives] == representatives).sum(0)
    made = []
    for free, frames in (True, n), (False, group.n if isinstance(group, Dihedral) else 1):
        chosen = (fixers == 1) == free
        q = representatives[chosen]
        start = inside[:frames, sh * (q // out[1]) * padded[1] + sw * (q % out[1])]
        target = group.cayley_table[:frames, None, :] * (out[0] * out[1]) + outside[:frames, q, None]
        share = n / (fixers[chosen] * frames)
        weights = None if (share == 1).all() else to_tensor(share.reshape(-1, 1, 1), device)
        read = functools.partial(to_tensor, device=device, dtype=torch.int32)
        part = Part(read(start), read(taps[:frames]), to_tensor(target.reshape(frames, -1), device), free, weights)
        made += [part] if len(q) else []
    return tuple(made)


def _taps(spec: ConvSpec, inside: Table, padded: Pair) -> Table:
    r"""Table (|G|, |G|·M): how far the tap (k·u, k·u·t) lies from k·p, for all t or, lifting, one of each orbit."""
    group, lifting = spec.group, spec.lifting
    n, (kh, kw), (dh, dw) = group.order, spec.kernel_size, spec.dilation
    taps = orbit_places(group, (kh, kw))[0].reshape(n, -1) if lifting else moved_places(group, (kh, kw))
    reach = inside[:, dh * (taps // kw) * padded[1] + dw * (taps % kw)] - inside[:, :1, None]  # (k, u, m)
    fiber = group.cayley_table * (0 if lifting else padded[0] * padded[1])
    return (reach + fiber[:, :, None]).reshape(n, -1)
