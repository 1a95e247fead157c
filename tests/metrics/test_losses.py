"""Invariance as a penalty: the measures again, differentiable, with all elements or one drawn for each sample."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.study.models import mlp, weight_tied_mlp
from equilayers.groups import Group
from equilayers.losses import InvarianceLoss
from equilayers.metrics import distribution_invariance_error, logit_invariance_error
from strategies import C4, D4, T3, TRIVIAL, name

FORMS = ["logit", "distribution", "normalized_logit"]
forms = pytest.mark.parametrize("form", FORMS)


def measured(form: str, model: nn.Module, x: Tensor, group: Group, include_identity: bool = False) -> Tensor:
    if form == "distribution":
        return distribution_invariance_error(model, x, group, include_identity=include_identity)
    normalized = form == "normalized_logit"
    return logit_invariance_error(model, x, group, normalized=normalized, include_identity=include_identity)


def toy() -> tuple[nn.Sequential, Tensor]:
    return mlp((1, 6, 6), 4, (8,)).double(), torch.randn(5, 1, 6, 6, dtype=torch.float64)


@forms
@pytest.mark.parametrize("group", [C4, T3, D4], ids=name)
@pytest.mark.parametrize("include_identity", [False, True])
def test_all_elements_give_the_measure(form: str, group: Group, include_identity: bool) -> None:
    model, x = toy()
    loss = InvarianceLoss(group, form, include_identity=include_identity)(model, x)
    assert (loss.dtype, loss.shape, loss.requires_grad) == (torch.float64, (), True)
    expected = measured(form, model, x, group, include_identity)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("include_identity", [False, True])
@pytest.mark.parametrize("group", [C4, T3, D4], ids=name)
def test_each_sample_is_moved_by_an_element_of_its_own(group: Group, include_identity: bool) -> None:
    x = torch.randn(200, 2, 6, 6)
    moved = InvarianceLoss(group, elements="random", include_identity=include_identity).moved(x)
    same = (moved == group.orbit(x)).flatten(2).all(2)  # (|G|, B)
    assert same.sum(0).eq(1).all()
    drawn = same.int().argmax(0)
    assert sorted(set(drawn.tolist())) == list(range(0 if include_identity else 1, group.order))
    assert (moved.dtype, moved.shape) == (x.dtype, x.shape)


@forms
@pytest.mark.parametrize("elements", ["all", "random"])
def test_gradient_reaches_the_parameters(form: str, elements: str) -> None:
    model, x = mlp((1, 3, 3), 3, (4,)).double(), torch.randn(3, 1, 3, 3, dtype=torch.float64)
    loss = InvarianceLoss(C4, form, elements=elements)
    names = [key for key, _ in model.named_parameters()]

    def penalty(*parameters: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same elements each time
        own = dict(zip(names, parameters, strict=True))
        return loss(lambda v: torch.func.functional_call(model, own, (v,)), x)

    assert torch.autograd.gradcheck(penalty, tuple(model.parameters()))
    loss(model.train(), x.requires_grad_()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (x, *list(model.parameters())[:-1]))
    assert all(module.training for module in model.modules())


@forms
def test_gradient_where_some_logits_agree_and_others_do_not(form: str) -> None:
    # Two classes change places: the third has the same probability before and after, to the last bit.
    f, fg = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in ([0.3, 1, -1], [0.3, -1, 1]))
    assert torch.autograd.gradcheck(InvarianceLoss(C4, form).between, (f, fg))


@forms
def test_gradient_at_equal_logits_is_zero(form: str) -> None:
    f, fg = (torch.tensor([[0.3, 1.0, -1.0]], dtype=torch.float64, requires_grad=True) for _ in "fg")
    loss = InvarianceLoss(C4, form).between(f, fg)
    assert loss.item() == 0
    for grad in torch.autograd.grad(loss, (f, fg)):
        assert grad.abs().max() < 1e-15


def test_gradient_of_the_divergence_of_confident_outputs() -> None:
    # In float32 the winner's log-probability is 0 both times; the others' still differ.
    values = [[30.0, 5.0, 9.0]], [[30.0, 7.0, 9.0]]
    f, fg = (torch.tensor(v, requires_grad=True) for v in values)
    (grad,) = torch.autograd.grad(InvarianceLoss(C4, "distribution").between(f, fg), fg)
    exact = [torch.tensor(v, dtype=torch.float64) for v in values]
    expected = exact[1].softmax(-1) - exact[0].softmax(-1)
    torch.testing.assert_close(grad[:, 1].double(), expected[:, 1], rtol=1e-3, atol=0)


@forms
@pytest.mark.parametrize("elements", ["all", "random"])
def test_weight_tied_models_pay_for_another_group_only(form: str, elements: str) -> None:
    model, x = weight_tied_mlp(T3, (1, 6, 6), 4, (8, 8)), torch.randn(7, 1, 6, 6)
    assert InvarianceLoss(C4, form, elements=elements)(model, x).item() > 0
    assert InvarianceLoss(T3, form)(model, x).item() == 0


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, {"form": "logits"}),
        (ValueError, {"elements": "some"}),
        (ValueError, {"group": TRIVIAL}),
        (TypeError, {"group": 4}),
    ],
)
def test_errors(error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=r"^InvarianceLoss: expected .+, got .+\. .+\.$"):
        InvarianceLoss(**{"group": C4, **arguments})


@pytest.mark.parametrize(
    ("error", "x"),
    [(TypeError, torch.ones(2, 1, 6, 6).int()), (TypeError, [1.0])],
    ids=["int", "list"],
)
def test_errors_of_the_input(error: type[Exception], x: Any) -> None:
    with pytest.raises(error, match=r"expected .+, got .+\. .+\.$"):
        InvarianceLoss(C4)(lambda v: v.flatten(1), x)


def test_says_what_it_is() -> None:
    assert repr(InvarianceLoss(C4, "distribution", elements="random")) == (
        "InvarianceLoss(CyclicRotation(4), form='distribution', elements='random')"
    )
