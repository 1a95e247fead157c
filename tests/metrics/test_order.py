"""One order of the arguments, (model, x, group) or (model, x, target, group), and an error that names it."""

import inspect
from typing import Any

import pytest
import torch

import equilayers.metrics
import equilayers.testing
from equilayers.losses import InvarianceLoss
from refusals import assert_refused
from strategies import C4

X, TARGET = torch.ones(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
FUNCTIONS = {
    name: list(inspect.signature(function).parameters)
    for part in (equilayers.metrics, equilayers.testing)
    for name in part.__all__
    if inspect.isfunction(function := getattr(part, name)) and "model" in inspect.signature(function).parameters
}
WITH_GROUP = [name for name, names in FUNCTIONS.items() if "group" in names]


def test_every_function_has_the_order() -> None:
    assert len(WITH_GROUP) > 10
    for name, names in FUNCTIONS.items():
        order = ["model", "x", "target", "group"] if "target" in names else ["model", "x", "group"]
        assert names[: len(order)] == order if name in WITH_GROUP else names[:2] == order[:2], name


@pytest.mark.parametrize("name", WITH_GROUP)
def test_the_other_order_is_refused(name: str) -> None:
    function: Any = getattr(equilayers.metrics if name in equilayers.metrics.__all__ else equilayers.testing, name)
    between = (TARGET,) if "target" in FUNCTIONS[name] else ()
    order = "(model, x, target, group)" if between else "(model, x, group)"
    model = lambda x: x.flatten(1)  # noqa: E731
    words = (f"{order} in this order", "as group", "Pass the group last")
    assert_refused(lambda: function(model, C4, *between, X), TypeError, name, *words)


def test_the_loss_takes_the_model_first() -> None:
    loss: Any = InvarianceLoss(C4)
    words = ("(model, x) in this order", "a tensor as model", "Pass x last")
    assert_refused(lambda: loss(X, lambda x: x.flatten(1)), TypeError, "InvarianceLoss", *words)
