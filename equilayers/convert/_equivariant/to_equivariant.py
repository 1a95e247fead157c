r"""A plain convolutional network made equivariant: its convolutions tied, everything between them kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from equilayers._checks import check_choice, check_float, refuse
from equilayers.convert._equivariant.causes import traced
from equilayers.convert._equivariant.conversion import ALIKE, DEPTHWISE, DOWNSAMPLINGS, WIDTHS, Conversion
from equilayers.convert._equivariant.convolutions import convolution, transposed
from equilayers.convert._equivariant.dataflow import Handled, dataflow
from equilayers.convert._equivariant.fiber_layers import FiberMean, FiberOutputs
from equilayers.convert._equivariant.flows import CONVOLUTIONS, INVARIANT, LIFTED, Broken, Call, Dataflow, Flow
from equilayers.convert._equivariant.heads import dropout, prelu
from equilayers.convert._equivariant.linears import any_linear
from equilayers.convert._equivariant.maps import PADDING, SHUFFLES, padding, pixel_shuffle, pool, shuffle, upsample
from equilayers.convert._equivariant.norms import batch_or_instance_norm, group_norm
from equilayers.convert._equivariant.own_parameters import changing_buffers, own_parameters
from equilayers.convert._equivariant.shared import SharedParameters
from equilayers.convert._equivariant.sizes import Run, runs
from equilayers.convert._equivariant.softness import settled
from equilayers.convert._equivariant.ties import Ties
from equilayers.convert._equivariant.tokens import attention, encoder
from equilayers.convert._equivariant.verify import shortcoming
from equilayers.convert._report import (
    CONTAINER,
    OWN,
    Cause,
    Entry,
    Kept,
    Lopsided,
    Outcome,
    Refused,
    Replaced,
    Report,
    Sizes,
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
        refuse(caller, "width='equal-width' with from_weights=True", repr(width), "Others take no weights over.")
    made = settled(copied(caller, model))
    x = _example(caller, made, x)
    shared = SharedParameters(made)
    flow, ties, handled = _analysed(caller, made, x, group)
    seen = runs(x, flow, ties, lambda image, ties: dataflow(made, image, group, handled, ties))
    heads = _images(made, flow, group.order)
    conversion = Conversion(group, width, from_weights, depthwise, downsampling, gates=flow.gates, **heads)
    refused: dict[str, Refused] = {}

    def convert(path: str, module: nn.Module) -> Outcome:
        broken = next((run.flow.broken[path] for run in seen if path in run.flow.broken and not run.lopsided), None)
        calls = [conversion.after(call) for call in flow.calls.get(path, [])]
        outcome = _outcome(module, calls, broken or flow.unfed.get(path), conversion, handled)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        read = any(t in ties.used for t in own)
        if isinstance(outcome, Refused) and not read and not any(path in run.flow.entered for run in seen):
            outcome = Kept(UNUSED)
        if (isinstance(outcome, Refused) or read) and broken is None and not handled(module):
            common = any(t in shared.owners for t in own)
            outcome = own_parameters(module, ties, conversion, common, path in flow.entered)
        cause = outcome.cause if isinstance(outcome, Refused) else None
        if cause is not None and cause.where == path and _has_handler(module) and not handled(module):
            said = f"{cause.reason}; its weight is shared with what reads it elsewhere"
            outcome = Refused(said, dataclasses.replace(cause, reason=said))
        outcome = shared.carried(path, module, _looked_at(module, outcome), frozen=from_weights)
        refused.update({path: outcome} if isinstance(outcome, Refused) else {})
        return outcome

    names: dict[Tensor, str] = {t: path for path, t in (*made.named_parameters(), *made.named_buffers())}
    with torch.device(x.device):
        made, entries = convert_modules(made, convert)
    entries = traced(shared.checked(entries), refused, names)
    name = type(model).__name__
    made, prefix, outputs = _averaged(made, group, flow, conversion.heads, name)
    entries += outputs
    refusing = any(each.done == "refused" for each in entries)
    verified, lopsided, problems = _verified(made, group, seen, places=not refusing)
    if problems and not refusing:  # from which they would follow
        entries = traced(entries, {}, names, [flow.lost]) if flow.lost else [*entries, *_named(problems, name, prefix)]
    return made, report(entries, model, made, verified, lopsided)


def _analysed(caller: str, model: nn.Module, x: Tensor, group: Group) -> tuple[Dataflow, Ties, Handled]:
    r"""What is seen when the model runs, its parameters tied, and which of its modules others take the place of."""
    outside = frozenset[nn.Parameter]()

    def handled(module: nn.Module) -> bool:
        apart = _plain_weight(module) and not outside.isdisjoint(module.parameters(recurse=False))
        return _has_handler(module) and not apart

    try:
        changing = changing_buffers(model, x, handled)
        while True:  # what others read is tied where it is read
            with torch.device("cpu" if x.is_meta else x.device):
                ties = Ties([*_own_parameters(model, handled), *changing])
            flow = dataflow(model, x, group, handled, ties)
            if flow.outside <= outside:
                return flow, ties, handled
            outside |= flow.outside
    except Exception as error:  # a model of others may raise anything
        first = next(iter(str(error).splitlines()), "")
        got = f"{tuple(x.shape)}, and it raised {type(error).__name__}: {first}"
        refuse(caller, "x that the model takes", got, "Pass images of the size it is used at, to a model of one input.")


def _averaged(
    made: nn.Module, group: Group, flow: Dataflow, heads: frozenset[str], name: str
) -> tuple[nn.Module, str, list[Entry]]:
    r"""The model with the mean over the fibers of what it puts out, what its paths begin with then, and the entries."""
    shapes = [
        shape for each, shape in zip(flow.outputs, flow.shapes, strict=True) if _fibered(each, shape, flow, heads)
    ]
    if shapes:
        shape = tuple(shapes[0])
        reason = f"it puts out features {shape} with fibers: wrap it with what reads them, and convert the whole"
        return made, "", [entry("", name, Refused(reason))]
    fibers = [each is not None and each.kind == LIFTED and not each.producers <= heads for each in flow.outputs]
    if not any(fibers):
        return made, "", []
    mean: nn.Module = FiberMean(group.order)
    reason = "its fibers are averaged, after it: what it puts out is an image"
    outputs = [entry("", name, Replaced(mean, reason))]
    if flow.single:
        return nn.Sequential(made, mean), "0.", outputs
    return FiberOutputs(made, group.order, fibers), "model.", outputs


def _verified(
    made: nn.Module, group: Group, seen: list[Run], *, places: bool
) -> tuple[Sizes, Lopsided, list[tuple[str, str, Refused]]]:
    r"""The sizes at which the result is what it should be, those at which that is no matter, and what is wrong."""
    verified: list[tuple[int, int]] = []
    lopsided: list[tuple[tuple[int, int], str]] = []
    for run in seen:
        strict = run is seen[0] or not seen[0].flow.tokens
        if run.lopsided:
            lopsided.append((run.size, run.lopsided))
            continue
        problems = shortcoming(made, group, run.image, run.flow, places=strict and places)
        if not problems:
            verified.append(run.size)
        elif strict:
            where = f"at {run.size[0]}x{run.size[1]} " if verified else ""
            problems = [
                (at, what, problem if what else Refused(f"{where}{problem.reason}")) for at, what, problem in problems
            ]
            return tuple(verified), tuple(lopsided), problems
        else:
            lopsided.append((run.size, problems[0][2].reason))
    return tuple(verified), tuple(lopsided), []


def _named(problems: list[tuple[str, str, Refused]], name: str, prefix: str) -> Iterator[Entry]:
    r"""The entries of what is wrong with the whole, and at what place."""
    for path, described, problem in problems:
        yield entry(path.removeprefix(prefix), described, problem) if described else entry("", name, problem)


def _images(model: nn.Module, flow: Dataflow, order: int) -> dict[str, frozenset[str]]:
    r"""The convolutions whose output becomes the model's, as `Conversion` names them.

    Images are what nothing else reads, and what has fewer channels than a field has planes: what reads it lifts it.
    """
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    outputs = [
        each
        for each, shape in zip(flow.outputs, flow.shapes, strict=True)
        if each is not None and (len(shape) == 4 or not flow.tokens or each.producers <= linear)
    ]
    leaves = [each.producers for each in outputs if each.kind == LIFTED]
    images = frozenset[str]().union(*leaves)
    shuffles = [path for path, module in model.named_modules() if isinstance(module, nn.PixelShuffle)]
    images |= {path for path in shuffles if any(call.out[1] == 1 for call in flow.calls.get(path, []))}
    for path in reversed(shuffles):  # pixels of an image are channels before
        images = images.union(*(call.input.producers for call in flow.calls.get(path, []) if path in images))
    reading = (*CONVOLUTIONS, nn.Linear, nn.PixelShuffle, nn.PixelUnshuffle)
    readers = [path for path, module in model.named_modules() if isinstance(module, reading)]
    calls = [call for path in readers for call in flow.calls.get(path, [])]
    read = images & frozenset[str]().union(*(call.input.producers for call in calls))
    late = read
    for _ in leaves:  # what is added to something that others read is averaged with it
        late = late.union(*(leaf for leaf in leaves if leaf & late))
    heads = images - late
    narrow = not shuffles and all(len(out := flow.calls[path][0].out) == 4 and out[1] < order for path in late)
    maps = all(call.input.producers <= images and len(call.out) == 4 for call in calls if call.input.producers & images)
    if narrow and maps:
        return {"images": images, "heads": images}
    return {"images": images, "heads": heads, "spread": late - read}


def _looked_at(module: nn.Module, outcome: Outcome) -> Outcome:
    r"""The outcome with a `weight` for code that asks for the dtype or device of a layer's, no parameter of its own."""
    if isinstance(outcome, Replaced) and hasattr(module, "weight") and not hasattr(outcome.module, "weight"):
        outcome.module.__dict__["weight"] = next(outcome.module.parameters(), None)
    return outcome


