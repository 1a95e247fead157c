"""What is shipped: every layer in its variants and a small network of each kind, with inputs of any batch size."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conv_laws import ALGORITHMS, MODES
from equilayers.convert import symmetrize, to_antialiased, to_equivariant
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, Group
from equilayers.nn import (
    AngleHead,
    AvgBlurPool2d,
    BlurConv2d,
    BlurPool2d,
    GroupAttentionPool,
    GroupConv2d,
    GroupConvTranspose2d,
    GroupFeedForward,
    GroupLayerNorm,
    GroupLinear,
    GroupMultiheadAttention,
    GroupPositionEmbedding,
    GroupRelativePositionBias,
    GroupRMSNorm,
    GroupRotaryEmbedding,
    GroupTokens,
    GroupTransformerEncoder,
    GroupTransformerEncoderLayer,
    GroupUpsample,
    HarmonicBatchNorm,
    HarmonicConv2d,
    HarmonicMagnitude,
    HarmonicNonlinearity,
    InvariantAvgPool2d,
    InvariantHead,
    LiftingConv2d,
    LiftingLinear,
    MaxBlurPool2d,
    OrbitPool,
    PolyphasePool2d,
    PolyphaseUnpool2d,
    VectorHead,
    VectorLiftingConv2d,
    VectorLiftingLinear,
)
from strategies import C4, D1, D4, S3, T3, algorithms_of, filled, name

C1 = CyclicRotation(1)
C8, D6 = CyclicRotation(8, interpolation="bilinear"), Dihedral(6, interpolation="bilinear")
T4, T7 = CyclicTranslation(4), CyclicTranslation(7)


class Variant(NamedTuple):
    """How to make a module, and the shape of one sample of its input.

    graph: whether compilers and exporters see anything here that they do not see in another variant.
    """

    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    graph: bool = True

    def batch(self, size: int = 3, seed: int = 0) -> Tensor:
        return filled((size, *self.sample), torch.float32, seed)


Variants = dict[str, Variant]


def _linear(kind: type[nn.Module], spaces: dict[Group, Any]) -> Variants:
    def variants() -> Iterator[tuple[str, Variant]]:
        for group, space in spaces.items():
            sample = space if kind is LiftingLinear else (space, group.order)
            for algorithm in algorithms_of(group):
                make = lambda g=group, s=space, a=algorithm: kind(g, s, 7, algorithm=a)  # noqa: E731
                # Each transform once, and each other algorithm.
                transforms = (D4, T7) if kind is LiftingLinear else (C4, T3)
                graph = {"fourier": group in transforms, "auto": group == S3}.get(algorithm, group == C4)
                yield f"{name(group)} {algorithm}", Variant(make, sample, graph)

    return dict(variants())


def _convolution(kind: type[nn.Module]) -> Variants:
    def variants() -> Iterator[tuple[str, Variant]]:
        cases = [*itertools.product((C4, D4), ALGORITHMS, ["reflect"]), *((C4, "auto", mode) for mode in MODES)]
        cases += [*itertools.product((C1, D1), ("auto", "fourier"), ["reflect"])]
        for group, algorithm, mode in cases:
            # In graphs of narrow layers all algorithms are one, and both kinds pad alike.
            graph = algorithm == "auto" and (kind is LiftingConv2d or mode == "reflect")
            settings = {"stride": 2, "padding": 1, "groups": 2, "padding_mode": mode, "algorithm": algorithm}
            make = lambda g=group, s=settings: kind(g, 2, 4, 3, **s)  # noqa: E731
            fiber = () if kind is LiftingConv2d else (group.order,)
            yield f"{name(group)} {algorithm} {mode}", Variant(make, (2, *fiber, 7, 7), graph)
        for group, algorithm in ((C8, "auto"), (C8, "fourier"), (D6, "dense")):
            make = lambda g=group, a=algorithm: kind(g, 2, 4, 3, padding=1, algorithm=a)  # noqa: E731
            fiber = () if kind is LiftingConv2d else (group.order,)
            yield f"{name(group)} {algorithm}", Variant(make, (2, *fiber, 7, 7), (group, algorithm) == (C8, "auto"))

    return dict(variants())


def _harmonic() -> Variants:
    between = {
        f"{into} to {out}, {mode}": Variant(
            lambda i=into, o=out, m=mode: HarmonicConv2d(2, 3, 3, i, o, padding=1, padding_mode=m),
            (2, *(() if into is None else (2 * into + 2,)), 7, 7),
            (into, mode) in ((None, "reflect"), (1, "zeros"), (0, "zeros")),
        )
        for into, out in ((None, 1), (1, 1), (0, 2))
        for mode in (MODES if into is None else ("zeros",))
    }
    strided = Variant(lambda: HarmonicConv2d(2, 3, 5, 1, 0, stride=2, padding=1), (2, 4, 7, 7), False)
    return between | {"strided": strided}


def _each(makes: list[Callable[[], nn.Module]], sample: tuple[int, ...], graph: bool = True) -> Variants:
    return {repr(make()): Variant(make, sample, graph) for make in makes}


def _blur(kind: type[nn.Module], exact: int) -> Variants:
    made = lambda taps, stride, mode: kind(taps=taps, stride=stride, padding_mode=mode)  # noqa: E731
    settings = [("auto", 2, "reflect"), ((1, 2, 0.5), (1, 3), "reflect")]
    modes = [lambda m=mode: made("auto", 2, m) for mode in MODES if mode != "reflect"]
    more = [lambda: made(3, 3, "zeros"), lambda: made(4, 2, "circular"), lambda: kind(taps=exact, exact=True)]
    sample, alone = (3, 9, 13), kind is BlurPool2d  # the others blur in the same way
    dense = {"dense": Variant(lambda: kind(algorithm="dense"), sample, alone)}
    drawn = _each([lambda s=s: made(*s) for s in settings], sample) | _each(modes, sample, alone)
    return drawn | _each(more, sample, False) | dense


def _blur_conv() -> Variants:
    orders = {"conv-activation-blur": "circular", "blur-conv-activation": "reflect", "symmetric-stride": "replicate"}
    makes = [
        lambda o=order, m=mode: BlurConv2d(None, 2, 3, 3, padding=1, padding_mode=m, order=o)
        for order, mode in orders.items()
    ]
    tied = Variant(lambda: BlurConv2d(C4, 2, 3, 3, padding=1), (2, 4, 9, 9))
    strided = Variant(lambda: BlurConv2d(D4, 2, 3, 3, padding=1, order="symmetric-stride"), (2, 8, 8, 8), False)
    return _each(makes, (2, 10, 10)) | {"of a group": tied, "of a group, strided": strided}


def _polyphase() -> Variants:
    settings = [(2, 2.0), (2, 3.0), ((4, 2), math.inf)]
    plain = _each([lambda s=s: PolyphasePool2d(*s) for s in settings], (3, 8, 12))
    fiber = Variant(PolyphasePool2d, (3, 4, 8, 8))
    return plain | {"fiber": fiber, "inexact": Variant(lambda: PolyphasePool2d(3, exact=False), (3, 8, 11))}


def _transposed() -> Variants:
    settings = {"stride": 2, "padding": 1, "groups": 2}
    made = lambda group, algorithm: GroupConvTranspose2d(group, 2, 4, 4, algorithm=algorithm, **settings)  # noqa: E731
    return {
        f"{name(group)} {algorithm}": Variant(
            lambda g=group, a=algorithm: made(g, a), (2, group.order, 5, 5), (group, algorithm) == (C4, "auto")
        )
        for group, algorithm in itertools.product((C1, C4, D4), ("auto", "bitwise"))
    }


def _upsample() -> Variants:
    kinds = [{"scale_factor": 2}, {"size": 8, "mode": "bilinear"}, {"scale_factor": 1.5, "mode": "bicubic"}]
    kinds += [{"size": 7, "mode": "bilinear", "align_corners": True, "algorithm": "bitwise"}]
    return _each([lambda s=s: GroupUpsample(**s) for s in kinds], (3, 4, 4, 4))


class ThereAndBack(nn.Module):
    """A pool with its unpool, which takes the choice of the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = PolyphasePool2d(2, return_choice=True), PolyphaseUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x))


