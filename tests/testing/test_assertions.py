"""The assertions: what passes, what fails and with which words, and that a model is left as it was."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equilayers.testing
from equilayers.groups import CyclicRotation, CyclicTranslation, DirectProduct, Group
from equilayers.nn import InvariantAvgPool2d, LiftingConv2d, OrbitPool
from equilayers.testing import assert_equivariant, assert_invariant, invariance_error, layer_errors, locate_break
from equilayers.testing._comparison import compare
from equilayers.testing._execution import full_precision
from planted import FAULTS, Does, Net, Output, image, located
from refusals import assert_refused
from strategies import C2, C4, T3, each_group, name

CHECKS: dict[str, Callable[..., object]] = {
    "assert_invariant": assert_invariant,
    "assert_equivariant": assert_equivariant,
    "invariance_error": invariance_error,
    "locate_break": locate_break,
    "layer_errors": layer_errors,
}
each_check = pytest.mark.parametrize("caller", CHECKS)


@each_group
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exact_network_passes_bitwise(group: Group, dtype: torch.dtype) -> None:
    net = Net(group).to(dtype)
    for size in (7, 8):
        assert_invariant(net, image(size), group, bitwise=True)
        assert invariance_error(net, image(size), group) == 0
    assert_invariant(Net(group, algorithm="dense").to(dtype), image(), group)


@each_group
def test_equivariant_outputs(group: Group) -> None:
    """Images, regular features of maps and of vectors, and the user's own action."""
    x = image()
    lift = LiftingConv2d(group, 1, 3, 3, algorithm="bitwise")
    images, vectors = nn.Sequential(lift, OrbitPool()), nn.Sequential(lift, nn.ReLU(), InvariantAvgPool2d())
    for output in ("auto", "image", group.act):
        assert_equivariant(images, x, group, output=output, bitwise=True)
    for model in (lift, vectors):
        for output in ("auto", "regular", group.act_regular):
            assert_equivariant(model, x, group, output=output, bitwise=True)
    shifted = nn.Sequential(images, Does(lambda y: y.roll(1, -1)))
    assert_equivariant(shifted, x, group, output=lambda g, y: group.act(g, y.roll(-1, -1)).roll(1, -1), bitwise=True)
    with pytest.raises(AssertionError, match=r"not equivariant(.|\n)*lost at:   1: Tensor.roll"):
        assert_equivariant(shifted, x, group)


@each_group
def test_a_wrong_output_is_found_out(group: Group) -> None:
    x = image()
    lift = LiftingConv2d(group, 1, 3, 3, algorithm="bitwise")
    words = r"structural: every module is equivariant, and so is the output \(regular\): it does not move as declared"
    with pytest.raises(AssertionError, match=words):
        assert_equivariant(lift, x, group, output="image")
    with pytest.raises(AssertionError, match=r"\(image\): pool over what moves"):
        assert_invariant(nn.Sequential(lift, OrbitPool()), x, group)
    with pytest.raises(AssertionError, match=r"\(regular\): pool over what moves"):
        assert_invariant(nn.Sequential(lift, InvariantAvgPool2d()), x, group)


@pytest.mark.parametrize("group", [CyclicTranslation(4), DirectProduct(C2, CyclicTranslation(2))], ids=name)
def test_shifts_and_products(group: Group) -> None:
    conv = nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular")
    symmetric = conv.weight.detach() + conv.weight.detach().flip(-1, -2)
    conv.load_state_dict({"weight": symmetric, "bias": conv.bias.detach()})
    pooled = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert_equivariant(conv, image(), group)
    assert_invariant(pooled, image(), group)
    conv.padding_mode = "zeros"
    with pytest.raises(AssertionError, match="not invariant under"):
        assert_invariant(pooled, image(), group)