def _fibered(flow: Flow | None, shape: torch.Size, seen: Dataflow, heads: frozenset[str]) -> bool:
    r"""Whether an output is features with fibers, and no map, the fibers of which could be averaged."""
    plain = flow is None or flow.kind != LIFTED or (bool(flow.producers) and flow.producers <= heads)
    return not plain and (len(shape) == 3 or (seen.tokens and len(shape) != 4))


def _own_parameters(model: nn.Module, handled: Handled) -> list[nn.Parameter]:
    r"""The parameters of all modules that nothing takes the place of, and that are in none such."""
    known = {p for module in model.modules() if handled(module) for p in module.parameters()}
    return [p for p in model.parameters() if p not in known]


def _has_handler(module: nn.Module) -> bool:
    r"""Whether it is for a handler to say what takes its place: then nothing in it is looked at."""
    return not isinstance(module, nn.TransformerEncoder) and any(isinstance(module, kinds) for kinds, _ in HANDLERS)


def _example(caller: str, model: nn.Module, x: Tensor | None) -> Tensor:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        hint = "There is nothing to tie: see symmetrize."
        refuse(caller, "a model with parameters", type(model).__name__, hint)
    if x is None:
        if first is None:
            refuse(caller, "x for a model without a torch.nn.Conv2d", x, "Pass images of the size it is used at.")
        x = torch.randn(2, first.in_channels, 64, 64, generator=torch.Generator().manual_seed(0), device="cpu")
    check_float(caller, "x", x)
    if x.ndim != 4:
        refuse(caller, "x of shape (B, C, H, W)", tuple(x.shape), "Pass images.")
    return x.to(like.device, like.dtype)


