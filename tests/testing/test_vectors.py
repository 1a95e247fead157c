"""Checks of models whose outputs or inputs are vectors of the plane."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from equilayers.cli import main
from equilayers.functional.vectors import vector_norm
from equilayers.groups import CyclicTranslation, Group
from equilayers.groups.vectors import AXES
from equilayers.metrics import equivariance_error
from equilayers.nn import (
    GroupConv2d,
    InvariantAvgPool2d,
    LiftingConv2d,
    VectorHead,
    VectorLiftingConv2d,
    set_algorithm,
)
from equilayers.testing import assert_equivariant, assert_invariant, invariance_error, layer_errors, locate_break
from refusals import assert_refused
from strategies import C2, C4, D1, D4, S3, name

X, FIELD = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 2, 6, 6)
Model = Callable[[Tensor], Tensor]
# Each form of output, made of the field (B, K, 2, H, W) of a head.
FORMS: dict[str, Model] = {
    "(B, 2)": lambda v: InvariantAvgPool2d()(v)[:, 0],
    "(B, C, 2)": InvariantAvgPool2d(),
    "(B, C, 2, N)": lambda v: torch.stack((InvariantAvgPool2d()(v),) * 3, -1),
    "(B, N, M, 2)": lambda v: torch.stack((InvariantAvgPool2d()(v),) * 4, 2),
    "(B, 2, H, W)": lambda v: v[:, 0],
    "(B, C, 2, H, W)": lambda v: v,
}
BREAKS: dict[str, Model] = {
    "exchanged": lambda v: v.flip(2),
    "one negated": lambda v: v * torch.tensor([1.0, -1.0])[:, None, None],
    "one larger": lambda v: v * torch.tensor([1.0, 1.001])[:, None, None],
    "a constant": lambda v: v + 0.01 * v.detach().abs().max(),
    "in one sample": lambda v: torch.cat((v[:1], v[1:].flip(2))),
}


def heads(group: Group, axes: str = "right-up") -> nn.Sequential:
    torch.manual_seed(0)
    lift, head = LiftingConv2d(group, 1, 4, 3, padding=1), VectorHead(group, 4, 3, axes=axes)
    return set_algorithm(nn.Sequential(lift, nn.ReLU(), head), "bitwise")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", [C2, D1, C4, D4], ids=name)
def test_every_form_passes_and_every_break_is_found(group: Group, form: str) -> None:
    for axes in AXES if group == C4 else AXES[:1]:
        net, output = heads(group, axes), "vector" if axes == "right-up" else f"vector:{axes}"
        model = lambda x: FORMS[form](net(x))  # noqa: B023, E731
        assert_equivariant(model, X, group, output=output, bitwise=True)
        assert locate_break(model, X, group) is None
        assert locate_break(model, X[:1], group) is None
    for why, wrong in BREAKS.items():
        if group in (C2, D1) and why in ("exchanged", "one negated", "one larger", "in one sample"):
            continue  # of C2 both components are negated, of D1 one is
        with pytest.raises(AssertionError, match="is not equivariant"):
            assert_equivariant(lambda x: FORMS[form](wrong(net(x))), X, group, output=output, diagnose=False)  # noqa: B023
    with pytest.raises(AssertionError, match="is not equivariant"):  # images are not vectors
        assert_equivariant(lambda x: FORMS[form](torch.stack((x, 2 * x), 2)), X, group, output="vector", diagnose=False)


def test_shifts_leave_vectors_as_they_are() -> None:
    T3, circular = CyclicTranslation(3), nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
    assert_equivariant(circular, X, T3, output="vector")
    assert_equivariant(lambda x: circular(x).mean((2, 3)), X, T3, output="vector")
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: circular(x)[:, :, 0, :2].transpose(1, 2), X, T3, output="vector")


class Winds(nn.Module):
    """From field to field; a nonlinearity of components, which breaks it, if asked for."""

    def __init__(self, group: Group, *, broken: bool = False) -> None:
        super().__init__()
        self.lift = VectorLiftingConv2d(group, 1, 4, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), GroupConv2d(group, 4, 4, 3, padding=1), nn.ReLU())
        self.head = VectorHead(group, 4, 1)
        self.last = nn.ReLU() if broken else nn.Identity()

    def forward(self, v: Tensor) -> Tensor:
        return self.last(self.head(self.body(self.lift(v))))


@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_inputs_that_are_vectors(group: Group) -> None:
    net = set_algorithm(Winds(group), "bitwise")
    assert_equivariant(net, FIELD, group, input="vector", output="vector", bitwise=True)
    speed = lambda v: InvariantAvgPool2d()(vector_norm(net(v)))  # noqa: E731
    assert_invariant(speed, FIELD, group, input="vector", bitwise=True)
    assert invariance_error(speed, FIELD, group, input="vector") == 0
    act = group.act_vectors
    assert_invariant(speed, FIELD, group, input=act, bitwise=True)
    assert float(equivariance_error(net, FIELD, group, action_in=act, action_out=act).max()) == 0
    for wrong in ("image", "vector:right-down"):
        with pytest.raises(AssertionError):
            assert_invariant(speed, FIELD, group, input=wrong, diagnose=False)
    regular = nn.Sequential(GroupConv2d(group, 2, 4, 3), VectorHead(group, 4, 1))
    assert_equivariant(regular, torch.randn(2, 2, group.order, 5, 5), group, input="regular", output="vector")
    pair = {"v": FIELD, "scale": torch.rand(2, 1)}
    assert_equivariant(
        lambda v, scale: net(v) * scale.view(-1, 1, 1, 1, 1), pair, group, moving="v", input="vector", output="vector"
    )


def test_what_treats_components_apart_is_named() -> None:
    broken = Winds(C4, broken=True)
    with pytest.raises(AssertionError, match=r"lost at: +last: ReLU.*components of vectors apart.*VectorLiftingConv2d"):
        assert_equivariant(broken, FIELD, C4, input="vector", output="vector")
    found = locate_break(broken, FIELD, C4, input="vector")
    assert found is not None
    assert found.path == "last"
    rows = layer_errors(broken, FIELD, C4, input="vector")
    assert [(row.path, row.action) for row in rows if row.path in ("lift", "head", "last")] == [
        ("lift", "regular"),
        ("head", "vector"),
        ("last", ""),
    ]
    assert [row.path for row in rows if row.lost] == ["last"]
    given = locate_break(broken, FIELD, C4, input=C4.act_vectors)
    assert given is not None
    assert given.path == "last"


def test_refusals() -> None:
    two_ways = {(2, 2, 2, 5), (2, 2, 5, 2), (2, 3, 2, 2), (2, 3, 2, 4, 2), (2, 3)}
    for shape in two_ways:
        call = lambda: assert_equivariant(lambda x: torch.zeros(shape), X, C4, output="vector")  # noqa: B023, E731
        assert_refused(call, ValueError, "assert_equivariant", "output=", str(shape))
    call = lambda: assert_equivariant(lambda x: x, torch.randn(2, 3), S3, output="vector")  # noqa: E731
    assert_refused(call, ValueError, repr(S3), "plane")
    for wrong in ({"output": "vectors"}, {"input": "vectors"}):
        call = lambda: assert_equivariant(heads(C4), X, C4, **wrong)  # noqa: B023, E731
        assert_refused(call, ValueError, "assert_equivariant", "'vector:right-down'")
    call = lambda: assert_invariant(heads(C4), X, C4, input="vector")  # noqa: E731
    assert_refused(call, ValueError, "assert_invariant", "input=")


MODELS = """
import torch
from torch import nn

