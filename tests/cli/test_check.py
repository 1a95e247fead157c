"""The command `equilayers check`: verdicts, numbers, exit codes, and how it says no."""

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from equilayers.cli import main
from equilayers.metrics import (
    distribution_invariance_error,
    equivariance_error,
    invariance_gap,
    jacobian_spectral_norm,
    logit_invariance_error,
    prediction_consistency,
    saliency_invariance_similarity,
)
from pages import ROOT
from strategies import C4

MODELS = """
import torch
from torch import nn
from equilayers.groups import CyclicRotation
from equilayers.nn import InvariantAvgPool2d, LiftingConv2d, OrbitPool
C4 = CyclicRotation(4)
class Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, x):
        return self.function(x)
def thrown(error):
    def function(x=None):
        raise error
    return function
def tied(middle=None):
    lift = LiftingConv2d(C4, 1, 4, 3, padding=1, algorithm="bitwise")
    pools = OrbitPool(), InvariantAvgPool2d()
    return nn.Sequential(lift, nn.Tanh(), middle or nn.Identity(), *pools, nn.Linear(4, 3))
def broken():
    return tied(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))
def deaf():
    net = tied()
    nn.init.zeros_(net[-1].weight)
    return net
def image():
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 1))
def lifted():
    return LiftingConv2d(C4, 1, 4, 3, algorithm="bitwise")
def one():
    return nn.Sequential(tied(), nn.Linear(3, 1))
conv, vectors, flat = nn.Conv2d(1, 4, 3), nn.Linear(12, 3), nn.Flatten()
red, green, blue = (Does(lambda x, c=c: x[:, c].flatten(1)) for c in range(3))
mean = Does(lambda x: x.square().mean((1, 2, 3)))
drops = Does(lambda x: nn.functional.dropout(x.flatten(1), 0.5))
wrong = Does(lambda x: {"a": "text", "b": None})
few = Does(lambda x: x[:1])
leaving, stopping = Does(thrown(SystemExit(0))), Does(thrown(GeneratorExit("enough")))
shouting = Does(thrown(ValueError("<b>loud</b> \\x1b[2J\\u2028 and more\\nthan a line")))
raises = thrown(RuntimeError("first\\x1b[31m line\\nsecond line"))
leaves, stops = thrown(SystemExit(0)), thrown(KeyboardInterrupt())
class Holder:
    model = tied().train()
class Output(nn.Module):
    def forward(self, x):
        print("chatter")
        return type("Out", (), {"logits": x.mean((2, 3)) @ torch.ones(1, 2)})
def needs(x):
    return nn.Identity()
def number():
    return 3
class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")
speechless = thrown(Mute())
class InEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, x):
        if self.training:
            raise RuntimeError("in training mode")
        self.calls += 1
        return x.square().mean((2, 3)) * torch.ones(3)
evaluated = InEval().train()
class Later(nn.Module):
    calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("only once")
        return x.mean((1, 2, 3))
class Hostile(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] * 1.0
Hostile.__name__ = "<script>alert(1)</script>\\x1b[31m\\u202e"
def hostile():
    net = nn.Sequential()
    net.add_module("<img src=x onerror=alert(2)>\\x1b]0;title\\x07", Hostile())
    return net
"""


class Outcome(NamedTuple):
    """What a call of the command gave."""

    code: int
    out: str
    err: str

    @property
    def first(self) -> str:
        return self.out.splitlines()[0]

    @property
    def known(self) -> dict[str, Any]:
        """What was written to found.json."""
        known: dict[str, Any] = json.loads(Path("found.json").read_text())
        return known

    @property
    def page(self) -> str:
        """What was written to page.html."""
        return Path("page.html").read_text(encoding="utf-8")


