r"""A plain convolutional network made equivariant: its convolutions tied, everything between them kept."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from equilayers._checks import check_choice, check_float, refuse
from equilayers.convert._antialiased import OWN, antialiased
from equilayers.convert._equivariant.convolutions import convolution, transposed
from equilayers.convert._equivariant.dataflow import CONVOLUTIONS, IMAGE, INVARIANT, LIFTED, Course, Flow, Role, course
from equilayers.convert._equivariant.fiber_layers import FiberLinear, FiberMean
from equilayers.convert._equivariant.norms import KEPT, batch_norm, group_norm, instance_norm
from equilayers.convert._equivariant.verify import shortcoming
from equilayers.convert._report import Entry, Report, count, replace, words
from equilayers.functional import check_plane_group
from equilayers.groups import Group, as_group

WIDTHS = ("equal-width", "equal-parameters", "equal-compute")
# Multiplications of the group Fourier transform by those of the expanded filter.
SAVED = {2: 2 / 4, 4: 6 / 16, 8: 12 / 64}


@dataclass(frozen=True)
class Conversion:
    r"""One conversion: its group, and how many fields take the place of so many channels.

    images: paths of the convolutions whose output becomes the model's: each channel of it has a field of its own.
    heads: the same, if no convolution reads it: then its fibers are averaged right there.
    """

    group: Group
    width: str
    from_weights: bool
    images: frozenset[str] = frozenset()
    heads: bool = False

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
        return channels if flow.makers and flow.makers <= self.images else self.fields(channels)

    def averages(self, path: str, channels: int) -> bool:
        r"""Whether the fibers of this convolution are averaged right there: of a head, or of a single channel."""
        return channels == 1 or (self.heads and path in self.images)

    def seen(self, role: Role) -> Role:
        r"""The role after the conversion: what heads put out is an image by then."""
        fed = role.fed
        if self.heads and fed.kind == LIFTED and fed.makers and fed.makers <= self.images:
            return dataclasses.replace(role, fed=dataclasses.replace(fed, kind=IMAGE))
        return role


def to_equivariant(
    model: nn.Module,
    group: Group | str,
    x: Tensor | None = None,
    *,
    width: str = "equal-width",
    from_weights: bool = False,
) -> tuple[nn.Module, Report]:
    r"""An equivariant copy of a plain convolutional network.

    Convolutions become group convolutions whose fibers lie in the channels, so that sums, concatenations, pointwise
    steps and resizing around them stay as they are; normalisations share statistics over a fiber; what subsamples is
    blurred, so that it is exact at every size; the first linear layer reads the mean over each fiber. Where the output
    of a convolution is that of the model, as in a segmentation network, it is an image: its fibers are averaged. The
    result is run on x and a moved x: if it is not what it should be, the last entry of the report says so.

    Args:
        model: images (B, C, H, W) to logits (B, K), then the result is invariant, or to images (B, K, H', W'), then it
            is equivariant. Not changed.
        group: CyclicRotation or Dihedral.
        x: images (B, C, H, W) of a size the model is used at, which it is run on: to see which layer reads what, and
            whether the result is equivariant. When None, two random images of 64x64, with as many channels as the first
            convolution.
        width: "equal-width" has as many planes as the model, "equal-parameters" about as many parameters,
            "equal-compute" about as many multiplications with the group Fourier transform.
        from_weights: begin with the model's own weights, made equivariant by the mean over the group, instead of random
            ones; with "equal-width" and channels that |G| divides.

    Returns:
        The new model, and a `Report` of every module: replaced, kept, or refused with the reason.

    Raises:
        TypeError: model is no module, group no group, x no floating-point tensor.
        ValueError: a group without turns and mirrors, an unknown width, from_weights with another width, an x that the
            model does not take.

    Source: Cohen and Welling 2016 (arXiv:1602.07576); Zhang 2019 (arXiv:1904.11486) for what subsamples.
    """
    caller = "to_equivariant"
    if not isinstance(model, nn.Module):
        refuse(caller, "model to be a torch.nn.Module", type(model).__name__, "Wrap it in one.", TypeError)
    group = check_plane_group(caller, as_group(caller, group))
    check_choice(caller, "width", width, WIDTHS)
    if from_weights and width != WIDTHS[0]:
        hint = "Other widths have no weights to take over."
        refuse(caller, "width='equal-width' with from_weights=True", repr(width), hint)
    made = copy.deepcopy(model)
    x = _example(caller, made, x)
    found = _seen(caller, made, x)
    how = Conversion(group, width, from_weights, *_images(made, found))
    entries: list[Entry] = []
    for path, module in list(made.named_modules()):
        entry, new = _converted(path, module, [how.seen(role) for role in found.roles.get(path, [])], how)
        if entry is not None:
            entries.append(entry)
        if new is not None:
            new.train(module.training)
            if path:
                replace(made, path, new)
            else:
                made = new
    if how.images and not how.heads and found.single:
        made = nn.Sequential(made, FiberMean(group.order))
        reason = "its fibers are averaged, after it: what it puts out is an image"
        entries.append(Entry("", type(model).__name__, "replaced", words(made[1]), reason))
    problem = shortcoming(made, group, x, found.shapes)
    if problem:
        entries.append(Entry("", type(model).__name__, "refused", reason=problem))
    return made, Report(tuple(entries), count(model), count(made))


def _seen(caller: str, model: nn.Module, x: Tensor) -> Course:
    try:
        return course(model, x)
    except RuntimeError as error:
        got = f"{tuple(x.shape)}, and it raised: {str(error).splitlines()[0]}"
        refuse(caller, "x that the model takes", got, "Pass images of the size it is used at.")


def _images(model: nn.Module, found: Course) -> tuple[frozenset[str], bool]:
    r"""The convolutions whose output becomes the model's, and whether no other convolution reads it."""
    images = found.output.makers if found.output is not None and found.output.kind == LIFTED else frozenset[str]()
    convolutions = [path for path, module in model.named_modules() if isinstance(module, CONVOLUTIONS)]
    read = {maker for path in convolutions for role in found.roles.get(path, []) for maker in role.fed.makers}
    return images, not images & read