from equilayers.nn import LiftingConv2d, VectorHead, VectorLiftingConv2d


class Flow(nn.Module):
    def __init__(self, broken=False):
        super().__init__()
        self.lift, self.head = LiftingConv2d("D4", 1, 4, 3, padding=1), VectorHead("D4", 4, 1, axes="right-down")
        self.last = nn.Tanh() if not broken else nn.ReLU()

    def forward(self, x):
        return self.last(self.head(self.lift(x).relu())[:, 0])


def broken():
    return Flow(broken=True)


def winds():
    return nn.Sequential(VectorLiftingConv2d("D4", 1, 4, 3, padding=1), nn.ReLU(), VectorHead("D4", 4, 1))
"""


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("Flow --input 1,8,8 --output vector:right-down", 0, "equivariant under"),
        ("Flow --input 1,8,8 --output vector", 1, "not equivariant"),
        ("broken --input 1,8,8 --output vector:right-down", 1, "lost at last: ReLU()"),
        ("Flow --input 1,8,8 --output vectors", 2, "vector:down-right"),
        ("winds --input 1,2,8,8 --output vector --input-as vector", 0, "it is of inputs that move as images"),
        ("winds --input 1,2,8,8 --output vector", 1, "not equivariant"),
        ("Flow --input 1,8,8 --input-as vector", 2, "--input that Dihedral(4) moves"),
    ],
)
def test_the_command(
    line: str,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "flows.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    assert main(["check", *f"flows.py:{line} --group D4 --quick".split()]) == code
    said = capsys.readouterr()
    assert words in said.out + said.err
