"""Write escnn.npz: what escnn computes, for comparison where escnn is not installed.

python tests/golden/make_escnn.py [FILE]

A case has its input `x`, escnn's output `y` in our layout, and our layer's state as `state.<name>`; `cases` says in
JSON how the layer is made, `versions` what made the file. The same versions on the same machine give the same bytes.
"""

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import import_escnn
from equilayers.interop.escnn import from_escnn, to_regular

GOLDEN = Path(__file__).with_name("escnn.npz")
SPACES = {"CyclicRotation(4)": "rot2dOnR2", "Dihedral(4)": "flipRot2dOnR2"}
# Layer, its settings, the size of the input.
CONVOLUTIONS: list[tuple[str, dict[str, Any], int]] = [
    ("LiftingConv2d", {"kernel_size": 3, "padding": 1}, 6),
    ("LiftingConv2d", {"kernel_size": 5, "stride": 2, "padding": 2, "padding_mode": "reflect"}, 9),
    ("GroupConv2d", {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "bias": False}, 6),
    ("GroupConv2d", {"kernel_size": 5, "stride": 2}, 9),
    ("GroupConv2d", {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}, 7),
]


def network(library: ModuleType, gspace: Any, width: int = 4) -> Any:
    """Four convolutions of escnn with batch norms and pooling, one of them with stride 2; for sizes 4n+1."""
    image = gspace.type(*[gspace.trivial_repr] * 2)
    fields = gspace.type(*[gspace.regular_repr] * width)
    return library.SequentialModule(
        library.R2Conv(image, fields, 5, padding=2, bias=False),
        library.InnerBatchNorm(fields),
        library.ReLU(fields, inplace=True),
        library.R2Conv(fields, fields, 3, stride=2, padding=1),
        library.InnerBatchNorm(fields),
        library.ELU(fields),
        library.PointwiseMaxPool2D(fields, 3, stride=2, padding=1),
        library.R2Conv(fields, fields, 3, padding=1),
        library.InnerBatchNorm(fields, momentum=0.3),
        library.ReLU(fields),
        library.R2Conv(fields, fields, 3, padding=1),
        library.InnerBatchNorm(fields),
        library.ReLU(fields),
        library.GroupPooling(fields),
    )


def train(model: Any, size: int, steps: int = 3) -> None:
    """A few steps of SGD towards noise: every weight, bias and running mean leaves its first value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        x = model.in_type(1 + torch.randn(4, model.in_type.size, size, size))
        y = model(x).tensor
        optimizer.zero_grad()
        (y - torch.randn_like(y)).square().mean().backward()
        optimizer.step()


def cases(library: ModuleType, gspaces: ModuleType) -> Iterator[tuple[dict[str, Any], Tensor, Tensor, nn.Module]]:
    """How our layer is made, input and output of escnn's in our layout, and our layer."""
    torch.manual_seed(0)
    for group, make in SPACES.items():
        gspace = getattr(gspaces, make)(4)
        for layer, settings, size in CONVOLUTIONS:
            channels = {"in_channels": 2, "out_channels": 4 if "groups" in settings else 3}
            field = gspace.trivial_repr if layer == "LiftingConv2d" else gspace.regular_repr
            source = gspace.type(*[field] * channels["in_channels"])
            target = gspace.type(*[gspace.regular_repr] * channels["out_channels"])
            theirs = library.R2Conv(source, target, **settings)
            train(theirs, size)
            yield {"layer": layer, "group": group, **channels, **settings}, *_example(theirs, size)
        theirs = network(library, gspace)
        train(theirs, 13)
        yield {"layer": "network", "group": group}, *_example(theirs.eval(), 13)


def _example(theirs: Any, size: int) -> tuple[Tensor, Tensor, nn.Module]:
    with torch.no_grad():
        x = theirs.in_type(torch.randn(2, theirs.in_type.size, size, size))
        return to_regular(x), to_regular(theirs(x)), from_escnn(theirs)


def write(path: Path) -> None:
    """Write the file in one go: under another name first, so that a reader never sees half of it."""
    escnn = import_escnn()
    arrays, settings = {}, []
    for number, (how, x, y, ours) in enumerate(cases(escnn.nn, escnn.gspaces)):
        settings.append(how)
        tensors = {"x": x, "y": y} | {f"state.{name}": value for name, value in ours.state_dict().items()}
        arrays |= {f"{number}.{name}": tensor.numpy() for name, tensor in tensors.items()}
    versions = {"escnn": escnn.__version__, "torch": torch.__version__, "numpy": np.__version__}
    versions["python"] = platform.python_version()
    texts = {"cases": np.array(json.dumps(settings)), "versions": np.array(json.dumps(versions))}
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **texts, **arrays)
    partial.replace(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