Check = Callable[..., Outcome]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models, which is the current one."""
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check(project: Path, capfd: pytest.CaptureFixture[str]) -> Check:
    """Call the command in this process on a model of models.py, with C4, 1×8×8 and two samples by default."""

    def call(target: str, *arguments: str, gradients: bool = False) -> Outcome:
        defaults = {"--group": "C4", "--input": "1,8,8", "--samples": "2", "--json": "found.json"}
        given = [part for key, value in defaults.items() if key not in arguments for part in (key, value)]
        target = target if ":" in target or "." in target else f"models.py:{target}"
        code = main(["check", target, *given, *arguments, *([] if gradients else ["--quick"])])
        return Outcome(code, *capfd.readouterr())

    return call


def save_images(folder: Path, *images: Any) -> str:
    """Make the folder with these images, and a file that is none; its name."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    for i, pixels in enumerate(images):
        pillow.fromarray(np.asarray(pixels, dtype=np.uint8)).save(folder / f"{i}.PNG")
    return folder.name


def assert_one_line(found: Outcome, *words: str) -> None:
    """Exit code 2, nothing on standard output, one line of the house's form, and no control characters."""
    assert found.code == 2
    assert found.out == ""
    (line,) = found.err.splitlines()
    assert line.startswith("equilayers check: expected ")
    assert ", got " in line
    assert line.isprintable()
    for word in words:
        assert word in line


def test_an_invariant_model(check: Check) -> None:
    found = check("tied", gradients=True)
    assert (found.code, found.err) == (0, "")
    assert found.first.startswith(
        "invariant under CyclicRotation(4): error 0 of the size of the outputs there, tolerance "
    )
    for name in ("LI", "DI", "consistency", "SI", "sigma_max", "gap", "spread"):
        assert f"\n  {name} " in found.out
    assert "not measured" not in found.out
    assert "lost here" not in found.out
    assert check("tied", "--bitwise").code == 0
    for target in ("one", "mean"):  # outputs (B, 1) and (B,) are of two classes: nothing is left out
        found = check(target, gradients=True)
        assert found.code == 0
        assert "not measured" not in found.out


def test_a_broken_layer_is_found_and_named(check: Check) -> None:
    found = check("broken", "--html", "page.html")
    assert found.code == 1
    assert found.first.startswith("not invariant under CyclicRotation(4): error 0.")
    assert "; lost at 2: MaxPool3d(kernel_size=(1, 3, 3)" in found.first
    assert "why: stride 2 samples 8 pixels lopsidedly" in found.out
    assert "what to do: Take kernel 4 with padding 1, or MaxBlurPool2d" in found.out
    (row,) = [line for line in found.out.splitlines() if line.endswith("lost here")]
    assert row.split()[:2] == ["2", "MaxPool3d"]
    known = found.known
    assert (known["exit_code"], known["passed"], known["lost_at"]["path"]) == (1, False, "2")
    assert [layer["path"] for layer in known["layers"] if layer["lost"]] == ["2"]
    assert [layer["error"] > 1e-6 for layer in known["layers"]] == [False, False, True, True, True, True]
    assert found.out.count("not measured: --quick leaves it out") == 2
    assert "Not shown: --quick leaves it out" in found.page


def test_the_numbers_are_those_of_the_library(check: Check) -> None:
    """On the inputs and the weights that the seed stands for."""
    found = check("plain", "--seed", "3", "--samples", "5", "--batch-size", "2", gradients=True)
    assert found.code == 1
    namespace: dict[str, Any] = {}
    torch.manual_seed(3)
    exec(compile(MODELS, "models", "exec"), namespace)  # the same code, run here
    model = namespace["plain"]().eval()
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    gap = invariance_gap(model, x, C4, batch_size=2)
    expected = {
        "LI": logit_invariance_error(model, x, C4),
        "DI": distribution_invariance_error(model, x, C4),
        "consistency": prediction_consistency(model, x, C4),
        "SI": saliency_invariance_similarity(model, x, model(x).argmax(1), C4),
        "sigma_max": jacobian_spectral_norm(model, x).mean(),
        "gap": gap.ratio,
        "spread": gap.spread,
    }
    measures = found.known["measures"]
    assert list(measures) == list(expected)
    for name, value in expected.items():
        assert measures[name]["value"] == pytest.approx(float(value.detach()), rel=1e-3), name


