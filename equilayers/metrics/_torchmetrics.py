r"""The measures as torchmetrics classes, which accumulate over batches and processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from equilayers._checks import check_choice
from equilayers._modules import Model
from equilayers.metrics._deformation import (
    DeformationCurve,
    Deformations,
    check_magnitudes,
    deformation_stability,
    deformations,
)
from equilayers.metrics._equivariance import check_actions, equivariance_error, equivariance_total
from equilayers.metrics._invariance import (
    agreement,
    distribution_gap,
    distribution_invariance_error,
    logit_invariance_error,
    logit_total,
    prediction_consistency,
)
from equilayers.metrics._jacobian import jacobian_spectral_norm
from equilayers.metrics._orbit import REDUCTIONS, Total, compared_elements, orbit_total
from equilayers.metrics._saliency import saliency_invariance_similarity, saliency_total
from equilayers.metrics._shift import consistency_total, shift_consistency, shift_wobble, wobble_total
from equilayers.metrics._shift_sampling import ShiftPlan


class _Accumulated(Metric):
    r"""A measure over all the samples of `update(model, x)`: a float64 sum or maximum, and a count.

    The arguments of the class are those of its `function` but for the model and the samples; what else there is goes to
    `torchmetrics.Metric`. The states are named after the measure and its settings: a MetricCollection takes metrics
    whose states agree, as those of an exact model do, for one and the same.
    """

    full_state_update = False
    function: ClassVar[Callable[..., Any]]
    core: ClassVar[Callable[..., Total]]  # the same with its caller, not yet divided by the count

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "function" in cls.__dict__:
            given = inspect.signature(cls.function).parameters.values()
            own = [p for p in given if p.name not in ("model", "x", "target")]
            own = [p if p.name == "group" else p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
            more = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD, annotation=Any)
            cls.__signature__ = inspect.Signature([*own, more])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(type(self)).bind(*args, **kwargs)
        given.apply_defaults()
        super().__init__(**given.arguments.pop("kwargs"))
        self.settings = dict(given.arguments)
        # Once, since the words for a setting may differ in another process.
        words = (str(getattr(value, "__qualname__", repr(value))) for value in self.settings.values())
        self._prefix = f"{type(self).__name__}({', '.join(words)})".replace(".", "_")
        self.begin()

    def begin(self) -> None:
        r"""Check the settings and declare the states."""
        self.declare_total(())

    def declare_total(self, shape: tuple[int, ...]) -> None:
        r"""Declare a total of this shape and the count."""
        self.reduction = check_choice(
            type(self).__name__, "reduction", self.settings.get("reduction", "mean"), REDUCTIONS
        )
        self.declare("total", torch.zeros(shape, dtype=torch.float64), "sum" if self.reduction == "mean" else "max")
        self.declare("count", torch.zeros((), dtype=torch.int64), "sum")

    def declare(self, name: str, initial: Tensor | list[Any], reduce: str) -> None:
        r"""Declare a state."""
        self.add_state(f"{self._prefix}_{name}", initial, dist_reduce_fx=reduce)

    def state(self, name: str) -> Any:
        r"""The value of a state."""
        return getattr(self, f"{self._prefix}_{name}")

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ...) as seen by the model."""
        self.add(type(self).core(type(self).__name__, model, x, **self.settings))

    def add(self, found: Total) -> None:
        r"""Join a total; nothing at all where it is over no value."""
        if found.count:
            total = self.state("total")
            joined = total + found.total if self.reduction == "mean" else torch.maximum(total, found.total)
            setattr(self, f"{self._prefix}_total", joined)
            setattr(self, f"{self._prefix}_count", self.state("count") + found.count)

    def compute(self) -> Any:
        r"""The mean or maximum over all that was seen, of the default dtype; NaN where nothing was."""
        return Total(self.state("total"), self.state("count"), torch.get_default_dtype(), self.reduction).value()


class LogitInvarianceError(_Accumulated):
    r"""`equilayers.metrics.logit_invariance_error` accumulated over `update(model, x)`."""

    higher_is_better = False
    function, core = staticmethod(logit_invariance_error), staticmethod(logit_total)


class DistributionInvarianceError(_Accumulated):
    r"""`equilayers.metrics.distribution_invariance_error` accumulated over `update(model, x)`."""

    higher_is_better = False
    function, core = (
        staticmethod(distribution_invariance_error),
        staticmethod(partial(orbit_total, compare=distribution_gap)),
    )


class PredictionConsistency(_Accumulated):
    r"""`equilayers.metrics.prediction_consistency` accumulated over `update(model, x)`."""

    higher_is_better = True
    function, core = staticmethod(prediction_consistency), staticmethod(partial(orbit_total, compare=agreement))