class AtPlaces(nn.Module):
    """A layer of positions as a model calls it: the bias added to scores, the rotary embedding told the map."""

    def __init__(self, layer: GroupRotaryEmbedding | GroupRelativePositionBias) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer() if isinstance(self.layer, GroupRelativePositionBias) else self.layer(x, (3, 3))


def _vectors(make: Callable[[str], nn.Module], sample: tuple[int, ...]) -> Variants:
    spaces: dict[tuple[int, ...], str] = {(): "bitwise", (5,): "auto", (3, 3): "bitwise"}
    return {f"{a} {s}": Variant(lambda a=a: make(a), (*sample, *s), s == (3, 3)) for s, a in spaces.items()}


def _encoder() -> nn.Module:
    layer = GroupTransformerEncoderLayer(C4, 4, 2, 6, layer_scale=0.5, algorithm="fourier")
    return GroupTransformerEncoder(layer, 2, GroupLayerNorm(4))


LAYERS: dict[str, Callable[[], Variants]] = {
    "LiftingLinear": lambda: _linear(
        LiftingLinear, {C1: (3, 3), C4: (5, 5), D4: (5, 5), T3: (2, 6), T4: (8,), T7: (7,), S3: (3,)}
    ),
    "GroupLinear": lambda: _linear(GroupLinear, dict.fromkeys((C1, C4, D4, T3, T4, T7, S3), 3)),
    "LiftingConv2d": lambda: _convolution(LiftingConv2d),
    "GroupConv2d": lambda: _convolution(GroupConv2d),
    "GroupConvTranspose2d": _transposed,
    "GroupUpsample": _upsample,
    "PolyphaseUnpool2d": lambda: _each([ThereAndBack], (3, 4, 8, 8)),
    "GroupPositionEmbedding": lambda: {
        name(group): Variant(
            lambda g=group, s=space: GroupPositionEmbedding(g, 3, s), (3, group.order, *space), group == C4
        )
        for group, space in {C4: (5, 5), T3: (2, 6), S3: (3,)}.items()
    },
    "GroupRotaryEmbedding": lambda: {
        f"{n} tokens": Variant(lambda: AtPlaces(GroupRotaryEmbedding(D4, 6)), (n, 8, 2, 6), n == 11) for n in (9, 11)
    },
    "GroupRelativePositionBias": lambda: _each([lambda: AtPlaces(GroupRelativePositionBias(D1, 2, (2, 3)))], (2, 6, 6)),
    "GroupTokens": lambda: _each([lambda: GroupTokens(3, 2)], (3, 4, 2, 3)),
    "GroupLayerNorm": lambda: _each([lambda: GroupLayerNorm(4)], (4, 4, 5)),
    "GroupRMSNorm": lambda: _each([lambda: GroupRMSNorm(4)], (4, 4, 2, 2)),
    "GroupMultiheadAttention": lambda: {
        "C4 fourier": Variant(
            lambda: GroupMultiheadAttention(C4, 4, 2, num_kv_heads=1, algorithm="fourier"), (4, 4, 5), False
        ),
        "D4 rotary": Variant(
            lambda: GroupMultiheadAttention(D4, 4, 2, rotary=GroupRotaryEmbedding(D4, 2)), (4, 8, 3, 3)
        ),
    },
    "GroupFeedForward": lambda: _each([lambda: GroupFeedForward(D4, 4, 6, "swiglu", algorithm="fourier")], (4, 8, 5)),
    "GroupTransformerEncoderLayer": lambda: {
        "D4 fourier": Variant(
            lambda: GroupTransformerEncoderLayer(D4, 4, 2, 6, layer_scale=0.5, algorithm="fourier"), (4, 8, 3, 3), False
        ),
        "D1 dense": Variant(lambda: GroupTransformerEncoderLayer(D1, 4, 2, 6, norm_first=False), (4, 2, 3), False),
        "S3 fourier": Variant(
            lambda: GroupTransformerEncoderLayer(S3, 4, 2, 6, norm="rms", norm_first=False, algorithm="fourier"),
            (4, 6, 3),
        ),
    },
    "GroupTransformerEncoder": lambda: {"C4 fourier": Variant(_encoder, (4, 4, 3, 3))},
    "GroupAttentionPool": lambda: _each([lambda: GroupAttentionPool(C4, 4, 2)], (4, 4, 5)),
    "InvariantHead": lambda: {
        str(sample): Variant(lambda: InvariantHead(3, 2), sample) for sample in ((3, 4), (3, 4, 5), (3, 4, 3, 3))
    },
    "OrbitPool": lambda: {
        f"{reduction} of {sample}": Variant(lambda r=reduction: OrbitPool(r), sample)
        for reduction in ("max", "mean", "logsumexp", "norm")
        for sample in ((3, 4), (3, 9), (2, 4, 5, 5))
    },
    "InvariantAvgPool2d": lambda: {
        str(sample): Variant(InvariantAvgPool2d, sample) for sample in ((3, 6, 6), (3, 5, 7), (3, 4, 6, 6))
    },
    "BlurPool2d": lambda: _blur(BlurPool2d, 3),
    "MaxBlurPool2d": lambda: _blur(MaxBlurPool2d, 4),
    "AvgBlurPool2d": lambda: _blur(AvgBlurPool2d, 4),
    "BlurConv2d": _blur_conv,
    "PolyphasePool2d": _polyphase,
    "VectorLiftingConv2d": lambda: {
        **{
            a: Variant(
                lambda a=a: VectorLiftingConv2d(D4, 2, 4, 3, stride=2, padding=1, groups=2, algorithm=a),
                (2, 2, 7, 7),
                a == "auto",
            )
            for a in ("auto", "bitwise")
        },
        "C8": Variant(lambda: VectorLiftingConv2d(C8, 1, 2, 3, padding=1, padding_mode="reflect"), (1, 2, 7, 7)),
    },
    "VectorLiftingLinear": lambda: _vectors(lambda a: VectorLiftingLinear(C4, 2, 3, algorithm=a), (2, 2)),
    "VectorHead": lambda: _vectors(lambda a: VectorHead(D4, 2, 3, algorithm=a, axes="right-down"), (2, 8)),
    "AngleHead": lambda: _vectors(lambda a: AngleHead(C4, 2, 3, 2, algorithm=a), (2, 4)),
    "HarmonicConv2d": _harmonic,
    "HarmonicNonlinearity": lambda: _each([lambda: HarmonicNonlinearity(2, 1)], (2, 4, 5, 5)),
    "HarmonicBatchNorm": lambda: _each([lambda: HarmonicBatchNorm(2, 1)], (2, 4, 5, 5)),
    "HarmonicMagnitude": lambda: _each([HarmonicMagnitude], (2, 4, 5, 5)),
}


