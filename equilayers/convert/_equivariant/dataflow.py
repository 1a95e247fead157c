r"""What flows through a model: which layers read the image itself, and which what others have made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equilayers._modules import evaluation, tensors

IMAGE, LIFTED, MIXED, INVARIANT = "image", "lifted", "mixed", "invariant"
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
SIDE_BY_SIDE = ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class Flow:
    r"""What a tensor is: an image, lifted features, both side by side, or numbers that turns leave alone.

    channels: of the map it was last. makers: the convolutions it comes from by other steps alone. parts: of what its
    channels are put together, each the path of a convolution and its channels; () if that is not known.
    """

    kind: str
    channels: int
    makers: frozenset[str] = frozenset()
    parts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Role:
    r"""What a module is fed: its first tensor's flow and shape, and the shape it puts out."""

    fed: Flow
    shape: tuple[int, ...]
    out: tuple[int, ...]


@dataclass
class Course:
    r"""What was seen of a model: the roles of its modules, each time they are called, its flow and shapes at the end.

    output: None where nothing comes out that depends on the input. single: whether it is one tensor.
    """

    roles: dict[str, list[Role]] = field(default_factory=dict)
    output: Flow | None = None
    single: bool = True
    shapes: list[torch.Size] = field(default_factory=list)


def course(model: nn.Module, x: Tensor) -> Course:
    r"""Run the model on x in eval mode, without gradients, and see what flows where."""
    tracker = _Tracker()
    tracker.put(x, Flow(IMAGE, x.shape[1]))
    handles = [
        module.register_forward_hook(tracker.hook(path), with_kwargs=True) for path, module in model.named_modules()
    ]
    try:
        with evaluation(model), torch.no_grad(), tracker:
            out = model(x)
    finally:
        for handle in handles:
            handle.remove()
    found = list(tensors(out))
    output = _together([flow for t in found if (flow := tracker.get(t)) is not None])
    return Course(tracker.roles, output, isinstance(out, Tensor), [t.shape for t in found])


class _Tracker(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.flows: dict[int, tuple[Tensor, Flow]] = {}  # the tensors are kept, so that no other takes their id
        self.roles: dict[str, list[Role]] = {}

    def put(self, t: Tensor, flow: Flow) -> None:
        channels = t.shape[1] if t.ndim == 4 else flow.channels
        if t.ndim == 4 and channels == 1 and flow.kind == LIFTED:  # a gate, or a mean over all planes
            flow = Flow(IMAGE, 1)
        whole = sum(count for _, count in flow.parts) == channels
        self.flows[id(t)] = t, Flow(flow.kind, channels, flow.makers, flow.parts if whole else ())

    def get(self, t: Tensor) -> Flow | None:
        return self.flows[id(t)][1] if id(t) in self.flows else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name.startswith("new_") or name.endswith("_like"):  # numbers that do not come from the input
            return out
        given = list(tensors((args, kwargs or {})))
        flow = _together([flow for t in given if (flow := self.get(t)) is not None])
        if flow is not None and name in SIDE_BY_SIDE:
            flow = _side_by_side(flow, [self.get(t) or _of_zeros(t) for t in given])
        if flow is not None:
            for t in tensors(args[0] if name == "__setitem__" else out):
                self.put(t, flow)
        return out

    def hook(self, path: str) -> Any:
        def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            given = next((t for t in tensors((args, kwargs)) if self.get(t) is not None), None)
            if given is None:
                return
            fed = self.flows[id(given)][1]
            first = next(tensors(out), None)
            shape = tuple(first.shape) if first is not None else ()
            self.roles.setdefault(path, []).append(Role(fed, tuple(given.shape), shape))
            for t in tensors(out):
                if isinstance(module, CONVOLUTIONS):
                    self.put(t, Flow(LIFTED, t.shape[1], frozenset({path}), ((path, t.shape[1]),)))
                elif isinstance(module, nn.Linear) and fed.kind != IMAGE:
                    self.put(t, Flow(INVARIANT, t.shape[-1]))
                elif self.get(t) is None:  # made by something that torch does not show, an autograd.Function
                    self.put(t, fed)

        return after


def _together(flows: list[Flow]) -> Flow | None:
    r"""What comes of several tensors."""
    if not flows:
        return None
    kind = next(k for k in (MIXED, LIFTED, INVARIANT, IMAGE) if any(flow.kind == k for flow in flows))
    widest = max((flow for flow in flows if flow.kind == kind), key=lambda flow: flow.channels)
    makers = frozenset[str]().union(*(flow.makers for flow in flows))
    return Flow(kind, max(flow.channels for flow in flows), makers, widest.parts)


def _of_zeros(t: Tensor) -> Flow | None:
    r"""Planes of zeros are features as any others."""
    if t.ndim != 4 or bool(t.any()):
        return None
    return Flow(LIFTED, t.shape[1], parts=(("", t.shape[1]),))


def _side_by_side(flow: Flow, given: list[Flow | None]) -> Flow:
    r"""What comes of tensors in a row, some of which may not come from the input at all."""
    kinds = {None if each is None else each.kind for each in given}
    kind = MIXED if LIFTED in kinds and kinds != {LIFTED} else flow.kind
    parts = tuple(part for each in given if each is not None for part in each.parts)
    return Flow(kind, flow.channels, flow.makers, parts)