def test_the_message() -> None:
    """The worst element, sample and output, both numbers, the error and the tolerance: all of them right."""
    weight = torch.zeros(2, 1, 4, 4)
    weight[1, 0, 0, 1] = 3.0
    model = Does(lambda x: torch.einsum("bchw,ochw->bo", x, weight.to(x)))
    x = torch.zeros(3, 1, 4, 4)
    x[2, 0, 2, 0] = 2.0  # comes to the place of the weight under g = 3 alone
    x[1, 0, 2, 0] = 1.0
    check = compare("test", model, x, C4, lambda g, y: y, tolerance=0.125, diagnose=False)
    assert (check.passed, check.error, check.scale, check.tolerance) == (False, 6.0, 6.0, 0.75)
    assert (check.element, check.sample, check.index, check.expected, check.found) == (3, 2, (1,), 0.0, 6.0)
    with pytest.raises(AssertionError) as caught:
        assert_invariant(model, x, C4, tolerance=0.125)
    assert str(caught.value).splitlines() == [
        "assert_invariant: Does is not invariant under CyclicRotation(4)",
        "worst:     g = 3, sample 2, output (1,): 6 in the place of 0",
        "error:     6, 1 of the size of the outputs there, 6; tolerance 0.75",
        "diagnosis: structural: in float64 the error is 1 of the largest output as well",
        "lost at:   the model itself: torch.functional.einsum('bchw,ochw->bo') on (3, 1, 4, 4): what comes in moves "
        "with the input, what goes out does not. Look at what it does with places or axes.",
    ]
    with pytest.raises(AssertionError) as caught:
        assert_equivariant(model.forward, x, C4, output=lambda g, y: y, diagnose=False)
    assert str(caught.value).splitlines()[0] == "assert_equivariant: forward is not equivariant under CyclicRotation(4)"
    assert len(str(caught.value).splitlines()) == 3
    assert_invariant(model, x, C4, tolerance=1.0)


def test_the_worst_sample_is_looked_at_in_a_large_batch() -> None:
    """The diagnosis takes few samples, but that one."""
    x = torch.zeros(40, 1, 8, 8)
    x[33] = torch.randn(1, 8, 8)
    with pytest.raises(AssertionError, match=r"sample 33(.|\n)*lost at:   fault: Tensor.roll"):
        assert_invariant(Net(C4, FAULTS["roll"].make()), x, C4)


def test_the_tolerance() -> None:
    """Relative to the largest output, 32 eps for each module with parameters, if float64 has no such error."""
    for dtype, depth in ((torch.float32, 1), (torch.float64, 3)):
        layers = [nn.Conv2d(1, 1, 1, dtype=dtype) for _ in range(depth)]
        for layer in layers:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        limit = 32 * torch.finfo(dtype).eps * depth
        for error, passes in ((0.9, True), (1.2, False)):
            bump = torch.ones(4, 4, dtype=torch.float64)
            bump[0, 1] += error * limit

            def rounds(y: Tensor, bump: Tensor = bump, dtype: torch.dtype = dtype) -> Tensor:
                return (y.double() * bump).to(dtype) if y.dtype == dtype else y

            model = nn.Sequential(*layers, Does(rounds))
            x = torch.ones(1, 1, 4, 4)
            x[0, 0, 1, 2] = -1.0  # so that the group moves it
            if passes:
                assert_equivariant(model, x, C4)
            else:
                with pytest.raises(AssertionError, match="not equivariant"):
                    assert_equivariant(model, x, C4)
            if dtype == torch.float32:
                always = nn.Sequential(*layers, Does(lambda y, bump=bump: y * bump.to(y.dtype)))
                with pytest.raises(AssertionError, match="not equivariant"):
                    assert_equivariant(always, x, C4)
            with pytest.raises(AssertionError, match="not equivariant"):
                assert_equivariant(model, x, C4, bitwise=True)


def test_results_of_other_kinds() -> None:
    net, faulty, x = Net(C4), Net(C4, FAULTS["roll"].make()), image()
    for good, bad in (
        (lambda t: Output(net(t)), lambda t: Output(faulty(t))),
        (net.forward, faulty.forward),
        (lambda t: (1000 * net(t)).int(), lambda t: (1000 * faulty(t)).int()),
        (lambda t: net(t) > net(x)[:1], lambda t: t[:, 0, 0] > 0),
    ):
        assert_invariant(good, x, C4, bitwise=True)
        with pytest.raises(AssertionError, match="is not invariant"):
            assert_invariant(bad, x, C4)
        assert invariance_error(good, x, C4) == 0
        assert invariance_error(bad, x, C4) > 0


