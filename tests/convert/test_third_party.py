"""Networks that nobody here wrote: where they break, that they are exact after the conversion, and that they learn."""

import copy
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import __main__ as benchmarks
from benchmarks import models as command
from benchmarks import third_party as networks_of_others
from benchmarks.third_party import Network, error, images, tensor_of, train
from equilayers.convert import to_equivariant
from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.metrics import invariance_gap
from equilayers.testing import assert_equivariant, assert_invariant, locate_break
from peers import required

C4, D4 = CyclicRotation(4), Dihedral(4)
Networks = dict[str, Network]

# Where each of them breaks first, and whether the stride of that layer is named at the first, even size.
BREAKS = {
    "MONAI resnet18": ("conv1", False),
    "MONAI densenet121": ("features.conv0", True),
    "MONAI UNet": ("model.0.residual", True),
    "MONAI UNet, strides 3": ("model.0.residual", True),
    "MONAI BasicUNet": ("conv_0.conv_0.conv", False),
    "transformers ResNet": ("resnet.embedder.embedder.convolution", True),
    "transformers MobileNetV2": ("mobilenet_v2.conv_stem.first_conv.convolution", True),
    "transformers ConvNext": ("convnext.embeddings.patch_embeddings", False),
}
CONVERTED = list(BREAKS)
# The sizes that the network itself takes; BasicUNet pads on one side alone where it is odd.
SIZES = {"MONAI UNet": (64, 72), "MONAI UNet, strides 3": (72, 63), "MONAI BasicUNet": (64, 48)}


@pytest.mark.parametrize("which", list(BREAKS))
def test_the_breaking_layer_is_named(third_party: Networks, which: str) -> None:
    network = third_party[which]
    model = network.make()
    train(model, images(4, network.sizes[0]), 1)
    found = locate_break(model, images(2, network.sizes[0]), C4)
    path, by_its_stride = BREAKS[which]
    assert found is not None
    assert found.path == path
    assert isinstance(model.get_submodule(path), nn.Conv2d)
    assert found.error > 0.01
    assert ("lopsidedly" if by_its_stride else "filter is not symmetric") in found.why


def check(network: Network, model: nn.Module, group: Group, size: int) -> None:
    """It holds to rounding, and not because the network says the same of everything."""
    x = images(4, size)
    (assert_equivariant if network.images else assert_invariant)(model, x, group)
    exact = copy.deepcopy(model).double()
    assert error(network, exact, group, x.double()) < 1e-10  # by how far the outputs of the samples lie apart
    if not network.images:
        assert not invariance_gap(tensor_of(model), x, group).trivial


@pytest.mark.parametrize("which", CONVERTED)
def test_what_is_converted_is_exact_and_learns(third_party: Networks, which: str) -> None:
    network = third_party[which]
    x = images(4, network.sizes[0])
    made, report = to_equivariant(network.make(), C4, x)
    assert report.complete == (which != "MONAI BasicUNet"), str(report)  # which is exact at even sizes alone
    assert report.parameters_after < 0.35 * report.parameters_before
    losses = train(made, x, 4)
    assert losses[-1] < 0.99 * losses[0]
    for other in SIZES.get(which, (64, 57)):
        check(network, made, C4, other)


OTHERS = [("transformers ResNet", "equal-parameters"), ("MONAI UNet, strides 3", "equal-compute")]


@pytest.mark.parametrize(("which", "width"), OTHERS)
def test_other_widths_and_mirrors(third_party: Networks, which: str, width: str) -> None:
    network = third_party[which]
    x = images(4, network.sizes[0])
    made, report = to_equivariant(network.make(), D4, x, width=width)
    assert report.complete, str(report)
    train(made, x, 1)
    check(network, made, D4, network.sizes[1])


def test_sizes_that_the_unet_itself_does_not_take(third_party: Networks) -> None:
    model = third_party["MONAI UNet"].make()
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        model(images(4, 65))
    with pytest.raises(ValueError, match="expected x that the model takes"):
        to_equivariant(model, C4, images(4, 65))


def test_padding_on_one_side_is_found(third_party: Networks) -> None:
    """What a forward method does itself is not converted: the report says that it is wrong, and locate_break where."""
    network = third_party["MONAI BasicUNet"]
    made, report = to_equivariant(network.make(), C4, images(4, 57))
    pads = report.of("refused")
    assert {entry.path for entry in pads} == {"upcat_1", "upcat_2", "upcat_3", "upcat_4"}
    assert all(entry.reason.startswith("pad: it pads more on one side") for entry in pads)
    train(made, images(4, 64), 1)
    with pytest.raises(AssertionError, match="it pads more on one side"):
        assert_equivariant(made, images(4, 57), C4)
    assert error(network, made, C4, images(4, 57)) > 0.01


