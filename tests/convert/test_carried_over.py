"""What a conversion carries over besides the numbers: hooks, what is trained, what is shared, modes, dtypes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from equilayers.convert import to_antialiased, to_equivariant, to_plain
from equilayers.groups import CyclicRotation
from equilayers.testing import assert_invariant
from refusals import assert_refused

C4 = CyclicRotation(4)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1)),
        *(nn.Conv2d(8, 8, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def equivariant(model: nn.Module, **settings: Any) -> tuple[nn.Module, Any]:
    return to_equivariant(model, C4, X, **settings)


@pytest.mark.parametrize("convert", [equivariant, to_antialiased])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 7])
def test_hooks_are_called_as_before(convert: Callable[..., Any], place: int) -> None:
    model, called = network(), []
    model[place].register_forward_hook(lambda module, args, output: called.append("after") or 2 * output)
    model[place].register_forward_pre_hook(lambda module, args, kwargs: called.append("before"), with_kwargs=True)
    model[place].register_full_backward_hook(lambda module, inputs, outputs: called.append("back"))
    made, report = convert(model)
    assert report.complete, str(report)
    called.clear()
    y = made(X.clone().requires_grad_())
    y.sum().backward()
    assert called == ["before", "after", "back"]
    for hooks in (made[place]._forward_hooks, made[place]._forward_pre_hooks):
        hooks.clear()
    assert not torch.equal(made(X), y)  # the result of the hook counts, too
    assert called == ["before", "after", "back"]


def test_a_hook_that_breaks_it_is_seen() -> None:
    model = network()
    model[0].register_forward_hook(lambda module, args, output: output.cumsum(-1))
    assert not equivariant(model)[1].complete
    model = network()
    model[0].register_state_dict_post_hook(lambda *args: None)
    assert "hooks on its state dict" in equivariant(model)[1].of("refused")[0].reason


def test_what_is_frozen_stays_so() -> None:
    model = network()
    frozen = {"0.weight": False, "1.bias": False, "4.bias": False, "7.weight": False}
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(frozen.get(path, True))
    for made, _ in (equivariant(model, from_weights=True), to_antialiased(model)):
        for place in (0, 1, 3, 4, 7):
            for path, parameter in made[place].named_parameters():
                assert parameter.requires_grad == frozen.get(f"{place}.{path.split('.')[-1]}", True), (place, path)
    made, _ = equivariant(model)  # new numbers are to be learned
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_what_is_shared_stays_so() -> None:
    model = network()
    model.insert(5, nn.Conv2d(8, 8, 3, 1, 1))
    model[5].weight = model[4].weight
    for settings in ({}, {"from_weights": True}):
        made, report = equivariant(model, **settings)
        assert report.complete, str(report)
        assert made[4].conv.weight is made[5].conv.weight
        assert made[4].conv.bias is not made[5].conv.bias
        assert_invariant(made.eval(), X, C4)
    smooth, _ = to_antialiased(model)
    assert smooth[4].weight is smooth[5].weight


class Owner(nn.Module):
    """Uses a weight of another layer itself."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.mean()


@pytest.mark.parametrize("what", ["another module", "an image and features"])
def test_what_cannot_stay_shared_is_refused(what: str) -> None:
    model = network()
    if what == "another module":
        model.insert(1, Owner(model[0].weight))
        path = "0"
    else:
        model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model[2].weight, path = model[0].weight, "2"
    _, report = equivariant(model)
    reasons = {entry.path: entry.reason for entry in report.of("refused")}
    assert "share" in reasons[path] or "is that of" in reasons[path]


@pytest.mark.parametrize(
    "alter",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        lambda layer: parametrizations.weight_norm(layer, "bias", dim=None),
    ],
)
def test_weights_that_are_made_of_others_are_refused(alter: Callable[[nn.Module], nn.Module]) -> None:
    for convert in (equivariant, to_antialiased):
        model = network()
        alter(model[3])
        _, report = convert(model)
        assert "parametrised" in {entry.path: entry.reason for entry in report.of("refused")}["3"]


def test_models_that_cannot_be_copied_are_one_sentence() -> None:
    model = network()
    prune.l1_unstructured(model[3], "weight", 0.5)
    for convert in (equivariant, to_antialiased, to_plain):
        caller = getattr(convert, "__name__", "").replace("equivariant", "to_equivariant")
        assert_refused(lambda c=convert: c(model), ValueError, caller, "can be copied", "prune.remove")


def test_modes_buffers_and_dtypes() -> None:
    model = network().double()
    model(torch.randn(8, 3, 16, 16, dtype=torch.float64))
    model[1].eval()
    made, _ = to_equivariant(model, C4, X, from_weights=True)
    assert made.training
    assert not any(module.training for module in made[1].modules())
    norm = made[1].layer
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm.running_mean, model[1].running_mean.unflatten(0, (2, 4)).mean(1))
    assert {t.dtype for t in made.state_dict().values()} == {torch.float64, torch.int64}
    head = model[7].weight.unflatten(1, (2, 4)).sum(2)
    torch.testing.assert_close(made[7].linear.weight, head, rtol=0, atol=1e-15)
