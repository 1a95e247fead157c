"""Derivatives of the convolutions: numerically, of second order, under torch.func, wherever tables are made first."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from conv_laws import Kind, Settings, each_kind, make, square
from equilayers.functional import group_conv2d, lift_conv2d
from equilayers.groups import Group
from equilayers.nn import LiftingConv2d
from strategies import C4, D1, each_group, filled

DIFFERENT = ("dense", "orbit", "fourier")  # the others are one of these
CLOSE = {"atol": 1e-12, "rtol": 1e-12}
SETTINGS = {
    "padded": square(3, 3, padding=1),
    "strided": square(3, 3, stride=2, padding=1),
    "dilated": square(4, 2, dilation=2, groups=2),
    "padded beyond the kernel": square(2, 1, padding=1),
    "strided, dilated, padded": square(4, 2, stride=2, padding=2, dilation=3, padding_mode="circular"),
}
LOPSIDED = Settings((6, 5), (3, 3), (2, 2))

each_algorithm = pytest.mark.parametrize("algorithm", DIFFERENT)


def run(kind: Kind, group: Group, s: Settings, algorithm: str) -> Callable[..., Tensor]:
    """The function of x, weight and bias."""
    function = lift_conv2d if kind is LiftingConv2d else group_conv2d
    return lambda x, weight, bias=None: function(x, weight, bias, group, algorithm=algorithm, **s.keywords)


def arguments(kind: Kind, group: Group, s: Settings, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    fiber = () if kind is LiftingConv2d else (group.order,)
    sizes = ((batch, s.groups, *fiber, *s.size), (2 * s.groups, 1, *fiber, *s.kernel_size), (2 * s.groups,))
    x, weight, bias = (filled(size, torch.float64, seed).requires_grad_() for seed, size in enumerate(sizes))
    return x, weight, bias


@each_algorithm
@each_kind
@each_group
def test_gradcheck_and_gradgradcheck(group: Group, kind: Kind, algorithm: str) -> None:
    cases = [*SETTINGS.values(), *([LOPSIDED] if group == D1 else [])]
    brief = group.order == 8 or (algorithm != "fourier" and group != C4)
    for s in cases[:2] if brief else cases:
        function, inputs = run(kind, group, s, algorithm), arguments(kind, group, s)
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_algorithm
@each_kind
@each_group
def test_vmap_and_jacrev_are_loops(group: Group, kind: Kind, algorithm: str) -> None:
    for s in (SETTINGS["strided"], *([SETTINGS["dilated"]] if group == C4 else [])):
        x, weight, bias = arguments(kind, group, s, batch=3)
        function = run(kind, group, s, algorithm)
        one = lambda x, w=weight, b=bias, f=function: f(x[None], w, b)[0]  # noqa: E731
        y = function(x, weight, bias)
        torch.testing.assert_close(vmap(one)(x), y, **CLOSE)
        batches = torch.stack([x, 2 * x], 1)
        expected = torch.stack([y, function(2 * x, weight, bias)], 1)
        torch.testing.assert_close(vmap(lambda x: function(x, weight, bias), 1, 1)(batches), expected, **CLOSE)  # noqa: B023
        weights, biases = torch.stack([weight, 2 * weight, -weight]), torch.stack([bias, 3 * bias, bias])
        many = vmap(lambda w: function(x, w, bias))(weights)  # noqa: B023
        torch.testing.assert_close(many, torch.stack([function(x, w, bias) for w in weights]), **CLOSE)
        many = vmap(one)(x, weights, biases)
        expected = torch.stack([one(*three) for three in zip(x, weights, biases, strict=True)])
        torch.testing.assert_close(many, expected, **CLOSE)
        jacobian = jacrev(one)(x[0].detach())
        torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(one, x[0].detach()), **CLOSE)


def forget_tables() -> None:
    for name_, module in list(sys.modules.items()):
        if name_.startswith("equilayers."):
            for value in vars(module).values():
                getattr(value, "cache_clear", lambda: None)()


def _in_inference_mode(layer: torch.nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        layer(x)


FIRST: dict[str, Callable[[torch.nn.Module, Tensor], object]] = {
    "inference mode": _in_inference_mode,
    "vmap": lambda layer, x: vmap(lambda x: layer(x[None]))(x),
    "grad": lambda layer, x: grad(lambda x: layer(x).sum())(x),
    "vmap of grad": lambda layer, x: vmap(grad(lambda x: layer(x[None]).sum()))(x),
    "jacrev": lambda layer, x: jacrev(lambda x: layer(x[None]))(x[0]),
    "meta": lambda layer, x: functional_call(
        layer, {key: p.to("meta") for key, p in layer.named_parameters()}, (x.to("meta"),)
    ),
}


@pytest.mark.parametrize("first", FIRST)
@each_algorithm
@each_kind
def test_tables_serve_everywhere_wherever_they_were_made(kind: Kind, algorithm: str, first: str) -> None:
    s = square(5, 3, padding=1)
    layer = make(kind, C4, 1, 2, s, algorithm, dtype=torch.float64)
    x = arguments(kind, C4, s, batch=2)[0]
    forget_tables()
    expected = layer(x).detach()
    forget_tables()
    FIRST[first](layer, x.detach())
    y = layer(x)
    torch.testing.assert_close(y.detach(), expected, **CLOSE)
    gradients = torch.autograd.grad(y.square().sum(), [x, layer.weight], create_graph=True)
    sum(g.square().sum() for g in gradients).backward()
    for call in FIRST.values():
        call(layer, x.detach())
