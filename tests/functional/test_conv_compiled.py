"""Group convolutions in compiled graphs: through the transform where it pays, in one operator with its derivatives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equilayers.functional._conv import group_conv2d
from equilayers.functional._convolution import dispatch
from equilayers.functional._convolution.custom_ops import adjoint, gradient, pattern_conv
from equilayers.nn import GroupConv2d, LiftingConv2d
from strategies import filled

OPERATOR = "equilayers.pattern_conv.default"
Run = Callable[[Tensor], Tensor]
# Group, kernel, stride, padding, dilation, and the size of the map.
CASES = [("C4", 3, 1, 1, 1, 4), ("D1", 2, 1, 0, 2, 5), ("D4", 3, 2, 1, 1, 5)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch, fresh_compiler: None) -> None:
    """However small, a layer goes through the transform."""
    least: Any = lambda *_: 1  # noqa: E731
    least._dynamo_marked_constant = True
    monkeypatch.setattr(dispatch, "least_pixels", least)


def found_in_graph(run: Run, x: Tensor, **settings: Any) -> bool:
    """Whether what is compiled calls the operator; also, that its result is that of what is not compiled."""
    calls: set[str] = set()

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        calls.update(str(node.target) for node in graph.graph.nodes)
        return graph

    y = torch.compile(run, fullgraph=True, backend=backend, **settings)(x)
    torch.testing.assert_close(y, run(x), atol=1e-4, rtol=1e-2 if y.dtype == torch.bfloat16 else 1e-5)
    return OPERATOR in calls


def in_bfloat16(layer: nn.Module) -> Run:
    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = layer(x)
            return y

    return run


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_choice_is_by_cost(fresh_compiler: None) -> None:
    """Wide layers on many pixels; no narrow ones, other algorithms, liftings, half precision, torch.func, exports."""
    wide, x = GroupConv2d("D4", 64, 64, 3, padding=1), torch.randn(2, 64, 8, 9, 9)
    assert found_in_graph(wide, x)
    assert not found_in_graph(wide, x[:1, ..., :3, :3])
    for other in ("bitwise", "fourier"):
        assert not found_in_graph(GroupConv2d("D4", 64, 64, 3, padding=1, algorithm=other), x)
    assert not found_in_graph(GroupConv2d("D4", 4, 64, 3, padding=1), x[:, :4])
    assert not found_in_graph(LiftingConv2d("D4", 64, 64, 3, padding=1), x[:, :, 0])
    assert not found_in_graph(GroupConv2d("C8", 64, 8, 3, padding=1), x)
    assert not found_in_graph(in_bfloat16(wide), x)
    assert not found_in_graph(torch.vmap(wide), x[None])
    assert not found_in_graph(lambda x: torch.func.jvp(wide, (x,), (x,))[1], x)
    program = torch.export.export(wide, (x,))
    assert not any("equilayers" in str(node.target) for node in program.graph.nodes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_for_any_batch(case: tuple[Any, ...], always: None) -> None:
    """Of one graph; against the expanded filter in float64."""
    group, kernel, stride, padding, dilation, size = case
    settings: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 2}
    layer = GroupConv2d(group, 4, 6, kernel, padding_mode="circular", **settings)
    wanted = [p.detach().double().requires_grad_() for p in layer.parameters()]
    with torch._dynamo.config.patch(error_on_recompile=True):
        run = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for batch in (3, 2, 5):
            x = filled((batch, 4, layer.group.order, size, size), torch.float32, batch).requires_grad_()
            torch._dynamo.mark_dynamic(x, 0)
            y = run(x)
            exact = x.detach().double().requires_grad_()
            expected = group_conv2d(exact, *wanted, group, padding_mode="circular", algorithm="dense", **settings)
            torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
            upstream = filled(tuple(y.shape), torch.float32, 7)
            slopes = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
            for found, slope in zip(
                slopes, torch.autograd.grad(expected, [exact, *wanted], upstream.double()), strict=True
            ):
                torch.testing.assert_close(found.double(), slope, atol=1e-5, rtol=1e-5)
                assert not torch.allclose(1.01 * found.double(), slope, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("group", "stride"), [("C2", 1), ("D4", 2)])
def test_the_operators(group: str, stride: int) -> None:
    """What they say of themselves to a compiler, sizes and order in memory, and derivatives, second ones too."""
    layer = GroupConv2d(group, 2, 3, 3, stride=stride, padding=1)
    n = layer.group.order
    sizes = [3, 3, stride, stride, 1, 1, 1, 1, 5, 5]
    x, w, b = (filled(s, torch.float64, 0) for s in ((2, 2, n, 5, 5), (3, 2, n, 3, 3), (3,)))
    x, w, b = x.requires_grad_(), w.requires_grad_(), b.requires_grad_()
    v = pattern_conv(x, w, b, group, sizes).detach().requires_grad_()
    for operator, given in ((pattern_conv, (x, w, b)), (adjoint, (v, w)), (gradient, (v, x))):
        torch.library.opcheck(operator, (*given, group, sizes))
        call = lambda *t, o=operator: o(*t, group, sizes)  # noqa: E731
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)
        assert torch.autograd.gradcheck(call, given, fast_mode=True)
