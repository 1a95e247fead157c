"""Models on tokens: converted whole, exact, and they learn; what cannot be tied is refused, and never certified."""

import pytest
import torch
from torch import Tensor, nn

from equilayers.convert import to_equivariant
from equilayers.groups import CyclicRotation, Dihedral, Group
from peers import required
from token_models import CLASSES, models

C4, D4 = CyclicRotation(4), Dihedral(4)
BY_HAND = ("by hand", "by hand, odd", "dense, by hand", "torch")
OF_OTHERS = (
    *("ViT", "ViT, odd", "DeiT", "DINOv2", "DINOv2, registers", "BEiT", "ConvNeXt", "ConvNeXtV2", "Swin"),
    *("SegFormer", "MONAI ViT"),
)


def images(size: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def error(model: nn.Module, x: Tensor, group: Group) -> float:
    """The largest difference after a move, by how far the outputs of the samples lie apart."""
    with torch.no_grad():
        y, spread = model(x), 0.0
        spread = float((y - y.mean(0)).abs().max())
        act = group.act if y.ndim == 4 else lambda _, t: t
        return max(float((model(group.act(g, x)) - act(g, y)).abs().max()) for g in range(group.order)) / spread


def learn(model: nn.Module, x: Tensor, steps: int = 10) -> list[float]:
    """The losses of some Adam steps on random labels, dropout left out."""
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    labels = torch.randint(CLASSES, model(x).argmax(1).shape, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("group", [C4, D4], ids=repr)
@pytest.mark.parametrize("which", [*BY_HAND, *OF_OTHERS])
def test_families_are_converted_whole_exact_and_learn(which: str, group: Group) -> None:
    make, sizes = required(models, "transformers or monai", "models")[which]
    torch.manual_seed(0)
    model = required(make, "what it is made of", "einops")  # which MONAI's attention imports
    made, report = to_equivariant(model.eval(), group, images(sizes[0], 2))
    assert report.complete, str(report)
    assert report.parameters_after < 1.3 * report.parameters_before / group.order + 200
    losses = learn(made, images(sizes[0]))
    assert losses[-1] < losses[0]
    for size in sizes:
        assert error(made, images(size), group) < 1e-4
    # At other sizes DINOv2 resizes its embedding of places in float32, whatever it is given.
    assert error(made.double(), images(sizes[0]).double(), group) < 1e-10
