"""Profiles of models: figures that are known beforehand, odd models, and that the model is afterwards as it was."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equilayers.nn import GroupConv2d, LiftingConv2d
from equilayers.profiling import Profile, profile


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return x * 1


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("no way back")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.inner = nn.Sequential(self.shared, nn.Tanh())

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"one": self.inner(a), "two": self.shared(self.shared(b))}


def quick(model: Any, x: Any, **how: Any) -> Profile:
    return profile(model, x, seconds=0.01, **how)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), Slow(), nn.Flatten(),
                         nn.Linear(8 * 36, 5))  # fmt: skip


def test_figures_that_are_known() -> None:
    found = quick(net(), torch.randn(4, 3, 6, 6))
    rows = {row.path: row for row in found.rows}
    forward, linear = 2 * 4 * 36 * 8 * 3 * 9, 2 * 4 * 8 * 36 * 5
    assert rows["0"].flops == 2 * forward  # the input has no gradient
    assert rows["5"].flops == 3 * linear
    assert rows[""].flops == 2 * forward + 3 * linear
    assert [rows[path].parameters for path in ("0", "1", "5")] == [8 * 27 + 8, 16, 8 * 36 * 5 + 5]
    assert rows["2"].own_kept == 4 * 8 * 36 * 4  # tanh keeps its output
    assert rows[""].peak >= rows[""].kept > 0
    assert sum(row.own for row in found.rows) == pytest.approx(found.total)
    assert rows[""].total == pytest.approx(found.total)
    assert max(found.rows, key=lambda row: row.own) is rows["3"]
    assert rows["3"].own_forward > 0.008
    assert found.advice[0].startswith("3 (Slow)")


@pytest.mark.parametrize("reading", [0.0, 1e-5], ids=["a free clock", "a clock that costs"])
def test_times_are_those_of_the_modules(reading: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only modules move, and the readings of the clock themselves, which are not counted."""
    now = 0.0

    def spend(took: float) -> float:
        nonlocal now
        now += took
        return now

    class Spending(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, took: float) -> Tensor:
            ctx.took = took
            return x * weight

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            spend(ctx.took)
            return grad, grad.sum()[None], None

    class Spends(nn.Module):
        def __init__(self, forward: float, backward: float, *inner: nn.Module) -> None:
            super().__init__()
            self.took, self.weight, self.inner = (forward, backward), nn.Parameter(torch.ones(1)), nn.Sequential(*inner)

        def forward(self, x: Tensor) -> Tensor:
            spend(self.took[0])
            y: Tensor = Spending.apply(self.inner(x), self.weight, self.took[1])
            return y

    monkeypatch.setattr(time, "perf_counter", lambda: spend(reading))
    model = nn.Sequential(Spends(0.03, 0.05), Spends(0.02, 0.01, Spends(0.04, 0.07)))
    found = profile(model, torch.ones(2), seconds=1.0)
    rows = {row.path: row for row in found.rows}
    near = {"rel": 0.001, "abs": 2 * reading}
    assert (found.forward, found.backward) == pytest.approx((0.09, 0.13), **near)
    assert [(rows[path].own_forward, rows[path].forward) for path in ("0", "1", "1.inner.0")] == [
        pytest.approx(times, **near) for times in ((0.03, 0.03), (0.02, 0.06), (0.04, 0.04))
    ]
    assert sum(row.own_backward for row in found.rows) == pytest.approx(0.13, **near)
    assert rows[""].own == pytest.approx(0, abs=2 * reading)


def test_the_model_is_afterwards_as_before() -> None:
    model = net()
    model.append(nn.Dropout())
    model[1].eval()
    order: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: order.append("before"))
    model[0].register_forward_hook(lambda *_: order.append("after"))
    model[0].weight.grad = given = torch.ones_like(model[0].weight)
    state, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    random = torch.get_rng_state()
    quick(model, torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(random, torch.get_rng_state())
    assert model[0].weight.grad is given
    assert torch.equal(given, torch.ones_like(given))
    assert model[5].weight.grad is None
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert len(order) > 2
    assert order == ["before", "after"] * (len(order) // 2)
    hooks = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()}
    assert {name: count for name, count in hooks.items() if count} == {"0": 2}


def test_several_inputs_outputs_and_calls() -> None:
    x = torch.randn(2, 6), torch.randn(2, 6)
    found = quick(Branches(), {"a": x[0], "b": x[1]})
    each = 2 * 2 * 6 * 6
    assert [(row.depth, row.kind, row.path, row.calls, row.flops) for row in found.rows] == [
        (0, "Branches", "", 1, 7 * each),
        (1, "Sequential", "inner", 1, 2 * each),
        (2, "Linear", "shared", 1, 2 * each),  # forward and the gradient of the weight
        (2, "Tanh", "inner.1", 1, 0),
        (1, "Linear", "shared", 2, 5 * each),  # two of each, and the gradient of what is between them
    ]
    assert found.rows[2].parameters == found.rows[0].parameters == 6 * 6 + 6
    model = Branches()
    assert [r.kind for r in quick(lambda a, b: model(a, b)["two"], x).rows][:2] == ["<lambda>", "Branches"]


def test_layers_outside_of_autograd_and_checkpoints() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=False)

    found = quick(nn.Sequential(nn.Linear(6, 6), Recomputed()), torch.randn(4, 6))
    rows = {row.path: row for row in found.rows}
    assert [row.calls for row in found.rows] == [1] * 6
    # Three products of each layer, less the gradient of the input; that of the second forward twice.
    assert [rows[path].flops for path in ("0", "1")] == [2 * 2 * 4 * 6 * 6, 4 * 2 * 4 * 6 * 6]
    with torch.no_grad():
        assert quick(nn.Linear(6, 6), torch.randn(4, 6)).backward > 0
        assert not torch.is_grad_enabled()
    assert quick(nn.Linear(6, 6), torch.randn(4, 6), backward=False).backward == 0


