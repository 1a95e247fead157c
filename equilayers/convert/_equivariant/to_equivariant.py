r"""A plain convolutional network made equivariant: its convolutions tied, everything between them kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from equilayers._checks import check_choice, check_float, refuse
from equilayers.convert._equivariant.conversion import ALIKE, DEPTHWISE, DOWNSAMPLINGS, WIDTHS, Conversion
from equilayers.convert._equivariant.convolutions import convolution, transposed
from equilayers.convert._equivariant.dataflow import CONVOLUTIONS, INVARIANT, LIFTED, Call, Dataflow, Flow, dataflow
from equilayers.convert._equivariant.fiber_layers import FiberMean, FiberOutputs
from equilayers.convert._equivariant.heads import dropout, linear, prelu
from equilayers.convert._equivariant.maps import PADDING, SHUFFLES, padding, pool, shuffle, upsample
from equilayers.convert._equivariant.norms import batch_or_instance_norm, group_norm
from equilayers.convert._equivariant.shared import SharedParameters
from equilayers.convert._equivariant.sizes import runs
from equilayers.convert._equivariant.softness import settled
from equilayers.convert._equivariant.verify import shortcoming
from equilayers.convert._report import (
    CONTAINER,
    OWN,
    Entry,
    Kept,
    Outcome,
    Refused,
    Replaced,
    Report,
    convert_modules,
    copied,
    entry,
    report,
)
from equilayers.functional import check_plane_group
from equilayers.groups import Group, as_group


def to_equivariant(
    model: nn.Module,
    group: Group | str,
    x: Tensor | None = None,
    *,
    width: str = "equal-width",
    from_weights: bool = False,
    depthwise: str = "planes",
    downsampling: str = DOWNSAMPLINGS[0],
) -> tuple[nn.Module, Report]:
    r"""An equivariant copy of a plain convolutional network.

    Convolutions become group convolutions whose fibers lie in the channels, so that sums, concatenations, pointwise
    steps and resizing around them stay as they are; normalisations share statistics over a fiber; what has a stride
    samples at places that are symmetric at every size; the first linear layer reads the mean over each fiber. Where the
    output of a convolution is that of the model, as in a segmentation network, it is an image: its fibers are averaged.
    The result is run on x and a moved x, and at other sizes that the model takes, two of each parity in all: if it is
    not what it should be, or if that shows nothing, the last entries of the report say so, and where the symmetry is
    lost. What `forward` calls without a module, such as torch.nn.functional.max_pool2d, cannot be replaced: it is
    refused where it is not symmetric at every size.

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
            ones; with "equal-width" and channels that |G| divides. The report says how far each was from equivariant.
        depthwise: "planes", a depthwise convolution takes each plane by itself, at the cost of the plain one, or
            "fields", it mixes the planes of each field, at |G| times that.
        downsampling: of strided convolutions. "symmetric-stride" keeps the stride, and takes the mean of neighbouring
            pixels first where the parity of the map asks for it; "blur" convolves at every pixel and blurs (Zhang
            2019), which aliases less and takes about stride² times as long; "auto" is the cheaper one, the first. Pools
            that subsample are blurred in any case.

    Returns:
        The new model, and a `Report` of every module: replaced, kept, or refused with the reason.

    Raises:
        TypeError: model is no module, group no group, x no floating-point tensor.
        ValueError: a group without rotations and mirrors, an unknown word for a setting, from_weights with
            another width, an x that the model does not take.

    Source: Cohen and Welling 2016 (arXiv:1602.07576); Zhang 2019 (arXiv:1904.11486) for what subsamples.
    """
    caller = "to_equivariant"
    if not isinstance(model, nn.Module):
        refuse(caller, "model to be a torch.nn.Module", type(model).__name__, "Wrap it in one.", TypeError)
    group = check_plane_group(caller, as_group(caller, group))
    check_choice(caller, "width", width, WIDTHS)
    check_choice(caller, "depthwise", depthwise, DEPTHWISE)
    check_choice(caller, "downsampling", downsampling, DOWNSAMPLINGS)
    if from_weights and width != WIDTHS[0]:
        hint = "Other widths have no weights to take over."
        refuse(caller, "width='equal-width' with from_weights=True", repr(width), hint)
    made = settled(copied(caller, model))
    x = _example(caller, made, x)
    try:
        flow = dataflow(made, x)
    except Exception as error:  # a model of others may raise anything
        first = next(iter(str(error).splitlines()), "")
        got = f"{tuple(x.shape)}, and it raised {type(error).__name__}: {first}"
        refuse(caller, "x that the model takes", got, "Pass images of the size it is used at, to a model of one input.")
    seen = [(x, flow), *runs(made, x)]
    images = _images(made, flow, group.order)
    conversion = Conversion(group, width, from_weights, depthwise, downsampling, gates=flow.gates, **images)
    shared = SharedParameters(made)

    def convert(path: str, module: nn.Module) -> Outcome:
        broken = next((flow.broken[path] for _, flow in seen if path in flow.broken), None)
        calls = [conversion.after(call) for call in flow.calls.get(path, [])]
        outcome = _outcome(module, calls, broken, conversion)
        return shared.carried(path, module, outcome, frozen=from_weights)

    made, entries = convert_modules(made, convert)
    entries = shared.checked(entries)
    name = type(model).__name__
    fibers = [_has_fibers(each, conversion.heads) for each in flow.outputs]
    prefix = ""
    if any(fibers):
        mean: nn.Module = FiberMean(group.order)
        prefix = "0." if flow.single else "model."
        made = nn.Sequential(made, mean) if flow.single else FiberOutputs(made, group.order, fibers)
        reason = "its fibers are averaged, after it: what it puts out is an image"
        entries.append(entry("", name, Replaced(mean, reason)))
    verified: list[tuple[int, int]] = []
    for image, run in seen:
        size = image.shape[-2], image.shape[-1]
        problems = shortcoming(made, group, image, run.shapes)
        if problems:
            where = f"at {size[0]}x{size[1]} " if verified else ""
            entries += _named(problems, where, name, prefix, {each.path for each in entries if each.done == "refused"})
            break
        verified.append(size)
    return made, report(entries, model, made, tuple(verified))


def _named(
    problems: list[tuple[str, str, Refused]], where: str, name: str, prefix: str, refused: set[str]
) -> Iterator[Entry]:
    r"""The entries of what is wrong with the whole, and at what place, unless that is refused already."""
    for path, described, problem in problems:
        inner = path.removeprefix(prefix)
        if not described:
            yield entry("", name, Refused(f"{where}{problem.reason}"))
        elif inner not in refused:
            yield entry(inner, described, problem)


def _images(model: nn.Module, flow: Dataflow, order: int) -> dict[str, frozenset[str]]:
    r"""The convolutions whose output becomes the model's, as `Conversion` names them.

    Images are what nothing else reads, and what has fewer channels than a field has planes: what reads it lifts it.
    """
    leaves = [each.producers for each in flow.outputs if each is not None and each.kind == LIFTED]
    images = frozenset[str]().union(*leaves)
    readers = [path for path, module in model.named_modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    calls = [call for path in readers for call in flow.calls.get(path, [])]
    read = images & frozenset[str]().union(*(call.input.producers for call in calls))
    late = read
    for _ in leaves:  # what is added to something that others read is averaged with it
        late = late.union(*(leaf for leaf in leaves if leaf & late))
    heads = images - late
    narrow = all(flow.calls[path][0].out[1] < order for path in late)
    maps = all(call.input.producers <= images and len(call.out) == 4 for call in calls if call.input.producers & images)
    if narrow and maps:
        return {"images": images, "heads": images}
    return {"images": images, "heads": heads, "spread": late - read}


def _has_fibers(flow: Flow | None, heads: frozenset[str]) -> bool:
    return flow is not None and flow.kind == LIFTED and not flow.producers <= heads


def _example(caller: str, model: nn.Module, x: Tensor | None) -> Tensor:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        hint = "There is nothing to tie: see symmetrize."
        refuse(caller, "a model with a torch.nn.Conv2d", type(model).__name__, hint)
    if x is None:
        x = torch.randn(2, first.in_channels, 64, 64, generator=torch.Generator().manual_seed(0), device="cpu")
    check_float(caller, "x", x)
    if x.ndim != 4:
        refuse(caller, "x of shape (B, C, H, W)", tuple(x.shape), "Pass images.")
    return x.to(first.weight.device, first.weight.dtype)


def _outcome(module: nn.Module, calls: list[Call], broken: str | None, conversion: Conversion) -> Outcome:
    r"""What becomes of a module that was called so; `broken` is what its own `forward` calls that is not symmetric."""
    kinds, handler = next(((kinds, h) for kinds, h in HANDLERS if isinstance(module, kinds)), ((), None))
    own = [p for p in module.parameters(recurse=False) if p.numel() > 1]
    if not calls:
        if own or (handler is not None and list(module.parameters())):
            return Refused("it was not called with what comes from the input")
        return Kept("it was not called with what comes from the input, and has no parameters of its own")
    if handler is None:
        if broken is not None:
            return Refused(broken)
        if own:
            return Refused(f"no equivariant form of {type(module).__name__} is known here")
        return Kept(CONTAINER if list(module.children()) else ALIKE if isinstance(module, POINTWISE) else SEEN)
    inputs = (call.input for call in calls)
    if len({(flow.kind, flow.channels, conversion.fields_of(flow, flow.channels)) for flow in inputs}) > 1:
        return Refused("it is called with features of several kinds")
    if type(module).forward not in [kind.forward for kind in kinds]:
        return Refused(OWN)
    if isinstance(module, nn.Linear) and calls[0].input.kind == INVARIANT:
        return Kept(f"{ALIKE}: what it reads is invariant already")
    return handler(module, calls[0], conversion) if _plain_weight(module) else Refused(OWN)


def _plain_weight(module: nn.Module) -> bool:
    r"""Whether the weight, if it has one, is a parameter and not made of others."""
    weight = getattr(module, "weight", None)
    return not is_parametrized(module) and (weight is None or isinstance(weight, nn.Parameter))


HANDLERS: list[tuple[tuple[type[nn.Module], ...], Callable[..., Outcome]]] = [
    ((nn.ConvTranspose2d,), transposed),
    ((nn.Conv2d,), convolution),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d), batch_or_instance_norm),
    ((nn.GroupNorm,), group_norm),
    ((nn.Linear,), linear),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d), pool),
    ((nn.Upsample,), upsample),
    (PADDING, padding),
    ((nn.PReLU,), prelu),
    ((nn.Dropout2d, nn.FeatureAlphaDropout), dropout),
    (SHUFFLES, shuffle),
]
SEEN = "it has no numbers of its own, and running it shows what it does"
POINTWISE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.Hardswish),
    *(nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus),
)