class SaliencyInvarianceSimilarity(_Accumulated):
    r"""`equilayers.metrics.saliency_invariance_similarity` accumulated over `update(model, x, target)`."""

    higher_is_better = True
    function = staticmethod(saliency_invariance_similarity)

    def update(self, model: Model, x: Tensor, target: Tensor) -> None:  # type: ignore[override]
        r"""Add the samples x (B, ...) with classes target (B,) as seen by the model."""
        self.add(saliency_total(type(self).__name__, model, x, target, **self.settings))


class JacobianSpectralNorm(_Accumulated):
    r"""The mean of `equilayers.metrics.jacobian_spectral_norm` over the samples of all `update(model, x)`."""

    higher_is_better = None
    function = staticmethod(jacobian_spectral_norm)

    @staticmethod
    def core(caller: str, model: Model, x: Tensor, **settings: Any) -> Total:  # noqa: ARG004
        r"""The sum over the samples."""
        return Total.over(jacobian_spectral_norm(model, x, **settings).double(), x.dtype)


class EquivarianceError(_Accumulated):
    r"""`equilayers.metrics.equivariance_error` accumulated over `update(model, x)`: one value per element.

    Of a single element torchmetrics makes a scalar.
    """

    higher_is_better = False
    function, core = staticmethod(equivariance_error), staticmethod(equivariance_total)

    def begin(self) -> None:
        caller, settings = type(self).__name__, self.settings
        check_actions(caller, settings["action_in"], settings["action_out"])
        self.declare_total((len(compared_elements(caller, settings["group"], settings["include_identity"])[1]),))


class _OverShifts(_Accumulated):
    r"""Over shifts of the image.

    Sample i of all that was seen gets the shifts of sample i, however it was cut into batches. Each process counts
    its own samples.
    """

    counted: ClassVar[str]
    _before = 0  # samples that the states do not tell of: in a step, torchmetrics sets these to nothing first

    def begin(self) -> None:
        self.declare_total(())
        self.declare("seen", torch.zeros((), dtype=torch.int64), "sum")
        own = {name: value for name, value in self.settings.items() if name not in (self.counted, "reduction")}
        count = self.settings[self.counted]
        self.plan = ShiftPlan(caller=type(self).__name__, counted=self.counted, count=count, **own)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        r"""Add a batch and return the value for it alone, under the shifts that it adds."""
        self._before = int(self.state("seen"))
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._before = 0

    def first_of(self, x: Tensor) -> int:
        r"""The number of the first sample of x, which are noted as seen."""
        seen = self.state("seen")
        setattr(self, f"{self._prefix}_seen", seen + len(x))
        return self._before + int(seen)


class ShiftConsistency(_OverShifts):
    r"""`equilayers.metrics.shift_consistency` accumulated over `update(model, x)`."""

    higher_is_better = True
    function, counted = staticmethod(shift_consistency), "pairs"

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ..., H, W) as seen by the model."""
        self.add(consistency_total(self.plan, model, x, self.first_of(x)))


class ShiftWobble(_OverShifts):
    r"""`equilayers.metrics.shift_wobble` accumulated over `update(model, x)`."""

    higher_is_better = False
    function, counted = staticmethod(shift_wobble), "shifts"

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ..., H, W) as seen by the model."""
        self.add(wobble_total(self.plan, model, x, self.reduction, self.first_of(x)))


class DeformationStability(_Accumulated):
    r"""`equilayers.metrics.deformation_stability` accumulated over `update(model, x)`.

    The quartiles need every distance, so all are kept: 16 bytes per sample, magnitude and field.
    """

    higher_is_better = False
    function = staticmethod(deformation_stability)
    ROWS = ("distances", "floors", "sizes")

    def begin(self) -> None:
        self.settings["magnitudes"] = check_magnitudes(type(self).__name__, self.settings["magnitudes"])
        for name in self.ROWS:
            self.declare(name, [], "cat")

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ..., H, W) as seen by the model."""
        found = deformations(type(self).__name__, model, x, **self.settings)
        for name in self.ROWS:
            self.state(name).append(getattr(found, name))

    def compute(self) -> DeformationCurve:
        r"""The curve over all samples seen, of the default dtype; NaN where none was."""
        m, fields = len(self.settings["magnitudes"]), self.settings["fields"]
        tables = {}
        for name in self.ROWS:
            empty = torch.zeros(0, m, 2 if name == "sizes" else fields, dtype=torch.float64, device=self.device)
            seen = self.state(name)
            tables[name] = dim_zero_cat(seen) if len(seen) else empty
        return Deformations(**tables, dtype=torch.get_default_dtype()).curve()