def _outcome(
    module: nn.Module, calls: list[Call], broken: Broken | Cause | None, conversion: Conversion, handled: Handled
) -> Outcome:
    r"""What becomes of a module that was called so; `broken` is what its own `forward` calls that is not symmetric."""
    kinds, handler = next(((kinds, h) for kinds, h in HANDLERS if isinstance(module, kinds)), ((), None))
    if handler is not encoder and not handled(module):
        handler = None
    own = [p for p in module.parameters(recurse=False) if p.numel() > 1]
    if not calls:
        if own or (handler is not None and list(module.parameters())):
            return Refused(
                "it was not called with what comes from the input", broken if isinstance(broken, Cause) else None
            )
        return Kept("it was not called with what comes from the input, and has no parameters of its own")
    if handler is None:
        if isinstance(broken, Broken):
            return Refused(broken.why, broken.after, broken.after is not None)
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
    ((nn.Linear,), any_linear),
    ((nn.MultiheadAttention,), attention),
    ((nn.TransformerEncoder,), encoder),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d), pool),
    ((nn.Upsample,), upsample),
    (PADDING, padding),
    ((nn.PReLU,), prelu),
    ((nn.Dropout2d, nn.FeatureAlphaDropout), dropout),
    ((nn.PixelShuffle, nn.PixelUnshuffle), pixel_shuffle),
    (SHUFFLES, shuffle),
]
UNUSED = "it was not called when the model ran: left as it is"
SEEN = "it has no numbers of its own, and running it shows what it does"
POINTWISE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.Hardswish),
    *(nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus),
)
