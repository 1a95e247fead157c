"""Models of several or named inputs, of foreign engines, and what is said when they raise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equilayers.cli import main
from equilayers.groups import CyclicRotation, CyclicTranslation
from equilayers.testing import (
    assert_equivariant,
    assert_invariant,
    invariance_error,
    layer_errors,
    locate_break,
    locate_breaks,
)
from refusals import assert_refused

C4 = CyclicRotation(4)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


X, MASK, AGE = images(3, 2, 8, 8), images(3, 8, 8) > 0, images(3, 4)


class Masked(nn.Module):
    """An image, a mask that moves along, and a vector that does not; broken in a named layer, or not at all."""

    def __init__(self, broken: nn.Module | None = None) -> None:
        super().__init__()
        self.mix, self.broken, self.age = nn.Conv2d(2, 3, 1), broken or nn.Identity(), nn.Linear(4, 3)

    def forward(self, image: Tensor, mask: Tensor, age: Tensor) -> Tensor:
        return (self.broken(self.mix(image)) * mask[:, None]).square().mean((2, 3)) * self.age(age).sigmoid()


class Batch(nn.Module):
    """The same of a dictionary."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert batch["id"] == "seven"
        return {"logits": self.net(batch["image"], batch["mask"], batch["age"])}


NAMED = {"image": X, "mask": MASK, "age": AGE}
FORMS: dict[str, tuple[Callable[[nn.Module], Any], Any]] = {
    "arguments": (lambda net: net, (X, MASK, AGE)),
    "list": (lambda net: net, [X, MASK, AGE]),
    "by name": (lambda net: net, NAMED),
    "a dictionary": (Batch, {**NAMED, "id": "seven"}),
    "a function": (lambda net: lambda *x: 1 * net(*x), (X, MASK, AGE)),
    "a function by name": (lambda net: lambda image, **more: 1 * net(image, **more), NAMED),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_and_masks_move_and_the_rest_does_not(form: str) -> None:
    wrap, x = FORMS[form]
    assert_invariant(wrap(Masked()), x, C4)
    assert invariance_error(wrap(Masked()), x, C4) < 1e-6
    assert locate_break(wrap(Masked()), x, C4) is None
    broken = wrap(Masked(nn.Conv2d(3, 3, 3, padding=1)))
    with pytest.raises(AssertionError, match=r"structural(.|\n)*lost at:   (net\.)?broken: Conv2d"):
        assert_invariant(broken, x, C4)
    (found,) = locate_breaks(broken, x, C4)
    assert found.path.endswith("broken")
    assert [row.lost for row in layer_errors(broken, x, C4) if row.path.endswith("broken")] == [True]


def test_what_moves_may_be_said() -> None:
    net, x = Masked(), (X, MASK, AGE)
    assert_invariant(net, x, C4, moving=(0, 1))
    assert_invariant(net, NAMED, C4, moving=["image", "mask"])
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(net, x, C4, moving=0)  # the mask stays behind
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(net, NAMED, C4, moving="mask")
    assert_equivariant(lambda image, kernel: image * kernel, (X, images(3, 1, 8, 8)), C4, moving=(0, 1))
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda image, kernel: image * kernel, (X, images(3, 1, 8, 8)), C4, moving=[0])
    for moving in (3, "age2", ()):
        assert_refused(
            lambda moving=moving: assert_invariant(net, x, C4, moving=moving),
            ValueError,
            "assert_invariant",
            "moving to name some of the tensors '0', '1', '2'",
        )
    assert_refused(
        lambda: assert_invariant(net, X, C4, moving=0), TypeError, "assert_invariant", "several inputs with moving="
    )
    assert_refused(
        lambda: assert_invariant(net, (AGE,), C4),
        TypeError,
        "assert_invariant",
        "an input that CyclicRotation(4) moves",
    )
    assert_refused(
        lambda: assert_invariant(net, (X, MASK[:2], AGE), C4), ValueError, "assert_invariant", "3 samples", "2 in '1'"
    )


def test_several_sizes_and_other_groups() -> None:
    def pyramid(fine: Tensor, coarse: Tensor) -> Tensor:
        return fine.amax((2, 3)) + coarse.mean((2, 3))

    assert_invariant(pyramid, (X, images(3, 2, 4, 4)), C4)
    assert_invariant(lambda a, b: (a * b).mean((-2, -1)), (X, MASK[:, None]), CyclicTranslation(4))
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(lambda a, b: (a * b.roll(1, -1)).mean((-2, -1)), (X, X), C4, moving=[0])


def test_an_answer_to_what_stays_alone_shows_nothing() -> None:
    with pytest.raises(AssertionError, match=r"nothing was shown of(.|\n)*the same for every input"):
        assert_invariant(lambda image, age: age + 0 * image.sum(), (X, AGE), C4)


def test_samples_of_several_inputs_that_influence_each_other() -> None:
    with pytest.raises(AssertionError, match="the samples of a batch influence each other"):
        assert_invariant(lambda image, age: (image - image.mean(0)).square().sum((1, 2, 3)) + age.sum(1), (X, AGE), C4)


def test_the_fixture_takes_them(invariance: Any) -> None:
    check = invariance.assert_invariant(Masked(), NAMED, C4, moving=("image", "mask"))
    assert check.passed
    assert check.location is None


class EngineError(Exception):
    """What a runtime raises: none of Python's own exceptions."""


def engine(net: nn.Module, *, sizes: tuple[int, ...] = (8,)) -> Callable[[Tensor], Any]:
    """As a session of a runtime: numpy in and out, of one dtype and some sizes."""
    weights = {name: value.numpy() for name, value in net.state_dict().items()}

    def run(x: Tensor) -> list[np.ndarray]:
        given = x.numpy()
        if given.dtype != np.float32 or given.shape[-1] not in sizes:
            raise EngineError(f"[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : {given.dtype}")
        return [np.einsum("bchw,oc->bo", given**2, weights["weight"][:, :, 0, 0])]

    return run


