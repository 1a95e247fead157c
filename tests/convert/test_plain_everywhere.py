"""The plain form of every blur, traced, scripted, exported and as an ONNX file, at sizes of both parities."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from equilayers.convert import to_plain
from equilayers.nn import AvgBlurPool2d, BlurConv2d, BlurPool2d, MaxBlurPool2d, PolyphasePool2d

MODES = ("zeros", "reflect", "replicate", "circular")
POOLS = (BlurPool2d, MaxBlurPool2d, AvgBlurPool2d)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"{kind.__name__} {mode}": lambda kind=kind, mode=mode: kind(padding_mode=mode)
        for kind, mode in itertools.product(POOLS, MODES)
    },
    "four taps": lambda: BlurPool2d(4, 3),
    "weights": lambda: BlurPool2d((1.0, 2.0, 5.0), (2, 1)),
    "padded windows": lambda: MaxBlurPool2d(3, 2, 1),
    "wide windows": lambda: AvgBlurPool2d(5, 2, padding_mode="circular"),
    "BlurConv2d": lambda: BlurConv2d(None, 2, 3, 3, padding=1),
    "PolyphasePool2d": lambda: PolyphasePool2d((3, 2), exact=False),
}
X = torch.randn(2, 2, 10, 12, generator=torch.Generator().manual_seed(0))
DYNAMIC = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
EXPORTED = ("BlurPool2d reflect", "MaxBlurPool2d reflect", "AvgBlurPool2d zeros", "wide windows", "BlurConv2d")
IN_ONNX = ("MaxBlurPool2d reflect", "wide windows")


def agree(layer: nn.Module, form: Callable[[Tensor], Tensor], low: int = 6) -> None:
    for height, width in ((6, 9), (9, 8), (7, 7), (12, 13), (3, 4), (2, 3)):
        if min(height, width) >= low:
            x = torch.randn(3, 2, height, width)
            torch.testing.assert_close(form(x), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The TorchScript type system")  # of all scripts
@pytest.mark.parametrize("what", LAYERS)
def test_traced_and_scripted(what: str) -> None:
    layer = LAYERS[what]()
    plain = to_plain(layer)
    scripted = torch.jit.script(plain)
    agree(layer, scripted, 2)
    agree(layer, torch.jit.trace(plain, X), 2)
    if what != "BlurConv2d":
        maps = X.unflatten(1, (1, 2))  # regular features
        torch.testing.assert_close(scripted(maps), layer(maps))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("what", EXPORTED)
def test_exported_for_every_size(what: str, tmp_path: Path, fresh_compiler: None) -> None:
    """To a graph of torch, and of a pool that mirrors and one that goes around to ONNX."""
    layer = LAYERS[what]()
    program = torch.export.export(to_plain(layer), (X,), dynamic_shapes=DYNAMIC)
    agree(layer, program.module())
    if what in IN_ONNX:
        runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'equilayers[onnx]'")
        torch.onnx.export(program, f=tmp_path / "model.onnx", dynamo=True, opset_version=18, verbose=False)
        session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        agree(layer, lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]))
