r"""What becomes of layers on maps that have no weights: pools, resizing, padding and shuffles."""

from __future__ import annotations

from typing import Any

from torch import nn

from equilayers.convert._antialiased import antialiased, subsamples
from equilayers.convert._equivariant.conversion import ALIKE, Conversion
from equilayers.convert._equivariant.fiber_layers import FiberMean, Steps
from equilayers.convert._equivariant.flows import IMAGE, LIFTED, Call
from equilayers.convert._equivariant.functions import LOPSIDED, resizing
from equilayers.convert._equivariant.labels import whole_widths
from equilayers.convert._equivariant.map_layers import FiberPixelShuffle
from equilayers.convert._report import Kept, Outcome, Refused, Replaced


def pool(module: nn.Module, call: Call, conversion: Conversion) -> Outcome:  # noqa: ARG001
    r"""A pool that subsamples is blurred."""
    outcome = antialiased(module)
    if isinstance(outcome, Kept):
        return Refused(outcome.reason) if subsamples(module) else Kept(ALIKE)
    return outcome


def upsample(module: nn.Upsample, call: Call, conversion: Conversion) -> Outcome:  # noqa: ARG001
    r"""By whole factors it is symmetric; otherwise places must follow from both sizes, and "nearest" has none."""
    scale, mode, corners = module.scale_factor, module.mode, bool(module.align_corners)
    if resizing(mode, scale, recomputed=bool(module.recompute_scale_factor), corners=corners):
        return Kept(ALIKE)
    linear = "bilinear" if mode.startswith("nearest") else mode
    made = nn.Upsample(module.size, scale, linear, False, None if scale is None else True)
    return Replaced(made, "its places follow from both sizes, so that they are symmetric at every one")


def padding(module: Any, call: Call, conversion: Conversion) -> Outcome:  # noqa: ARG001
    r"""All sides alike."""
    sides = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    return Kept(ALIKE) if len(set(sides)) == 1 else Refused(f"{LOPSIDED}; pad all sides alike")


def shuffle(module: nn.Module, call: Call, conversion: Conversion) -> Outcome:  # noqa: ARG001
    r"""A shuffle of channels is right for images alone."""
    if call.input.kind == IMAGE:
        return Kept(f"{ALIKE}: of an image")
    return Refused("it exchanges the planes of a fiber with others")


def pixel_shuffle(module: nn.PixelShuffle | nn.PixelUnshuffle, call: Call, conversion: Conversion) -> Outcome:
    r"""Whole fields are shuffled: the group moves the pixels that they become."""
    back = isinstance(module, nn.PixelUnshuffle)
    factor = module.downscale_factor if isinstance(module, nn.PixelUnshuffle) else module.upscale_factor
    if call.input.kind != LIFTED:
        instead = "take nn.Conv2d with a stride in its place" if back else "make features before"
        return Refused(f"of an image: the group moves the pixels that are its channels; {instead}")
    inputs, ratio = conversion.fields_of(call.input, call.shape[1]), factor**2
    fields = inputs if back else inputs // ratio
    whole = call.input.producers <= conversion.images
    wanted = call.shape[1] if back else call.out[1]
    if not back and (inputs % ratio or (not whole and fields * conversion.group.order != wanted)):
        works = whole_widths(wanted, conversion.group.order)
        return Refused(f"its {wanted} channels are no whole fields of |G| = {conversion.group.order}: {works} are")
    mean = not back and conversion.averages(call.path, wanted)
    made = FiberPixelShuffle(conversion.group, fields, factor, back=back)
    return Replaced(Steps(made, FiberMean(conversion.group.order)) if mean else made)


PADDING = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d)
SHUFFLES = (nn.ChannelShuffle, nn.LocalResponseNorm)