def test_attention_is_counted() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    batch, heads, tokens, size = 2, 3, 5, 8
    x = torch.randn(batch, heads, tokens, size)
    product = 2 * batch * heads * tokens * tokens * size
    assert quick(Attention(), x, backward=False).rows[0].flops == 2 * product
    found = quick(nn.Sequential(nn.Linear(size, size), Attention()), x)
    assert found.rows[2].flops == (2 + 5) * product  # backward the weights anew, and two products for each forward
    assert not found.notes


def test_an_error_of_the_model_comes_through_and_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        quick(model, torch.ones(2, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_had_is_said() -> None:
    assert "no output depends" in quick(nn.Tanh(), torch.ones(2)).notes[0]
    model = nn.Sequential(nn.Linear(3, 3), type("Bad", (nn.Module,), {"forward": lambda _, x: BadBackward.apply(x)})())
    found = quick(model, torch.ones(2, 3))
    assert "RuntimeError: no way back" in found.notes[0]
    assert found.backward == 0
    with pytest.raises(TypeError, match=r"profile: expected x to be a tensor, several, or a dictionary, got int\."):
        profile(model, 3)
    with pytest.raises(TypeError, match=r"profile: expected model to be callable"):
        profile(3, torch.ones(2))  # type: ignore[arg-type]


def test_algorithms_and_a_twin(tmp_path: Path) -> None:
    tied = nn.Sequential(LiftingConv2d("C4", 1, 4, 3, padding=1), nn.Tanh(), GroupConv2d("C4", 4, 4, 3, padding=1))
    plain = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1))
    found = quick(tied, torch.randn(2, 1, 12, 12), compare_with=plain)
    row = found.rows[-1]
    assert set(row.alternatives) == {"auto", "bitwise", "orbit", "dense", "fourier"}
    assert row.algorithm.startswith("auto -> ")
    assert tied[2].algorithm == "auto"
    assert [r.match for r in found.rows] == [0, 1, 2, 3]
    assert row.ratio == pytest.approx(row.total / found.compared.rows[-1].total)  # type: ignore[union-attr]
    renamed = nn.Sequential()
    for name, module in zip("abc", plain, strict=True):
        renamed.add_module(name, module)
    widths = quick(tied, torch.randn(2, 1, 12, 12), compare_with=renamed)
    assert [r.match for r in widths.rows] == [0, 1, 2, 3]
    assert "c 0" in str(widths) or "c 1" in str(widths) or "c 2" in str(widths)
    found.to_json(tmp_path / "p.json")
    found.to_html(tmp_path / "p.html")
    assert len(json.loads((tmp_path / "p.json").read_text())["rows"]) == 4
    page = (tmp_path / "p.html").read_text()
    assert page.count("<rect") == 4
    assert "<svg" in found._repr_html_()
    assert "GroupConv2d" in str(found)
    times = {"auto": 2 * row.total, "dense": row.total / 9}
    for ran, advised in ("auto -> dense", False), ("auto -> fourier", True):  # the name of what ran is no advice
        rows = [*found.rows[:-1], replace(row, algorithm=ran, alternatives=times)]
        assert any("set algorithm" in line for line in replace(found, rows=rows).advice) == advised


@pytest.mark.parametrize("kind", ["compiled", "a part", "function", "scripted"])
def test_models_whose_inside_cannot_be_seen(kind: str) -> None:
    x, plain = torch.randn(4, 3, 6, 6), nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Tanh())
    closed: Any = torch.jit.trace(plain, x) if kind == "scripted" else torch.compile(plain, backend="eager")
    model = nn.Sequential(closed, nn.Tanh()) if kind == "a part" else closed
    if kind == "function":
        model = torch.compile(lambda x: plain(x) + 0, backend="eager")
    found = quick(model, x)
    assert len(found.rows) == (3 if kind == "a part" else 1)
    assert found.rows[0].flops == 2 * 2 * 4 * 16 * 8 * 27
    assert bool(found.notes) == (kind != "scripted")