def test_outputs_that_are_not_finite() -> None:
    """Equal infinities are equal, and do not excuse other errors; what is not a number is no equality."""
    masked = nn.Sequential(Net(C4), Does(lambda y: torch.cat([y, torch.full_like(y[:, :1], -math.inf)], 1)))
    assert_invariant(masked, image(), C4, bitwise=True)
    masked[0].fault = FAULTS["roll"].make()
    with pytest.raises(AssertionError, match=r"lost at:   0.fault: Tensor.roll"):
        assert_invariant(masked, image(), C4)
    with pytest.raises(AssertionError, match=r"diagnosis: structural(.|\n)*lost at:   fault: torch.log"):
        assert_invariant(Net(C4, FAULTS["not a number"].make()), image(), C4)


def test_inputs_are_brought_to_the_model() -> None:
    seen = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(C4).double()

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return self.net(x)

    model = Looks()
    for dtype in (torch.float16, torch.float32, torch.float64):
        for check in CHECKS.values():
            if check is not assert_equivariant:
                check(model, image().to(dtype), C4)
    assert set(seen) == {torch.float64}
    half = Net(C4).bfloat16()
    assert_invariant(half, image(), C4, bitwise=True)
    assert_invariant(lambda t: t.mean((1, 2, 3)), image().double(), C4)


class Meddles(nn.Module):
    """Notes how it is run; changes its buffers, its input and its modes; raises in a given call."""

    def __init__(self, group: Group, raising: int = -1) -> None:
        super().__init__()
        self.net, self.drop = Net(group), nn.Dropout(0.9)
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("odd", torch.tensor([math.nan]))
        self.raising, self.seen = raising, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, self.drop.training, torch.is_grad_enabled(), precision()))
        self.count = self.count + 1
        self.norm.train()(x)
        if self.count == self.raising:
            raise OSError("enough")
        y = self.drop(self.net(x))
        x.zero_()
        return y