def plain_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def tied_mlp() -> nn.Sequential:
    return nn.Sequential(LiftingLinear(C4, (1, 8, 8), 8), OrbitPool(), nn.ReLU(), nn.Linear(8, 3))


def group_cnn() -> nn.Sequential:
    return nn.Sequential(
        LiftingConv2d(C4, 1, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        GroupConv2d(C4, 4, 4, 3, padding=1),
        InvariantAvgPool2d(),
        GroupLinear(C4, 4, 8),
        OrbitPool("mean"),
        nn.Linear(8, 3),
    )


def pooled_cnn() -> nn.Sequential:
    return nn.Sequential(
        LiftingConv2d(D4, 1, 4, 3, padding=1, bias=False),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        BlurPool2d(),
        GroupConv2d(D4, 4, 4, 3, padding=1, bias=False),
        nn.BatchNorm3d(4),
        MaxBlurPool2d(),
        InvariantAvgPool2d(),
        OrbitPool("norm"),
        nn.Linear(4, 3),
    )


def shift_cnn() -> nn.Sequential:
    conv = lambda c, d: nn.Conv2d(c, d, 3, padding=1, padding_mode="circular")  # noqa: E731
    blocks = conv(1, 4), nn.ReLU(), PolyphasePool2d(), conv(4, 4), nn.ReLU(), PolyphasePool2d()
    return nn.Sequential(*blocks, conv(4, 3), InvariantAvgPool2d())


def steered_cnn() -> nn.Sequential:
    convs = LiftingConv2d(C8, 1, 2, 3, padding=1), nn.ReLU(), BlurPool2d(), GroupConv2d(C8, 2, 2, 3, padding=1)
    return nn.Sequential(*convs, OrbitPool(), InvariantAvgPool2d(), nn.Linear(2, 3))


def harmonic_network() -> nn.Sequential:
    first = HarmonicConv2d(1, 2, 5, None, 1, padding=2), HarmonicBatchNorm(2, 1), HarmonicNonlinearity(2, 1)
    then = BlurPool2d(), HarmonicConv2d(2, 2, 5, 1, 1, padding=2), HarmonicMagnitude()
    return nn.Sequential(*first, *then, InvariantAvgPool2d(), nn.Linear(4, 3))


def _network(*makes: Callable[[], nn.Module], graph: bool = False) -> Callable[[], Variants]:
    """Graphs see nothing in a network that they do not see in its layers, but for the sizes between them."""
    return lambda: {f"{i}": Variant(make, (1, 8, 8), graph and i == 0) for i, make in enumerate(makes)}


NETWORKS: dict[str, Callable[[], Variants]] = {
    "tied MLP": _network(tied_mlp),
    "group CNN": _network(group_cnn),
    "group CNN with BlurPool2d and BatchNorm3d": _network(pooled_cnn, graph=True),
    "shift-invariant CNN": _network(shift_cnn),
    "C8 CNN": _network(steered_cnn),
    "harmonic network": _network(harmonic_network),
    "to_equivariant": _network(lambda: to_equivariant(plain_cnn(), C4, torch.randn(2, 1, 8, 8))[0], graph=True),
    "to_antialiased": _network(lambda: to_antialiased(plain_cnn())[0]),
    "symmetrize": _network(
        *(lambda r=r: symmetrize(plain_cnn(), C4, r) for r in ("mean", "probabilities", "max")), graph=True
    ),
}
SHIPPED: dict[str, Callable[[], Variants]] = LAYERS | NETWORKS


class Scale(nn.Module):
    """A layer with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class Together(nn.Module):
    """Many modules with an input each, for tools that are slow to start."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part, x in zip(self.parts, inputs, strict=True))


def trained(variant: Variant) -> nn.Module:
    """The module; one without parameters behind a layer with one."""
    module = variant.make()
    return module if list(module.parameters()) else nn.Sequential(Scale(), module)


def weighted(y: Tensor) -> Tensor:
    """A mean over the samples of a number that looks at every output differently."""
    return (y * torch.linspace(-1, 1, y[0].numel()).view(y.shape[1:])).flatten(1).sum(1).mean()


def gradients(module: nn.Module, x: Tensor, of_input: bool = False) -> dict[str, Tensor]:
    wanted = dict(module.named_parameters())
    if of_input:
        x = wanted["x"] = x.clone().requires_grad_()
    return dict(zip(wanted, torch.autograd.grad(weighted(module(x)), list(wanted.values())), strict=True))


class Broken(nn.Module):
    """A linear layer with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.start = fault, random.random()
        self.weight = nn.Parameter(torch.empty(4, 4))
        self.reset_parameters()
        self.kept = [self.weight.detach().clone()]
        if fault == "cannot be pickled":
            self.hook = lambda x: x

    @classmethod
    def variant(cls, fault: str) -> Variant:
        return Variant(lambda: cls(fault), (2, 3, 4))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"start": random.random()} if self.fault == "copies start anew" else {})

    def forward(self, x: Tensor) -> Tensor:
        match self.fault:
            case "copies start anew" | "state outside the state dict":
                return x @ self.weight + self.start
            case "weights kept elsewhere":
                return x @ self.kept[0] + 0 * (x @ self.weight)
            case "fixed batch":
                return x.reshape(3, *x.shape[1:]) @ self.weight
            case "looks at its numbers":
                return x @ self.weight if x.sum().item() > 0 else 2 * (x @ self.weight)
            case "samples see each other":
                return (x - x.mean(0)) @ self.weight
            case "blind to autocast":
                with torch.autocast("cpu", enabled=False):
                    return x @ self.weight
            case "in the order of memory":
                return x.as_strided(x.shape, (24, 12, 4, 1)) @ self.weight
        return x @ self.weight


def wrapped() -> Iterator[tuple[str, str, Variant]]:
    """Everything that is shipped, row by row, and at the end what is not fit to be."""
    rows = SHIPPED | {"planted": lambda: {"": Broken.variant("samples see each other")}}
    for row, variants in rows.items():
        for what, variant in variants().items():
            if variant.graph or row in NETWORKS:  # the others compute the same gradients
                yield row, what, variant


def kit() -> Iterator[tuple[str, str, Variant]]:
    """The transformer layers."""
    for row, variants in LAYERS.items():
        if any(word in row for word in ("Transformer", "Attention", "FeedForward", "LayerNorm")):
            yield from ((row, what, variant) for what, variant in variants().items())


class Checkpointed(nn.Module):
    """A module that keeps nothing for the backward pass, and counts how often it is computed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def _computed(self, *args: Any, **more: Any) -> Tensor:
        self.calls += 1
        y: Tensor = self.module(*args, **more)
        return y

    def forward(self, *args: Any, **more: Any) -> Tensor:
        y: Tensor = checkpoint(self._computed, *args, use_reentrant=False, **more)
        return y


def sharded(variant: Variant) -> nn.Module:
    """By FSDP2: each layer of an encoder, and the whole."""
    from torch.distributed.fsdp import fully_shard

    module = variant.make().eval()
    for layer in getattr(module, "layers", []):
        fully_shard(layer)
    fully_shard(module)
    return module


def distributed(index: int, folder: str) -> None:
    """One of two processes: the gradients of its half of each batch, averaged by DistributedDataParallel and FSDP2."""
    rank = index + 1
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for row, what, variant in wrapped():
        torch.manual_seed(0)
        module = nn.parallel.DistributedDataParallel(trained(variant).eval())
        weighted(module(variant.batch(4).chunk(2)[rank])).backward()
        found |= {f"{row}: {what}: {key}": p.grad for key, p in module.module.named_parameters()}
    for row, what, variant in kit():
        torch.manual_seed(0)
        shards = sharded(variant)
        weighted(shards(variant.batch(4).chunk(2)[rank])).backward()
        found |= {f"sharded: {row}: {what}: {key}": p.grad.full_tensor() for key, p in shards.named_parameters()}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