def _example(caller: str, model: nn.Module, x: Tensor | None) -> Tensor:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        refuse(
            caller, "a model with a torch.nn.Conv2d", type(model).__name__, "There is nothing to tie: see symmetrize."
        )
    if x is None:
        x = torch.randn(2, first.in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    check_float(caller, "x", x)
    if x.ndim != 4:
        refuse(caller, "x of shape (B, C, H, W)", tuple(x.shape), "Pass images.")
    return x.to(first.weight.device, first.weight.dtype)


def _converted(
    path: str, module: nn.Module, called: list[Role], how: Conversion
) -> tuple[Entry | None, nn.Module | None]:
    r"""What becomes of a module: its entry in the report, and what takes its place."""
    kinds, handler = next(((kinds, h) for kinds, h in HANDLERS if isinstance(module, kinds)), ((), None))
    plain = type(module) in POINTWISE or all(p.numel() == 1 for p in module.parameters(recurse=False))
    found: nn.Module | str
    if handler is None and (plain or not called):
        return None, None
    if not called:
        if not list(module.parameters()):
            return None, None
        found = "it was not called with what comes from the input"
    elif handler is None:
        found = f"no equivariant form of {type(module).__name__} is known here"
    elif len({(r.fed.kind, r.fed.channels, how.fields_of(r.fed, r.fed.channels)) for r in called}) > 1:
        found = "it is called with features of several kinds"
    elif type(module).forward not in [kind.forward for kind in kinds] or not _plain_weight(module):
        found = OWN
    else:
        found = handler(path, module, called[0], how)
    if isinstance(found, str):
        return Entry(path, words(module), "kept" if found.startswith(KEPT) else "refused", reason=found), None
    return Entry(path, words(module), "replaced", words(found)), found


def _plain_weight(module: nn.Module) -> bool:
    r"""Whether the weight, if it has one, is a parameter and not made of others."""
    weight = getattr(module, "weight", None)
    return not is_parametrized(module) and (weight is None or isinstance(weight, nn.Parameter))


def _linear(path: str, module: nn.Linear, role: Role, how: Conversion) -> nn.Module | str:  # noqa: ARG001
    if role.fed.kind == INVARIANT:
        return f"{KEPT}: what it reads is invariant already"
    if role.fed.kind != LIFTED or len(role.shape) != 2 or module.in_features != role.fed.channels:
        return "it reads pixels by their place: pool over the map before it"
    linear = nn.Linear(how.fields_of(role.fed, module.in_features), module.out_features, module.bias is not None)
    if how.from_weights and module.in_features % how.group.order == 0:
        with torch.no_grad():
            linear.weight.copy_(module.weight.unflatten(1, (-1, how.group.order)).sum(2))
            if module.bias is not None:
                linear.bias.copy_(module.bias)
    return FiberLinear(linear.to(module.weight.device, module.weight.dtype), how.group)


def _pool(path: str, module: nn.Module, role: Role, how: Conversion) -> nn.Module | str:  # noqa: ARG001
    found = antialiased(module)
    if isinstance(found, str) and "stride 1" in found:
        return KEPT
    return found


def _prelu(path: str, module: nn.PReLU, role: Role, how: Conversion) -> nn.Module | str:  # noqa: ARG001
    if module.num_parameters == 1 or role.fed.kind != LIFTED:
        return KEPT
    return "it has a slope for every channel, and the planes of a field would need one"


def _shuffle(path: str, module: nn.Module, role: Role, how: Conversion) -> nn.Module | str:  # noqa: ARG001
    return f"{KEPT}: of an image" if role.fed.kind == IMAGE else "it exchanges the planes of a fiber with others"


HANDLERS: list[tuple[tuple[type[nn.Module], ...], Callable[..., nn.Module | str]]] = [
    ((nn.ConvTranspose2d,), transposed),
    ((nn.Conv2d,), convolution),
    ((nn.BatchNorm1d, nn.BatchNorm2d), batch_norm),
    ((nn.InstanceNorm2d,), instance_norm),
    ((nn.GroupNorm,), group_norm),
    ((nn.Linear,), _linear),
    ((nn.MaxPool2d, nn.AvgPool2d), _pool),
    ((nn.PReLU,), _prelu),
    ((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), _shuffle),
]
POINTWISE = (nn.ReLU, nn.GELU, nn.SiLU)