def precision() -> list[Any]:
    """Every flag that says in what float32 is computed."""
    parts = [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]
    parts.append(torch.get_float32_matmul_precision())
    if hasattr(torch.backends.cudnn, "conv"):
        for backend in (torch.backends.cudnn, torch.backends.mkldnn):
            parts += [backend.conv.fp32_precision, backend.rnn.fp32_precision]
        parts += [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
    return parts


@pytest.fixture(params=["highest", "high", "medium"])
def float32(request: pytest.FixtureRequest) -> Iterator[str]:
    """How float32 products may be shortened."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {k: (id(v), v.clone()) for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "gradients": torch.is_grad_enabled(),
        "precision": precision(),
    }


def assert_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    tensors = zip(now.pop("tensors").values(), before.pop("tensors").values(), strict=True)
    assert all(i == j and torch.equal(s.nan_to_num(), t.nan_to_num()) for (i, s), (j, t) in tensors)
    assert now == before


@each_check
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_a_model_is_put_back(caller: str, grad: bool, float32: str) -> None:
    model, x = Meddles(C4), image()
    model.train()
    model.net.eval()
    model.net.pool.train()
    before, given = state(model), x.clone()
    with torch.set_grad_enabled(grad):
        before["gradients"] = grad
        try:
            CHECKS[caller](model, x, C4, **({"output": lambda g, y: y} if caller == "assert_equivariant" else {}))
        finally:
            assert_same(state(model), before)
    assert torch.equal(x, given)
    for training, dropping, gradients, how in model.seen:
        assert (training, dropping, gradients) == (False, False, False)
        assert not {True, "tf32", "bf16", "high", "medium"} & set(how)


@each_check
def test_a_model_that_raises_is_put_back(caller: str) -> None:
    for raising in (1, 2, 3):
        model = Meddles(C4, raising)
        before = state(model)
        with pytest.raises(RuntimeError, match="enough") as caught:
            CHECKS[caller](model, image(), C4)
        assert isinstance(caught.value.__cause__ or caught.value, OSError)
        assert_same(state(model), before)


def test_a_failing_check_puts_back_as_well() -> None:
    model = Meddles(C4)
    model.net.fault = FAULTS["roll"].make()
    before = state(model.train())
    with pytest.raises(AssertionError, match=r"lost at:   net.fault"):
        assert_invariant(model, image(), C4)
    assert_same(state(model), before)
    assert len(model.seen) == 6 + 2  # the orbit, noise, a mixed batch, twice the same; the rest is a copy in float64


def test_flags_that_contradict_each_other_are_left_alone() -> None:
    """Torch refuses to read its flags of old once newer ones say otherwise."""
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("torch before 2.9 has one set of flags")
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        with full_precision():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before
    torch.get_float32_matmul_precision()


@each_check
def test_refusals(caller: str) -> None:
    check, net, x = getattr(equilayers.testing, caller), Net(C4), image()
    assert_refused(
        lambda: check(net, x.int(), C4), TypeError, caller, "x to be floating-point", "torch.int32", "x.float()"
    )
    assert_refused(lambda: check(net, [1.0], C4), TypeError, caller, "x to be a torch.Tensor", "got list")
    assert_refused(lambda: check(net, x, 4), TypeError, caller, "group to be a group", "got 4.", "CyclicRotation(4)")
    assert_refused(lambda: check(net, x, "R4"), ValueError, caller, "a name such as", "'R4'", "The paper's R4 is 'C4'")
    assert_refused(
        lambda: check(net, C4, x), TypeError, caller, "(model, x, group) in this order", "Pass the group last"
    )
    trivial = CyclicRotation(1)
    assert_refused(lambda: check(Net(trivial), x, trivial), ValueError, caller, "more than one element", repr(trivial))
    assert_refused(lambda: check(net, x, T3), ValueError, caller, "3")


@pytest.mark.parametrize("caller", ["assert_invariant", "assert_equivariant", "invariance_error"])
def test_refused_results(caller: str) -> None:
    check, x = CHECKS[caller], image()
    for out, got in ((None, "NoneType"), ((), "tuple"), ({"out": "x"}, "dict")):
        words = ("model to return a tensor", f"got {got}", "lambda x: model(x)[0]")
        assert_refused(lambda out=out: check(lambda _: out, x, C4), TypeError, caller, *words)
    growing = iter(range(1, 99))
    grows = lambda t: t[:, :, : next(growing)].sum((1, 3))  # noqa: E731
    wanted = "outputs of one shape"
    if caller != "assert_equivariant":
        assert_refused(
            lambda: check(grows, x, C4), ValueError, caller, wanted, "(3, 2) for g = 1 in the place of (3, 1)"
        )


def test_refused_outputs() -> None:
    net, x, caller = Net(C4), image(), "assert_equivariant"
    for output in ("invariant", "", None, 3):
        words = ("'auto', 'image', 'regular'", f"got {output!r}")
        assert_refused(lambda o=output: assert_equivariant(net, x, C4, output=o), ValueError, caller, *words)
    shapes = ("outputs of one shape", "(3, 3) for g = 1 in the place of (3,)", "Say how the output moves")
    assert_refused(lambda: assert_equivariant(net, x, C4, output=lambda g, y: y[:, 0]), ValueError, caller, *shapes)
    words = ("x of one sample or more", "got (0, 1, 8, 8)")
    assert_refused(lambda: assert_invariant(net, x[:0], C4), ValueError, "assert_invariant", *words)
    words, both = ("bitwise=True without a tolerance", "got 0.5."), {"bitwise": True, "tolerance": 0.5}
    assert_refused(lambda: assert_invariant(net, x, C4, **both), ValueError, "assert_invariant", *words)


def test_copies_and_compiled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled model is looked into as it was written; one that cannot be copied is not run in float64."""
    torch.compiler.reset()
    net = Net(C4, FAULTS["roll"].make())
    compiled = torch.compile(net, backend="eager")
    assert located(compiled, image()) == ("_orig_mod.fault", "Tensor.roll", "structural")
    torch.compiler.reset()

    def fail(*_: object) -> None:
        raise RuntimeError("not to be copied")

    monkeypatch.setattr(Net, "__deepcopy__", fail, raising=False)
    with pytest.raises(RuntimeError, match="not to be copied"):
        copy.deepcopy(net)
    with pytest.raises(AssertionError, match=r"structural or numerical: it cannot be copied(.|\n)*fault: Tensor.roll"):
        assert_invariant(net, image(), C4)
