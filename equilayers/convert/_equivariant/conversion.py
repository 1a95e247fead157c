r"""The settings of a conversion, and how many fields take the place of so many channels."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from equilayers.convert._equivariant.flows import IMAGE, LIFTED, Call, Flow
from equilayers.groups import Group

DEPTHWISE = ("planes", "fields")
DOWNSAMPLINGS = ("auto", "symmetric-stride", "blur")
WIDTHS = ("equal-width", "equal-parameters", "equal-compute")
# Multiplications of the group Fourier transform by those of the expanded filter.
SAVED = {2: 2 / 4, 4: 6 / 16, 8: 12 / 64}
AS_WIDE = "on tokens only width='equal-width' is known: views between have their widths written down"
ALIKE = "treats every plane and pixel alike"


@dataclass(frozen=True)
class Conversion:
    r"""Settings of a conversion.

    depthwise: whether depthwise convolutions take each plane by itself, or each field.
    images: paths of the convolutions whose output becomes the model's: each channel of it has a field of its own.
    heads: those that nothing else reads: their fibers are averaged right there.
    spread: those that no layer reads, but something is added to them that others read: the mean of their fibers stands
        in every plane.
    gates: paths of the linear layers whose output meets features again: it has a fiber.
    """

    group: Group
    width: str
    from_weights: bool
    depthwise: str = DEPTHWISE[0]
    downsampling: str = DOWNSAMPLINGS[0]
    images: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    spread: frozenset[str] = frozenset()
    gates: frozenset[str] = frozenset()

    @property
    def blurs(self) -> bool:
        r"""Whether what is strided is done at every pixel and blurred; "auto" is the cheaper way, which never does."""
        return self.downsampling == "blur"

    def fields(self, channels: int) -> int:
        r"""How many fields of |G| planes take the place of so many channels."""
        n = self.group.order
        if self.width == "equal-width":
            return math.ceil(channels / n)
        factor = n if self.width == "equal-parameters" else 1 / SAVED.get(n, 1.0)
        return max(1, round(math.sqrt(factor) * channels / n))

    def fields_out(self, path: str, channels: int) -> int:
        r"""How many fields the convolution of this path puts out."""
        return channels if path in self.images else self.fields(channels)

    def fields_of(self, flow: Flow, channels: int) -> int:
        r"""How many fields the channels of a flow are."""
        if sum(count for _, count in flow.parts) == channels:
            return sum(self.fields_out(path, count) for path, count in flow.parts)
        return channels if flow.producers and flow.producers <= self.images else self.fields(channels)

    def averages(self, path: str, channels: int) -> bool:
        r"""Whether the fibers of this convolution are averaged right there: of a head, or of a single channel."""
        return channels == 1 or path in self.heads

    def after(self, call: Call) -> Call:
        r"""The call as it is after the conversion: the output of heads is an image by then."""
        flow = call.input
        if flow.kind == LIFTED and flow.producers and flow.producers <= self.heads:
            return dataclasses.replace(call, input=dataclasses.replace(flow, kind=IMAGE))
        return call