@pytest.mark.parametrize(
    ("target", "how", "arguments"),
    [
        ("image", "equivariant", []),
        ("lifted", "equivariant", []),
        ("lifted", "equivariant", ["--output", "regular"]),
        ("image", "not invariant", ["--output", "invariant"]),
        ("lifted", "not equivariant", ["--output", "image"]),
        ("Output", "invariant", []),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "auto",
)
def test_outputs_of_other_kinds(check: Check, target: str, how: str, arguments: list[str]) -> None:
    found = check(target, *arguments)
    assert found.first.startswith(f"{how} under CyclicRotation(4): ")
    assert found.code == how.startswith("not")
    if target == "Output":
        assert "chatter" in found.err  # what the model prints is no part of the report
    else:
        assert re.search(r"LI +-  not measured: the output \(2, ", found.out)
        assert ("\n  EE " in found.out) == (target != "Output")


def test_the_error_of_an_image_is_that_of_the_library(check: Check) -> None:
    Path("conv.py").write_text("from torch import nn\nmodel = nn.Conv2d(1, 2, 3, padding=1)\n")
    found = check("conv.py:model", gradients=True)
    assert found.code == 1
    torch.manual_seed(0)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = float(equivariance_error(nn.Conv2d(1, 2, 3, padding=1), x, C4).mean())
    assert found.known["measures"]["EE"]["value"] == pytest.approx(expected, rel=1e-4)
    assert "no (B, K) of logits" in found.known["measures"]["SI"]["missing"]


@pytest.mark.parametrize("how", ["deaf", "inputs"])
def test_nothing_shown(check: Check, how: str) -> None:
    """A model that says the same of everything, and inputs that no element moves."""
    np.savez("flat.npz", x=np.arange(3.0)[:, None, None, None] * np.ones((1, 8, 8)))
    found = check("deaf") if how == "deaf" else check("plain", "--data", "flat.npz")
    assert found.code == 3
    assert found.first.startswith("nothing shown of CyclicRotation(4): error 0")
    why = {"deaf": "the output is the same for every input, noise included"}
    assert why.get(how, "the inputs are the same however they are moved") in found.first


def test_a_random_model_is_not_invariant(check: Check) -> None:
    found = check("drops")
    assert found.code == 1
    assert "it is random, two identical calls differ" in found.first
    assert "layers: not measured: two identical calls differ" in found.out


def test_groups_and_tolerance(check: Check) -> None:
    assert check("tied", "--group", "C2").code == 0
    assert "under CyclicTranslation(4, dim=-2)" in check("plain", "--group", "T4:-2").first
    assert "not invariant under Dihedral(1)" in check("tied", "--group", "D1").first
    assert check("broken", "--tolerance", "10").code == 0


def test_a_module_with_dotted_names_and_nothing_left_changed(
    check: Check, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a model ever called in training mode."""
    (project / "a_package").mkdir()
    (project / "a_package" / "parts.py").write_text(MODELS)
    path, state = list(sys.path), torch.get_rng_state()
    assert check("a_package.parts:Holder.model", gradients=True).code == 0
    found = check("a_package.parts:evaluated", "--html", "page.html", gradients=True)
    assert found.code == 0, found
    assert "not measured" not in found.out
    assert "data:image/png;base64," in found.page
    assert sys.path == path
    assert torch.equal(torch.get_rng_state(), state)
    parts = sys.modules["a_package.parts"]
    assert parts.evaluated.calls == 0
    for model in (parts.Holder.model, parts.evaluated):
        assert all(module.training for module in model.modules())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    for name in ("a_package", "a_package.parts"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested"])
def test_weights_are_loaded(check: Check, kind: str) -> None:
    state = {"weight": torch.zeros(4, 1, 3, 3), "bias": torch.arange(1.0, 5.0)}
    file = "w.safetensors" if kind == "safetensors" else "w.pt"
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(state, file)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, file)
    found = check("conv", "--weights", file)
    assert found.code == 3, found  # a filter of zeros hears nothing
    assert "weights" not in found.err


def largest(found: Outcome) -> float:
    """The largest output."""
    return found.known["error"] / found.known["relative_error"]


@pytest.mark.parametrize("kind", ["x", "only", "planes", "bytes", "folder"])
def test_data(check: Check, kind: str) -> None:
    """The inputs are those that were saved: the largest output of the identity is the largest entry."""
    pixels = np.random.default_rng(0).integers(0, 200, (3, 8, 8), dtype=np.uint8)
    pixels[0, 1, 2] = 255
    floats = pixels.astype(np.float32) / 255 * 7
    if kind == "folder":
        save_images(Path("d.npz"), *pixels)
    elif kind == "x":
        np.savez("d.npz", other=np.ones(2), x=floats[:, None])
    else:
        np.savez("d.npz", {"only": floats[:, None], "planes": floats, "bytes": pixels}[kind])
    found = check("flat", "--data", "d.npz")
    assert found.code == 1, found
    assert largest(found) == pytest.approx(1 if kind in ("bytes", "folder") else 7)


def test_images_in_colour(check: Check) -> None:
    """Red, green and blue lie in this order along the channels, each as 0..1."""
    pixels = np.zeros((8, 8, 3))
    pixels[1, 2] = 51, 102, 255
    images = save_images(Path("images"), pixels, pixels)
    for channel, value in {"red": 0.2, "green": 0.4, "blue": 1.0}.items():
        assert largest(check(channel, "--input", "3,8,8", "--data", images)) == pytest.approx(value)


def test_a_single_input(check: Check) -> None:
    """How far outputs lie apart takes two: whether the model is deaf is then not known, and that is said."""
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((1, 1, 8, 8)))
    found = check("tied", "--data", "d.npz")
    assert found.code == 0
    assert "the first 1 of d.npz" in found.out
    assert found.out.count("expected x of two samples or more, got 1") == 2


def test_vectors(check: Check) -> None:
    found = check("vectors", "--group", "T3", "--input", "12", "--html", "page.html", gradients=True)
    assert found.code == 1
    assert "lost at the model itself: Linear(in_features=12" in found.first
    assert found.page.count("data:image/png;base64,") == 2 * 3 * 2


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_hostile_pickle_is_not_run(check: Check, project: Path) -> None:
    sentinel = project / "executed"
    trap = Trap(sentinel)
    pickle.loads(pickle.dumps(trap))
    assert sentinel.exists()  # the trap works
    sentinel.unlink()
    objects = np.empty(1, dtype=object)
    objects[0] = trap
    torch.save({"weight": trap}, "zip.pt")
    np.savez("objects.npz", x=objects)
    for file in ("raw.pt", "raw.safetensors", "raw.npz"):
        Path(file).write_bytes(pickle.dumps(trap if file == "raw.npz" else {"weight": trap}))
    for file in ("zip.pt", "raw.pt"):
        words = ("--weights to hold tensors alone", file, "nothing in it was run")
        assert_one_line(check("tied", "--weights", file), *words)
    assert_one_line(check("tied", "--weights", "raw.safetensors"), "--weights to be a safetensors file")
    for file in ("objects.npz", "raw.npz"):
        assert_one_line(check("tied", "--data", file), "--data to hold an array x", file)
    assert not sentinel.exists()


BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "no module": (["nowhere.to_be:found"], ["a module nowhere.to_be", "no module 'nowhere'"]),
    "no file": (["nowhere.py:found"], ["a file that exists", "nowhere.py"]),
    "no name": (["models.py:nothing"], ["models.py to have nothing", "no 'nothing'"]),
    "no dotted name": (["models.py:Holder.nothing"], ["to have Holder.nothing"]),
    "no colon": (["models.py"], ["pkg.module:name", "'models.py'"]),
    "odd name": (["models.py:a b"], ["pkg.module:name"]),
    "factory raises": (["raises"], ["raises() to make a model", r"RuntimeError: first\x1b[31m line second line"]),
    "factory raises without words": (["speechless"], ["speechless() to make a model", "got Mute."]),
    "model raises later": (["Later"], ["the command to run to its end", "RuntimeError: only once"]),
    "model leaves": (["leaving"], ["SystemExit"]),
    "model stops": (["stopping"], ["GeneratorExit"]),
    "factory leaves": (["leaves"], ["leaves() to make a model", "SystemExit: 0"]),
    "factory wants more": (["needs"], ["when called without arguments", "TypeError"]),
    "no model": (["number"], ["torch.nn.Module", "got int"]),
    "import fails": (["fails.py:model"], ["fails.py to be imported", "ZeroDivisionError"]),
    "import of its own fails": (["imports_nothing:model"], ["imports_nothing to be imported", "no_such_thing"]),
    "wrong shape": (
        ["plain", "--input", "1,9,9"],
        ["the model to run on (2, 1, 9, 9)", "got RuntimeError: ", "mat1 and mat2"],
    ),
    "wrong channels": (["tied", "--input", "3,8,8"], ["the model to run on (2, 3, 8, 8)"]),
    "no shape": (["tied", "--input", "1,8,x"], ["--input to be the shape", "'1,8,x'"]),
    "an axis of none": (["tied", "--input", "1,0,8"], ["--input to be the shape"]),
    "output no tensor": (["wrong"], ["model to return a tensor", "got dict"]),
    "output too few": (["few"], ["one output for each of 2 inputs", "(1, 1, 8, 8)"]),
    "output not moved": (["lifted", "--group", "T4"], ["moves as --output auto (regular)", "(2, 4, 4, 6, 6)"]),
    "output as declared": (["plain", "--output", "regular"], ["moves as --output regular", "(2, 3)"]),
    "no group": (["tied", "--group", "E8"], ["--group to be a name", "'E8'"]),
    "no exact group": (["tied", "--group", "C3"], ["--group to be a group that is exact", "'C3'"]),
    "trivial group": (["tied", "--group", "C1"], ["more than one element", "'C1'"]),
    "shift along a turn": (["tied", "--group", "C4:-1"], ["--group to be a name"]),
    "weights missing": (["tied", "--weights", "none.pt"], ["--weights to be a file that exists", "none.pt"]),
    "weights of another kind": (["tied", "--weights", "models.py"], ["--weights to end in .safetensors", "models.py"]),
    "weights that do not fit": (["tied", "--weights", "other.pt"], ["--weights to fit the model", "Missing key"]),
    "weights no dictionary": (["tied", "--weights", "list.pt"], ["--weights to hold a state dict", "list"]),
    "data missing": (["tied", "--data", "none.npz"], ["--data to be an .npz file or a folder", "none.npz"]),
    "data of another shape": (["tied", "--data", "wide.npz"], ["inputs (1, 8, 8)", "(1, 9, 9) in wide.npz"]),
    "data of integers": (["tied", "--data", "ints.npz"], ["uint8 or floating-point", "int64 in ints.npz"]),
    "data not finite": (["tied", "--data", "nan.npz"], ["finite numbers", "nan.npz"]),
    "data of two arrays": (["tied", "--data", "two.npz"], ["an array x, or one alone", "two.npz"]),
    "data no array": (["tied", "--data", "broken.npz"], ["an array x", "broken.npz"]),
    "folder without images": (["tied", "--data", "empty"], ["a folder with images", "empty"]),
    "images of another size": (["tied", "--data", "images"], ["height 8 and width 8", "0.PNG of height 5 and width 4"]),
    "images that are none": (["tied", "--data", "fakes"], ["--data to hold images", "fake.png"]),
    "images of two channels": (["tied", "--data", "images", "--input", "2,8,8"], ["1,H,W or 3,H,W"]),
    "one sample": (["tied", "--samples", "1"], ["--samples to be a whole number from 2 on", "'1'"]),
    "no tolerance": (["tied", "--tolerance", "nan"], ["--tolerance to be a number from 0 on", "'nan'"]),
    "bitwise, tolerance": (["tied", "--bitwise", "--tolerance", "1"], ["--bitwise without --tolerance"]),
    "no device": (["tied", "--device", "abacus"], ["--device to be one that torch has", "'abacus'"]),
    "html nowhere": (["tied", "--html", "no/where.html"], ["--html to be a file in a folder", "no/where.html"]),
    "json a folder": (["tied", "--json", "empty"], ["--json to be a file in a folder that can", "empty"]),
    "unknown argument": (["tied", "--depth\x1b[31m", "3"], ["arguments as --help shows", r"--depth\x1b[31m"]),
    "unknown output": (["tied", "--output", "x"], ["arguments as --help shows", "--output", "'x'"]),
}


@pytest.fixture
def odd_files(project: Path) -> None:
    """Everything there is to stumble over."""
    (project / "fails.py").write_text("1 / 0\n")
    (project / "imports_nothing.py").write_text("import no_such_thing\n")
    torch.save({"a": torch.zeros(2)}, "other.pt")
    torch.save([torch.zeros(2)], "list.pt")
    np.savez("wide.npz", x=np.zeros((3, 1, 9, 9)))
    np.savez("ints.npz", x=np.zeros((3, 1, 8, 8), dtype=np.int64))
    np.savez("nan.npz", x=np.full((3, 1, 8, 8), np.nan))
    np.savez("two.npz", a=np.zeros(2), b=np.zeros(2))
    (project / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    for folder in ("empty", "fakes"):
        (project / folder).mkdir()
    (project / "fakes" / "fake.png").write_text("no image")
    save_images(project / "images", np.zeros((5, 4)))


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(check: Check, what: str) -> None:
    (target, *arguments), words = BAD_INPUT[what]
    assert_one_line(check(target, *arguments), *words)


def test_no_command_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["check"], ["chekc"]):
        code = main(arguments)
        assert_one_line(Outcome(code, *capsys.readouterr()), "equilayers check --help")


def test_traceback_on_request(check: Check) -> None:
    found = check("raises", "--traceback")
    assert found.code == 2
    *lines, last = found.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("models.py" in line and line.startswith("  ") for line in lines)
    assert last.startswith("equilayers check: expected raises()")
    assert all(line.isprintable() for line in lines)


def test_an_interrupt_is_quiet(check: Check) -> None:
    assert check("stops") == (130, "", "")


def test_help_says_the_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["check", "--help"]) == 0
    words = capsys.readouterr().out
    for code in ("0    invariant", "1    not", "2    bad input", "3    nothing shown", "130  interrupted"):
        assert code in words
    assert main(["--version"]) == 0
    monkeypatch.setattr(sys, "argv", ["equilayers", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "equilayers" / "__main__.py"), run_name="__main__")
    assert ended.value.code == 0
    version, again = capsys.readouterr().out.splitlines()
    assert version == again
    assert version.startswith("equilayers ")


def test_what_comes_from_outside_is_escaped(check: Check) -> None:
    """Names and messages with HTML and control characters, on the terminal, in the page and in the JSON file."""
    found = check("hostile", "--html", "page.html", gradients=True)
    assert found.code == 1
    assert r"lost at <img src=x onerror=alert(2)>\x1b]0;title\x07" in found.first
    assert "<img src=x" not in found.page
    assert "<script" not in found.page
    assert "&lt;img src=x onerror=alert(2)&gt;\\x1b]0;title\\x07" in found.page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e" in found.page
    for text in (found.out, found.page, Path("found.json").read_text()):
        assert all(line.isprintable() for line in text.splitlines())
    assert "<script>" in found.known["layers"][0]["name"]
    assert_one_line(check("shouting"), r"ValueError: <b>loud</b> \x1b[2J and more than a line")


def test_the_page(check: Check, project: Path) -> None:
    found = check("broken", "--html", "page.html", gradients=True)
    assert found.code == 1
    assert "not invariant under CyclicRotation(4)" in found.page
    assert "Take kernel 4 with padding 1, or MaxBlurPool2d" in found.page
    assert found.page.count("data:image/png;base64,") == 2 * 4 * 2  # two samples, four turns, input and saliency
    assert found.page.count("<circle") == 6
    assert found.page.count('r="7"') == 1
    assert "http://" not in found.page
    assert "https://" not in found.page
    assert not list(project.glob(".page*"))  # nothing half written
    found = check("image", "--html", "page.html", gradients=True)
    assert found.code == 0
    assert "Not shown: the output (2, 2, 8, 8)" in found.page


@pytest.mark.parametrize("missing", ["captum", "matplotlib", "safetensors", "PIL", "rich"])
def test_without_an_extra(check: Check, project: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "rich":
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    Path("w.safetensors").write_bytes(b"")
    (project / "images").mkdir()
    (project / "images" / "0.png").write_bytes(b"")
    more = {"safetensors": ["--weights", "w.safetensors"], "PIL": ["--data", "images"]}.get(missing, [])
    found = check("tied", "--html", "page.html", *more, gradients=missing in ("captum", "matplotlib"))
    if missing in ("safetensors", "PIL"):
        assert_one_line(found, "to be installed", "pip install 'equilayers[check]'")
        return
    assert found.code == 0
    needs = re.search(r"SI +-  not measured: needs captum, pip install 'equilayers\[check\]'", found.out)
    assert (needs is not None) == (missing == "captum")
    assert (f"Not shown: needs {missing}, pip install" in found.page) == (missing != "rich")


def test_on_a_terminal(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words in colour, and still nothing raw from outside."""
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    found = check("hostile")
    assert found.code == 1
    for words in ("\x1b[1;31mnot invariant under CyclicRotation(4)", "lost here", r"\x1b]0;title\x07"):
        assert words in found.out
    for raw in ("\x1b]0;", "\x07", "\u202e"):
        assert raw not in found.out


def test_it_works_from_a_wheel_in_an_empty_project(project: Path, wheel: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [str(wheel / "bin" / "equilayers"), "check", f"models:{name}", "--group", "C4", "--input", "1,8,8"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.run([*command, *arguments], cwd=project, env=environment, text=True, check=False, **options)

    done = run("broken", "--quick", "--html", "page.html")
    assert (done.returncode, done.stderr) == (1, "")
    assert "lost at 2: MaxPool3d" in done.stdout.splitlines()[0]
    assert "lost here" in (project / "page.html").read_text(encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does
    done = run("tied", "--quick", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_that_are_not_regular_stay_what_they_are(check: Check) -> None:
    """A link is followed; a pipe is written to."""
    link, pipe, seen = Path("link.json"), Path("pipe.json"), Path("seen.json")
    seen.write_text("old")
    link.symlink_to(seen)
    assert check("tied", "--json", link.name).code == 0
    assert link.is_symlink()
    assert json.loads(seen.read_text())["exit_code"] == 0
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: seen.write_text(pipe.read_text()))
    reader.start()
    assert check("broken", "--json", pipe.name).code == 1
    reader.join(timeout=20)
    assert pipe.is_fifo()
    assert json.loads(seen.read_text())["exit_code"] == 1
