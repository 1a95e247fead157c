"""Profiles of models: figures that are known beforehand, odd models, and that the model is afterwards as it was."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def test_the_time_is_that_of_a_plain_loop() -> None:
    model, x = nn.Sequential(Slow(), Slow(), Slow()), torch.ones(2)
    start = time.perf_counter()
    for _ in range(10):
        model(x)
    plain = (time.perf_counter() - start) / 10
    assert quick(model, x).total == pytest.approx(plain, rel=0.05)


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
    assert order == ["before", "after"] * (len(order) // 2)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == [0, 2] + [0] * 6


def test_several_inputs_outputs_and_calls() -> None:
    x = torch.randn(2, 6), torch.randn(2, 6)
    found = quick(Branches(), {"a": x[0], "b": x[1]})
    rows = [(row.depth, row.kind, row.calls, row.flops) for row in found.rows]
    each = 2 * 2 * 6 * 6
    assert rows == [(0, "Branches", 1, 8 * each - 2 * each), (1, "Sequential", 1, 2 * each),
                    (2, "Linear", 1, 2 * each), (2, "Tanh", 1, 0), (1, "Linear", 2, 5 * each)] or rows[1:] == [
        (1, "Sequential", 1, 2 * each), (2, "Linear", 1, 2 * each), (2, "Tanh", 1, 0), (1, "Linear", 2, 5 * each)]  # fmt: skip
    model = Branches()
    assert [r.kind for r in quick(lambda a, b: model(a, b)["two"], x).rows][:2] == ["<lambda>", "Branches"]


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
    assert [r.match for r in found.rows] == ["", "0", "1", "2"]
    assert row.ratio == pytest.approx(row.total / found.compared.rows[-1].total)  # type: ignore[union-attr]
    renamed = nn.Sequential()
    for name, module in zip("abc", plain, strict=True):
        renamed.add_module(name, module)
    assert [r.match for r in quick(tied, torch.randn(2, 1, 12, 12), compare_with=renamed).rows] == ["", *"abc"]
    found.to_json(tmp_path / "p.json")
    found.to_html(tmp_path / "p.html")
    assert len(json.loads((tmp_path / "p.json").read_text())["rows"]) == 4
    page = (tmp_path / "p.html").read_text()
    assert page.count("<rect") == 4
    assert "<svg" in found._repr_html_()
    assert "GroupConv2d" in str(found)


@pytest.mark.parametrize("compiled", [torch.compile(net(), backend="eager"), torch.jit.trace(nn.Tanh(), torch.ones(2))])
def test_models_whose_inside_cannot_be_seen(compiled: Any) -> None:
    assert len(quick(compiled, torch.randn(4, 3, 6, 6)).rows) == 1
