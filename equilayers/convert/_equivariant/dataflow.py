r"""What flows through a model: which layers read the image itself, and which read features made of it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, MutableMapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from equilayers._modules import CallTracer, evaluation, tensors
from equilayers.convert._equivariant.flows import (
    CONVOLUTIONS,
    IMAGE,
    INVARIANT,
    LIFTED,
    MIXED,
    Broken,
    Call,
    Dataflow,
    Flow,
    of_zeros,
    unwhole,
)
from equilayers.convert._equivariant.functions import DECIDED, asymmetry
from equilayers.convert._equivariant.kinds import CASTS, DECIDING
from equilayers.convert._equivariant.labels import (
    Labels,
    Lost,
    Moved,
    Raw,
    constant,
    fresh_map,
    fresh_rows,
    is_learned,
    is_regular,
    last_axis,
    making_on,
    planes,
    turns_as_map,
)
from equilayers.convert._equivariant.rules import Rules
from equilayers.convert._equivariant.ties import Ties
from equilayers.convert._report import Cause
from equilayers.groups import Group

CONCATENATIONS = ("cat", "concat", "concatenate")
CUTTING = ("__getitem__", "unfold")
MAP_LAYERS = (
    *(*CONVOLUTIONS, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.Upsample, nn.ConstantPad2d),
    *(nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d, nn.PixelShuffle, nn.PixelUnshuffle),
)
# Layers that leave every entry in its place.
SAME = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.PReLU, nn.Dropout2d),
    *(nn.FeatureAlphaDropout, nn.LocalResponseNorm),
)
UNFED = "it makes numbers of constants, not of the input: what they meet would have to be left alone by the group"
LABELLED = 2  # images that are enough to see where entries go
Handled = Callable[[nn.Module], bool]


def dataflow(model: nn.Module, x: Tensor, group: Group, handled: Handled, ties: Ties) -> Dataflow:
    r"""Run the model on x in eval mode, without gradients, and record what each module reads.

    handled: whether a module is one that others take the place of. ties: of the parameters of all other modules; those
    that meet features are tied.
    """
    gates, version = None, -1
    tracer = _FlowTracer(frozenset(), Rules(group, ties), handled)
    fast = torch.backends.mha.get_fastpath_enabled()  # which would hide what an encoder layer calls
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            few, wrong, made = x[:LABELLED], {**ties.wrong}, _unused(model)
            with evaluation(made):  # which takes a moment, also to raise where the model takes no such images
                whole = made(x.clone())
            while tracer.gates != gates or ties.version != version:  # what is found may change what is found further on
                gates, version = tracer.gates, ties.version
                ties.wrong = {**wrong}
                tracer = _FlowTracer(gates, Rules(group, ties), handled)
                tracer.put(few, Flow(IMAGE, x.shape[1]), tracer.image(few))
                made = _unused(model)
                with evaluation(made), tracer.watching(made.named_modules(), raising=False):
                    out = made(few)
                ties.carry_back(group)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for where, why in tracer.sliced:
        tracer.broken.setdefault(where, why)
    flows, shapes = [tracer.at_last(t) for t in tensors(out)], [t.shape for t in tensors(whole)]
    single, entered = isinstance(out, Tensor), frozenset(tracer.entered)
    found = Dataflow(tracer.calls, tracer.gates, tracer.broken, flows, single, shapes, entered, tracer.unfed)
    labels = [tracer.label(t) for t in tensors(out)]
    causes = [
        label.cause if isinstance(label, Lost) else label.cut for label in labels if isinstance(label, Lost | Moved)
    ]
    lost = next((cause for cause in causes if cause is not None), None)
    known = lost is None and None not in labels
    lost = lost if found.tokens else None
    return dataclasses.replace(found, lost=lost, known=known, outside=frozenset(tracer.outside))


def _unused(model: nn.Module) -> nn.Module:
    r"""The model with the same numbers: what a run leaves in it, windows of a small map or caches, is forgotten."""
    numbers: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, numbers).train()  # when they are trained, many forget what they kept


class _FlowTracer(CallTracer):
    def __init__(self, gates: frozenset[str], rules: Rules, handled: Handled) -> None:
        super().__init__()
        self.gates = gates
        self.rules = rules
        self.handled = handled
        # Forgotten with the tensors: names are six times as large as what they name.
        self.flows: MutableMapping[Tensor, Flow] = WeakTensorKeyDictionary()
        self.labels: MutableMapping[Tensor, Labels] = WeakTensorKeyDictionary()
        self.calls: dict[str, list[Call]] = {}
        self.broken: dict[str, Broken] = {}
        # Of each slice that takes every so many, where, and why it breaks; and of all that were not joined again.
        self.slices: MutableMapping[Tensor, tuple[str, Broken]] = WeakTensorKeyDictionary()
        self.sliced: list[tuple[str, Broken]] = []
        self.inside: list[str] = []  # paths of the modules that are running, the innermost last
        # Made by functions of torch, but not from the input.
        self.constants: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self.unfed: dict[str, Cause] = {}  # by path of what has parameters, and reads constants alone
        self.entered: set[str] = set()
        self.outside: set[nn.Parameter] = set()  # parameters of layers that others take the place of, read by others
        self.busy: list[str] = []  # of those that others take the place of
        self.naming = False  # whether what is called are not the model's functions, but our own on names

    def image(self, x: Tensor) -> Labels:
        group = self.rules.group
        if x.is_meta:
            return Lost(Cause("", "tensors on the meta device have no numbers"))
        if any(group.act(g, x).shape != x.shape for g in group.generating_set()):
            return Lost(Cause("", "the image is not square"))
        with making_on(x.device):
            return fresh_map(group, x.shape, 0, fibered=False)

    def put(self, t: Tensor, flow: Flow, label: Labels | None) -> None:
        channels = t.shape[1] if t.ndim == 4 else flow.channels
        if t.ndim == 4 and channels == 1 and flow.kind == LIFTED and self.is_image(label):
            flow = Flow(IMAGE, 1)  # a gate, or a mean over all planes
        whole = sum(count for _, count in flow.parts) == channels
        self.flows[t] = Flow(flow.kind, channels, flow.producers, flow.parts if whole else ())
        if label is not None:
            self.labels[t] = label

    def is_image(self, label: Labels | None) -> bool:
        r"""Whether nothing is known against that the group does not touch the channels."""
        return not isinstance(label, Moved) or turns_as_map(self.rules.group, label.names, fibered=False)

    def get(self, t: Tensor) -> Flow | None:
        return self.flows.get(t)

    def at_last(self, t: Tensor) -> Flow | None:
        r"""The flow of an output: invariant where no entry is moved."""
        flow, label = self.get(t), self.label(t)
        still = isinstance(label, Moved) and all(torch.equal(each, label.names[0]) for each in label.names)
        return dataclasses.replace(flow, kind=INVARIANT) if flow is not None and still else flow

    def is_theirs(self, t: Tensor) -> TypeGuard[nn.Parameter]:
        r"""Whether it is a parameter of a layer that others take the place of, which is not running."""
        return isinstance(t, nn.Parameter) and not self.busy and t not in self.rules.ties.starts

    def label(self, t: Tensor) -> Labels | None:
        if t in self.rules.ties.starts:
            self.rules.ties.used.add(t)
            return self.rules.ties.label(t)
        return self.labels.get(t)

    def joined(self, given: list[Tensor]) -> Flow | None:
        r"""The flow of what is computed from several tensors."""
        flows = [flow for t in given if (flow := self.get(t)) is not None]
        if not flows:
            return None
        kind = next(k for k in (MIXED, LIFTED, INVARIANT, IMAGE) if any(flow.kind == k for flow in flows))
        widest = max((flow for flow in flows if flow.kind == kind), key=lambda flow: flow.channels)
        producers = frozenset[str]().union(*(flow.producers for flow in flows))
        if kind == LIFTED:  # what meets features again is to have a fiber itself
            self.gates = self.gates.union(*(flow.producers for flow in flows if flow.kind == INVARIANT))
        return Flow(kind, max(flow.channels for flow in flows), producers, widest.parts)

    def concatenated(self, flow: Flow, given: list[Tensor], label: Labels | None) -> Flow:
        r"""The flow of tensors side by side, some of which may not come from the input at all."""
        flows = [self.get(t) or of_zeros(t) for t in given]
        if isinstance(label, Moved):  # parameters are tied to what they stand beside
            own = [self.label(t) for t in given]
            flows = [flow if isinstance(raw, Raw) and raw.sources else f for f, raw in zip(flows, own, strict=True)]
        kinds = {None if each is None else each.kind for each in flows}
        kind = MIXED if LIFTED in kinds and kinds != {LIFTED} else flow.kind
        parts = tuple(part for each in flows if each is not None for part in each.parts)
        vectors = all(t.ndim == 2 for t in given)  # of which `put` cannot count the channels
        channels = sum(each.channels for each in flows if each is not None) if vectors else flow.channels
        return Flow(kind, channels, flow.producers, parts)

    def call(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        if self.naming:
            return function(*args, **kwargs)
        if name == "__get__" and not isinstance(out := function(*args, **kwargs), Tensor):
            return out  # a shape, a dtype
        fresh = name.startswith("new_") or name.endswith("_like")  # numbers that do not come from the input
        given = [] if fresh else list(tensors((args, kwargs)))
        self.outside |= {t for t in (given[:1] if name.strip("_") in CASTS else given) if self.is_theirs(t)}
        labelled = None
        if given and not self.busy and not given[0].is_meta:  # what is labelled has numbers
            with making_on(given[0].device):
                if any(self.label(t) is not None for t in given):
                    self.rules.where = self.inside[-1] if self.inside else ""
                    labelled = self.rules.of(name, function, args, kwargs, self.label)
        versions = [_version(t) for t in given]
        out = function(*args, **kwargs)
        made = list(tensors(args[0] if name == "__setitem__" else out))
        if made and not fresh:
            self.made(name, (args, kwargs), out, made, labelled)
        elif name.strip("_") in DECIDING and any(self.get(t) is not None for t in given):
            self.broken.setdefault(self.inside[-1] if self.inside else "", Broken(DECIDED.format(name.strip("_"))))
        for t, version in zip(given, versions, strict=True):
            if _version(t) != version and not self.busy and not t.is_meta:
                with making_on(t.device):
                    self.written(t)
        return out

    def made(
        self,
        name: str,
        called: tuple[Any, Any],
        out: Any,
        made: list[Tensor],
        labelled: Callable[[Any], list[Labels]] | None,
    ) -> None:
        r"""Remember what the tensors hold that a function put out; labelled: gives their labels."""
        given, why = list(tensors(called)), None
        labels: list[Labels | None] = [None] * len(made)
        flow = self.joined(given)
        if flow is not None or labelled is not None:
            why = asymmetry(name, called, out, lifted=flow is not None and flow.kind == LIFTED)
        if labelled is not None:
            self.rules.doubt = why or ""
            flows = [self.get(t) for t in given]  # the hint outlives the call, and must keep no tensors
            self.rules.hint = lambda: unwhole(self.calls, flows, self.rules.group.order)
            with making_on(made[0].device):
                labels = [*labelled(made[0] if name == "__setitem__" else out)]
        if flow is not None or any(labels):
            flow = self.concatenated(flow, given, labels[0]) if flow and name in CONCATENATIONS else flow
            self.judge(name, given, made[0], labels[0], why)
        for t, label in zip(made, labels, strict=True):
            if flow is not None:
                self.put(t, flow, label)
            elif label is not None:
                self.labels[t] = label
            else:
                self.constants[t] = True

    def written(self, t: Tensor) -> None:
        r"""What shares its numbers with a tensor that was changed in place changes with it."""
        label = self.label(t)
        start = t.untyped_storage().data_ptr()
        for other in [*self.labels, *self.constants] if t.numel() else ():
            if label is not None and other is not t and other.numel() and other.untyped_storage().data_ptr() == start:
                made = self.rules.overwritten(other, self.label(other) or constant(other), t, label)
                flow = self.get(other) or self.get(t)
                if flow is not None:
                    self.put(other, flow, made)
                else:
                    self.labels[other] = made

    def judge(self, name: str, given: list[Tensor], out: Tensor, label: Labels | None, why: str | None) -> None:
        r"""Remember why a function breaks the symmetry; of slices, whose entries are known, unless they are joined."""
        where = self.inside[-1] if self.inside else ""
        if why is not None and name in CUTTING and isinstance(label, Moved):
            self.slices[out] = where, Broken(why, label.cut)
            self.sliced.append(self.slices[out])
        elif why is not None:
            cause = label.cause if name in CUTTING and isinstance(label, Lost) else None
            self.broken.setdefault(where, Broken(why, cause))
        if name in CONCATENATIONS and isinstance(label, Moved):
            for t in given:
                if t in self.slices:
                    self.sliced.remove(self.slices.pop(t))

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        self.entered.add(path)
        self.inside.append(path)
        if self.handled(module):
            self.busy.append(path)

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.naming = True
        try:
            self.left(path, module, (args, kwargs), output)
        finally:
            self.naming = False

    def left(self, path: str, module: nn.Module, called: tuple[Any, Any], output: Any) -> None:
        r"""Remember what a module was called with, and what it put out."""
        while self.inside.pop() != path:  # a module in it raised something that was caught
            pass
        while path in self.busy:
            self.busy.pop()
        inputs = list(tensors(called))
        given = next((t for t in inputs if self.get(t) is not None), None)
        if given is None and self.handled(module) and not self.busy:
            given = self.learned(path, module, inputs, output)
        if given is None:
            return
        flow, made = self.get(given) or Flow(LIFTED, given.shape[-1]), list(tensors(output))
        shape = tuple(made[0].shape) if made else ()
        label, moves = None, None
        if self.handled(module) and not self.busy and not given.is_meta:
            with making_on(given.device):
                label, moves = self.replaced(path, module, called, made)
        lost = label.cause if isinstance(label, Lost) else None
        if moves is not None and is_regular(self.rules.group, moves):
            flow = Flow(flow.kind, given.shape[-1], flow.producers, flow.parts)
        self.calls.setdefault(path, []).append(Call(path, flow, tuple(given.shape), shape, moves, lost))
        for t in made:
            if isinstance(module, CONVOLUTIONS):
                self.put(t, Flow(LIFTED, t.shape[1], frozenset({path}), ((path, t.shape[1]),)), label)
            elif isinstance(module, nn.Linear) and self.handled(module) and (flow.kind != IMAGE or label is not None):
                self.put(t, self.linear(path, flow, t, moves), label)
            elif self.get(t) is None:  # made by something that torch does not show, an autograd.Function
                unseen = Lost(self.rules.cause("it is made by something that torch does not show"))
                self.put(t, flow, label or (None if t in self.constants else unseen))
            elif label is not None:
                self.put(t, self.flows[t], label)
            if isinstance(module, nn.PixelShuffle):
                self.flows[t] = Flow(self.flows[t].kind, t.shape[1], frozenset({path}))

    def learned(self, path: str, module: nn.Module, inputs: list[Tensor], output: Any) -> Tensor | None:
        r"""Parameters that a layer reads as features, such as queries; of constants nothing is known."""
        labels = [self.label(t) for t in inputs]
        found = next((t for t, label in zip(inputs, labels, strict=True) if is_learned(label)), None)
        if found is None and list(module.parameters()):
            self.rules.where = path
            cause = next((label.cause for label in labels if isinstance(label, Lost)), self.rules.cause(UNFED))
            self.unfed[path] = cause
            for t in tensors(output):
                self.labels[t] = Lost(cause)
        return found

    def linear(self, path: str, flow: Flow, t: Tensor, moves: Tensor | None) -> Flow:
        r"""The flow that a linear layer puts out: tokens keep fibers, vectors do if they meet features again."""
        gate, tokens = path in self.gates, t.ndim > 2 and moves is not None
        if gate and flow.kind == INVARIANT:
            self.gates |= flow.producers
        kind = LIFTED if tokens or (gate and flow.kind == LIFTED) else INVARIANT
        number = t.shape[-1] == 1  # a single one, alike for all planes, needs no fiber
        parts = ((path, t.shape[-1]),) if kind == LIFTED else ()
        return Flow(kind, t.shape[-1], frozenset() if number else frozenset({path}), parts)

    def replaced(
        self, path: str, module: nn.Module, given: tuple[Any, Any], made: list[Tensor]
    ) -> tuple[Labels, Tensor | None]:
        r"""The label of what a module that is replaced puts out, and how the last axis moves of what it reads."""
        rules, group = self.rules, self.rules.group
        rules.where, rules.doubt = path, ""
        inputs, named = list(tensors(given)), {}
        if isinstance(module, nn.MultiheadAttention):
            named = inspect.signature(module.forward).bind(*given[0], **given[1]).arguments
            inputs = [named[name] for name in ("query", "key", "value")]
        zeros = {id(t) for t in inputs if not (self.get(t) or is_learned(self.label(t)) or bool(t.any()))}
        labels = {id(t): self.settled(t, zero=id(t) in zeros) for t in inputs}
        label = labels[id(inputs[0])]
        if not isinstance(label, Moved) or not made:
            return rules.lost([label], UNFED), None
        out = made[0].shape
        if isinstance(module, MAP_LAYERS):
            conv = isinstance(module, CONVOLUTIONS)
            return rules.mapped(label, out, fibered=True if conv else None), None
        if isinstance(module, SAME):
            return rules.met([label], out, type(module).__name__), None
        moves = last_axis(group, label.names)
        if moves is None:
            return rules.lost([label], rules.unknown_axis(label), uneven=True), None
        if isinstance(module, nn.MultiheadAttention):
            label = rules.attended(module, named, lambda t: labels.get(id(t)) or self.label(t) or constant(t))
            if not isinstance(label, Moved):
                return label, None
        width = out[-1]
        fibered = width % group.order == 0 and (len(out) > 2 or path in self.gates or not isinstance(module, nn.Linear))
        return fresh_rows(label.names, planes(group, width, fibered=fibered), rules.salt), moves

    def settled(self, t: Tensor, *, zero: bool) -> Labels:
        r"""The label of what a module reads: parameters and zeros are left alone."""
        label = self.label(t) or constant(t)
        if not isinstance(label, Raw):
            return label
        return self.rules.settled(label) if label.sources or zero else label


def _version(t: Tensor) -> int:
    r"""Grows whenever the numbers are changed in place."""
    return 0 if t.is_inference() else t._version
