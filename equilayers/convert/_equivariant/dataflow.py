r"""What flows through a model: which layers read the image itself, and which read features made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equilayers._modules import CallTracer, evaluation, tensors
from equilayers.convert._equivariant.functions import asymmetry

IMAGE, LIFTED, MIXED, INVARIANT = "image", "lifted", "mixed", "invariant"
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
CONCATENATIONS = ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class Flow:
    r"""What a tensor holds: an image, lifted features, both side by side, or numbers that rotations leave alone.

    channels: of the map it was last. producers: the convolutions it comes from by other steps alone. parts: the path
    and channels of each convolution whose outputs stand side by side in it; () if that is not known.
    """

    kind: str
    channels: int
    producers: frozenset[str] = frozenset()
    parts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Call:
    r"""A call of a module: its path, the flow and shape of its first tensor, and the shape of its output."""

    path: str
    input: Flow
    shape: tuple[int, ...]
    out: tuple[int, ...]


@dataclass(frozen=True)
class Dataflow:
    r"""What was seen when a model ran: the calls of its modules by path, and the flow and shapes of its outputs.

    outputs: of each tensor that comes out; None where it does not depend on the input. single: whether it is one tensor
    alone. gates: the linear layers whose output meets features again, as in squeeze and excitation. broken: by the path
    of the module whose `forward` called it, why a function breaks the symmetry.
    """

    calls: dict[str, list[Call]]
    gates: frozenset[str]
    broken: dict[str, str]
    outputs: list[Flow | None]
    single: bool
    shapes: list[torch.Size]


def dataflow(model: nn.Module, x: Tensor) -> Dataflow:
    r"""Run the model on x in eval mode, without gradients, and record what each module reads."""
    gates = None
    tracer = _FlowTracer(frozenset())
    while tracer.gates != gates:  # what reads numbers that are no gates may turn out to make some
        gates = tracer.gates
        tracer = _FlowTracer(gates)
        tracer.put(x, Flow(IMAGE, x.shape[1]))
        with evaluation(model), torch.no_grad(), tracer.watching(model.named_modules(), raising=False):
            out = model(x)
    outputs = list(tensors(out))
    flows, shapes = [tracer.get(t) for t in outputs], [t.shape for t in outputs]
    return Dataflow(tracer.calls, tracer.gates, tracer.broken, flows, isinstance(out, Tensor), shapes)


class _FlowTracer(CallTracer):
    def __init__(self, gates: frozenset[str]) -> None:
        super().__init__()
        self.gates = gates
        self.flows: dict[int, tuple[Tensor, Flow]] = {}  # the tensors are kept, so that no other takes their id
        self.calls: dict[str, list[Call]] = {}
        self.broken: dict[str, str] = {}
        self.inside: list[str] = []  # paths of the modules that are running, the innermost last

    def put(self, t: Tensor, flow: Flow) -> None:
        channels = t.shape[1] if t.ndim == 4 else flow.channels
        if t.ndim == 4 and channels == 1 and flow.kind == LIFTED:  # a gate, or a mean over all planes
            flow = Flow(IMAGE, 1)
        whole = sum(count for _, count in flow.parts) == channels
        self.flows[id(t)] = t, Flow(flow.kind, channels, flow.producers, flow.parts if whole else ())

    def get(self, t: Tensor) -> Flow | None:
        return self.flows[id(t)][1] if id(t) in self.flows else None

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

    def concatenated(self, flow: Flow, given: list[Tensor]) -> Flow:
        r"""The flow of tensors side by side, some of which may not come from the input at all."""
        flows = [self.get(t) or _of_zeros(t) for t in given]
        kinds = {None if each is None else each.kind for each in flows}
        kind = MIXED if LIFTED in kinds and kinds != {LIFTED} else flow.kind
        parts = tuple(part for each in flows if each is not None for part in each.parts)
        vectors = all(t.ndim == 2 for t in given)  # of which `put` cannot count the channels
        channels = sum(each.channels for each in flows if each is not None) if vectors else flow.channels
        return Flow(kind, channels, flow.producers, parts)

    def call(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        if name.startswith("new_") or name.endswith("_like"):  # numbers that do not come from the input
            return out
        given = list(tensors((args, kwargs)))
        flow = self.joined(given)
        if flow is not None:
            flow = self.concatenated(flow, given) if name in CONCATENATIONS else flow
            why = asymmetry(name, args, kwargs, out, lifted=flow.kind == LIFTED)
            if why is not None:
                self.broken.setdefault(self.inside[-1] if self.inside else "", why)
            for t in tensors(args[0] if name == "__setitem__" else out):
                self.put(t, flow)
        return out

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        self.inside.append(path)

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self.inside.pop() != path:  # a module in it raised something that was caught
            pass
        given = next((t for t in tensors((args, kwargs)) if self.get(t) is not None), None)
        if given is None:
            return
        flow, made = self.flows[id(given)][1], list(tensors(output))
        shape = tuple(made[0].shape) if made else ()
        self.calls.setdefault(path, []).append(Call(path, flow, tuple(given.shape), shape))
        for t in made:
            if isinstance(module, CONVOLUTIONS):
                self.put(t, Flow(LIFTED, t.shape[1], frozenset({path}), ((path, t.shape[1]),)))
            elif isinstance(module, nn.Linear) and flow.kind != IMAGE:
                gate = path in self.gates
                if gate and flow.kind == INVARIANT:
                    self.gates |= flow.producers
                kind = LIFTED if gate and flow.kind == LIFTED else INVARIANT
                number = t.shape[-1] == 1  # a single one, alike for all planes, needs no fiber
                parts = ((path, t.shape[-1]),) if kind == LIFTED else ()
                self.put(t, Flow(kind, t.shape[-1], frozenset() if number else frozenset({path}), parts))
            elif self.get(t) is None:  # made by something that torch does not show, an autograd.Function
                self.put(t, flow)


def _of_zeros(t: Tensor) -> Flow | None:
    r"""Planes of zeros are features as any others."""
    if t.ndim != 4 or bool(t.any()):
        return None
    return Flow(LIFTED, t.shape[1], parts=(("", t.shape[1]),))
