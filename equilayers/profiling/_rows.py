r"""The figures of a profile: a row for each module, and the totals."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Row:
    r"""One module where it is called; times in seconds, memory in bytes, and all of one run of the model.

    Attributes:
        path: of the module in the model, "" for the model.
        kind: its class.
        depth: how many modules call it, the model included.
        forward, backward: with what it calls; own_forward, own_backward: without.
        kept: memory that is kept for the backward pass, with what it calls; own_kept: without.
        peak: highest memory while it runs forward, of all that the run has allocated until then.
        flops: floating-point operations of products and convolutions that were executed, both directions.
        width: number of entries of its output.
        algorithm: what a layer of this library ran.
        alternatives: seconds that one call takes by each of its algorithms, in the directions that were measured.
        match: index of the row in the model compared with that has the same path, or else the same width.
        ratio: time over that of the match.
    """

    path: str
    kind: str
    depth: int
    forward: float
    backward: float
    own_forward: float
    own_backward: float
    flops: int
    kept: int
    own_kept: int
    parameters: int
    width: int
    calls: int = 1
    peak: int = 0
    algorithm: str = ""
    alternatives: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    match: int | None = None

    @property
    def total(self) -> float:
        r"""Seconds forward and backward, with what it calls."""
        return self.forward + self.backward

    @property
    def own(self) -> float:
        r"""Seconds forward and backward, without what it calls."""
        return self.own_forward + self.own_backward


@dataclass
class Figures:
    r"""The figures of a profile, without what is made of them."""

    rows: list[Row]
    forward: float
    backward: float
    peak: int
    repeats: int
    notes: list[str] = field(default_factory=list)
    compared: Figures | None = None

    @property
    def total(self) -> float:
        r"""Seconds forward and backward."""
        return self.forward + self.backward