def test_engines_are_judged() -> None:
    net = nn.Conv2d(2, 3, 1)
    assert_invariant(engine(net), X, C4)
    with pytest.raises(AssertionError, match=r"structural or numerical: it does not run in float64 \(\[ONNX"):
        assert_invariant(lambda x: engine(net)(x * torch.arange(8.0)), X, C4)
    assert locate_break(engine(net), X, C4) is None
    for check in (assert_invariant, locate_break, layer_errors, invariance_error):
        with pytest.raises(
            RuntimeError, match=rf"{check.__name__}: expected run to run on .*INVALID_ARGUMENT"
        ) as caught:
            check(engine(net, sizes=(4,)), X, C4)  # type: ignore[operator]
        assert isinstance(caught.value.__cause__, EngineError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_runtime(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    plain = nn.Sequential(nn.Conv2d(2, 3, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for number, (model, passes) in enumerate(((net, True), (plain, False))):
        path = tmp_path / f"{number}.onnx"
        torch.onnx.export(model, (X,), str(path), input_names=["x"], dynamo=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(x: Tensor, session: Any = session) -> Any:
            return session.run(None, {"x": x.numpy()})

        if passes:
            assert_invariant(run, X, C4)
        else:
            with pytest.raises(AssertionError, match="not invariant"):
                assert_invariant(run, X, C4)
        with pytest.raises(RuntimeError, match=r"assert_invariant: expected run to run on g·x for g = 0, got "):
            assert_invariant(run, images(3, 5, 8, 8), C4)


def test_frozen_modules_are_judged_and_located() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert_invariant(torch.jit.freeze(torch.jit.trace(net, X)), X, C4)
    net[0] = nn.Conv2d(2, 3, 3)
    frozen = torch.jit.freeze(torch.jit.trace(net.eval(), X))
    with pytest.raises(AssertionError, match="structural or numerical: it does not run in float64"):
        assert_invariant(frozen, X, C4)
    found = locate_break(frozen, X, C4)
    assert found is not None
    assert found.path == ""
    for check in (assert_invariant, locate_break):
        with pytest.raises(RuntimeError, match=rf"{check.__name__}: expected .* to run on"):
            check(frozen, images(3, 5, 8, 8), C4)  # type: ignore[operator]


MODELS = """
import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self, kernel=1):
        super().__init__()
        self.mix, self.age = nn.Conv2d(2, 3, kernel, padding=kernel // 2), nn.Linear(4, 3)

    def forward(self, image, mask, age):
        return (self.mix(image) * mask).square().mean((2, 3)) * self.age(age).sigmoid()


class Centre(nn.Module):
    def forward(self, x):
        mass, ramp = x.square().sum(1), torch.linspace(-1, 1, x.shape[-1])
        return torch.stack([(mass * ramp).sum((1, 2)), -(mass * ramp[:, None]).sum((1, 2))], 1)


class Nearly(nn.Module):
    def forward(self, x):
        return 100 * x.amax((2, 3)) + 1e-2 * x[:, :, 0, 0].tanh()


def broken():
    return Masked(3)
"""
SEVERAL = ["--input", "2,8,8", "--input", "1,8,8", "--input", "4"]
BY_NAME = ["--input", "image=2,8,8", "--input", "mask=1,8,8", "--input", "age=4"]
ONE = ["--input", "2,8,8"]
COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "several": (["Masked", *SEVERAL], 0, "(0: 2×8×8, 1: 1×8×8, 2: 4)"),
    "by name": (["Masked", *BY_NAME], 0, "mask: 1×8×8"),
    "broken": (["broken", *BY_NAME], 1, "lost at mix"),
    "moving": (["Masked", *BY_NAME, "--moving", "image,mask"], 0, "invariant under"),
    "one stays": (["Masked", *BY_NAME, "--moving", "image"], 1, "not invariant"),
    "data": (["Masked", *BY_NAME, "--data", "several.npz"], 0, "several.npz"),
    "vector": (["Centre", *ONE, "--output", "vector"], 0, "equivariant under"),
    "no vector": (["Nearly", *ONE, "--output", "vector"], 1, "not equivariant"),
    "close": (["Nearly", *ONE, "--atol", "0.05"], 0, "invariant under"),
    "not so close": (["Nearly", *ONE, "--atol", "1e-4"], 1, "not invariant"),
    "a name that is none": (
        ["Masked", *BY_NAME, "--moving", "depth"],
        2,
        "--moving to name some of several",
    ),
    "names for some": (["Masked", *ONE, "--input", "age=4"], 2, "a name of its own for each input, or for none"),
    "bitwise and atol": (["Nearly", *ONE, "--atol", "1", "--bitwise"], 2, "--bitwise without --tolerance"),
    "no number": (["Nearly", *ONE, "--atol", "-1"], 2, "--atol to be a number from 0 on"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_the_command(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "several_models.py").write_text(MODELS)
    named = {"image": X.numpy(), "mask": images(3, 1, 8, 8).numpy(), "age": AGE.numpy()}
    np.savez(tmp_path / "several.npz", **named)
    monkeypatch.chdir(tmp_path)
    (target, *arguments), code, words = COMMANDS[what]
    line = ["check", f"several_models.py:{target}", "--group", "C4", "--quick", *arguments, "--json", "found.json"]
    assert main(line) == code, capsys.readouterr().err
    said = capsys.readouterr()
    assert words in said.out + said.err
    if code != 2:
        found = json.loads(Path("found.json").read_text())
        assert found["exit_code"] == code
        assert found["layers"]