class Ordered(nn.Module):
    """Features weighted by sums of a parameter, one channel after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x) * self.gain.cumsum(0)[:, None, None]
        return self.head(x.mean((-2, -1)))


def test_what_is_not_known_is_refused_by_name() -> None:
    _, report = to_equivariant(Ordered(), C4, images(4, 16))
    refused = report.of("refused")
    assert refused[0].path == ""
    assert refused[0].reason == "gain: cumsum depends on the order along an axis that the group moves"


def test_the_command(
    third_party: Networks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [replace(third_party[key], sizes=(32, 33)) for key in ("transformers ResNet", "MONAI UNet")]
    some.append(Network("Ordered", Ordered, (32, 33)))
    monkeypatch.setattr(command, "networks", lambda small: some)
    path = tmp_path / "models.md"
    command.run(0.0, tmp_path, quick=True, markdown=path)
    text, shown = path.read_text(), capsys.readouterr().out
    assert {path, tmp_path / "models.json"} == set(tmp_path.iterdir())
    assert all(network.name in shown for network in some)
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if " | original | " in line or " | C4 | " in line]
    assert [row[1] for row in rows] == ["original", "C4"] * 3
    assert [row[0] for row in rows[::2]] == [f"{network.name}, 32², 33²" for network in some]
    assert all(len(row) == len(command.HEAD) for row in rows)
    original, tied = rows[0], rows[1]
    assert float(original[5]) > 0.1
    assert max(map(float, tied[4].split(", "))) < 1e-4
    assert float(tied[5]) < 1e-10
    assert tied[2].split(" / ")[::2] == ["26", "0"]  # replaced, and refused
    before, after = map(float, tied[8].split(" → "))
    assert after < before
    assert [row[4].split(", ")[1] for row in rows[2:4]] == rows[5][6:8] == ["–", "–"]
    assert text.count("does not run at 33x33") == 1
    assert "- MONAI UNet, the model itself does not run at 33x33: Sizes of tensors must match" in text
    assert re.search(r"gain: cumsum depends on the order along an axis that the group moves\)$", text, re.MULTILINE)
    assert "- transformers ResNet: `resnet.embedder.embedder.convolution`, its filter is not symmetric" in text


def test_what_was_measured_is_not_measured_again(
    third_party: Networks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = Network("broken", lambda: nn.Sequential(nn.Linear(3, 3)))
    good = Network("good", Ordered, (16,))
    monkeypatch.setattr(command, "networks", lambda small: [good, broken])
    with pytest.raises(ValueError, match="expected x that the model takes"):
        command.run(0.0, tmp_path, quick=True, markdown=tmp_path / "models.md")
    assert [tmp_path / "models.json"] == list(tmp_path.iterdir())  # a page is whole or not there
    monkeypatch.setattr(command, "networks", lambda small: [good])
    monkeypatch.setattr(command, "measure", None)
    command.run(0.0, tmp_path, quick=True, markdown=tmp_path / "models.md")
    assert "good, 16²" in (tmp_path / "models.md").read_text()
    with pytest.raises(TypeError, match="not callable"):
        command.run(1.0, tmp_path)  # other settings
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="models: expected the folder of --markdown to be a writable folder"):
        command.run(0.0, tmp_path, quick=True, markdown=tmp_path / "file" / "models.md")


def test_options_of_another_subject_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "turns", "--quick"])
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main()
    assert "expected --quick with models, got turns" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ImportError, match=r"pip install 'equilayers\[models\]'"):
        networks_of_others.versions()
    for value, outcome, words in (
        ("", pytest.skip.Exception, "Run `make env`"),
        ("1", pytest.fail.Exception, "EQUILAYERS_REQUIRE_MODELS=1, but monai cannot be imported"),
    ):
        monkeypatch.setenv("EQUILAYERS_REQUIRE_MODELS", value)
        with pytest.raises(outcome, match=words):
            required(networks_of_others.versions, "monai", "models")


def test_the_error_measures_what_it_says() -> None:
    """An invariant model has none; one whose outputs lie apart by as much as a turn moves them has about one."""
    network = Network("", nn.Identity)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    assert error(network, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), C4, x) < 1e-14
    gaps = torch.stack([(C4.act(g, x) - x).flatten(1).norm(dim=1) for g in (1, 2, 3)])
    apart = (x - x.mean(0)).flatten(1).norm(dim=1).max()
    assert error(network, nn.Flatten(), C4, x) == pytest.approx(float(gaps.max() / apart))
