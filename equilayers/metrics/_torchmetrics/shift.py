r"""The measures of shift and deformation as torchmetrics classes, which accumulate over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from equilayers._checks import check_choice
from equilayers.groups import Group
from equilayers.metrics._deformation import DeformationCurve, Deformations, check_magnitudes, deformations
from equilayers.metrics._equivariance import Action, check_actions, element_errors
from equilayers.metrics._orbit import Model, compared_elements
from equilayers.metrics._shift import REDUCTIONS, consistency_total, wobbles
from equilayers.metrics._shift_sampling import ShiftPlan


class _Named(Metric):
    r"""A metric whose states are named after the measure and its settings.

    A MetricCollection takes metrics whose states agree, as those of an exact model do, for one and the same.
    """

    full_state_update = False

    def name_states(self, *settings: object) -> None:
        r"""Fix the names: once, since the words for a setting may differ in another process."""
        self._prefix = f"{type(self).__name__}({', '.join(map(_word, settings))})".replace(".", "_")

    def add(self, name: str, initial: Tensor | list[Any], reduce: str) -> None:
        r"""Declare a state."""
        self.add_state(f"{self._prefix}_{name}", initial, dist_reduce_fx=reduce)

    def see(self, name: str) -> Any:
        r"""The value of a state."""
        return getattr(self, f"{self._prefix}_{name}")

    def note(self, name: str, value: Any) -> None:
        r"""Set a state."""
        setattr(self, f"{self._prefix}_{name}", value)


def _word(setting: object) -> str:
    return str(getattr(setting, "__qualname__", repr(setting)))


class _Reduced(_Named):
    r"""A mean or maximum over samples: a float64 total and a count."""

    def begin(self, reduction: str, size: tuple[int, ...] = ()) -> None:
        r"""Declare the states, the total of this shape."""
        self.reduction = check_choice(type(self).__name__, "reduction", reduction, REDUCTIONS)
        self.add("total", torch.zeros(size, dtype=torch.float64), "sum" if reduction == "mean" else "max")
        self.add("count", torch.zeros((), dtype=torch.int64), "sum")

    def take(self, total: Tensor, count: int) -> None:
        r"""Join a total over `count` values; nothing at all where there is none."""
        if count:
            seen = self.see("total")
            self.note("total", seen + total if self.reduction == "mean" else torch.maximum(seen, total))
            self.note("count", self.see("count") + count)

    def take_values(self, values: Tensor) -> None:
        r"""Join values (..., B)."""
        if values.shape[-1]:
            self.take(values.sum(-1) if self.reduction == "mean" else values.amax(-1), values.shape[-1])

    def compute(self) -> Tensor:
        r"""The mean or maximum over all that was seen, of the default dtype; NaN where nothing was."""
        total, count = self.see("total"), self.see("count")
        value = total / count if self.reduction == "mean" else torch.where(count > 0, total, torch.nan)
        return value.to(torch.get_default_dtype())


class _OverShifts(_Reduced):
    r"""Over shifts of the image; the shifts go on from where the last batch stopped."""

    _before = 0  # samples that the states do not tell of: in a step, torchmetrics sets these to nothing first

    def follow(self, plan: ShiftPlan, reduction: str = "mean") -> None:
        r"""Declare the states for this plan."""
        self._plan = plan
        self.name_states(reduction, plan.max_shift, plan.crop_size, plan.count, plan.exhaustive, plan.seed)
        self.begin(reduction)
        self.add("seen", torch.zeros((), dtype=torch.int64), "sum")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        r"""Add a batch and return the value for it alone, under the shifts that it adds."""
        self._before = int(self.see("seen"))
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._before = 0

    def first_of(self, x: Tensor) -> int:
        r"""The number of the first sample of x, which are noted as seen."""
        first = self._before + int(self.see("seen"))
        self.note("seen", self.see("seen") + len(x))
        return first


class ShiftConsistency(_OverShifts):
    r"""`equilayers.metrics.shift_consistency` accumulated over `update(model, x)`.

    Sample i of all that was seen gets the shifts of sample i, however it was cut into batches. Each process counts
    its own samples.
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        max_shift: int | None = None,
        crop_size: int | tuple[int, int] | None = None,
        pairs: int = 1,
        exhaustive: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.follow(ShiftPlan("ShiftConsistency", max_shift, crop_size, "pairs", pairs, exhaustive, seed, batch_size))

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ..., H, W) as seen by the model."""
        total = consistency_total(self._plan, model, x, self.first_of(x))
        self.take(total.sum, total.count)


class ShiftWobble(_OverShifts):
    r"""`equilayers.metrics.shift_wobble` accumulated over `update(model, x)`, with shifts as in `ShiftConsistency`."""

    higher_is_better = False

    def __init__(
        self,
        *,
        max_shift: int | None = None,
        crop_size: int | tuple[int, int] | None = None,
        shifts: int = 16,
        exhaustive: bool = False,
        reduction: str = "mean",
        seed: int = 0,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        plan = ShiftPlan("ShiftWobble", max_shift, crop_size, "shifts", shifts, exhaustive, seed, batch_size)
        self.follow(plan, reduction)

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ..., H, W) as seen by the model."""
        self.take_values(wobbles(self._plan, model, x, self.first_of(x))[0])


class EquivarianceError(_Reduced):
    r"""`equilayers.metrics.equivariance_error` accumulated over `update(model, x)`: one value per element.

    Of a single element torchmetrics makes a scalar.
    """

    higher_is_better = False

    def __init__(
        self,
        group: Group | str,
        *,
        action_in: Action | None = None,
        action_out: Action | None = None,
        relative: bool = True,
        reduction: str = "mean",
        batch_size: int | None = None,
        include_identity: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        group, elements = compared_elements("EquivarianceError", group, include_identity)
        check_actions("EquivarianceError", action_in, action_out)
        self._settings = (group, action_in, action_out, relative, batch_size, include_identity)
        self.name_states(group, action_in, action_out, relative, include_identity, reduction)
        self.begin(reduction, (len(elements),))

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ...) as seen by the model."""
        self.take_values(element_errors("EquivarianceError", model, x, *self._settings)[0])


class DeformationStability(_Named):
    r"""`equilayers.metrics.deformation_stability` accumulated over `update(model, x)`.

    The quartiles need every distance, so all are kept: 16 bytes per sample, magnitude and field.
    """

    higher_is_better = False
    ROWS = ("distances", "floors", "sizes")

    def __init__(
        self,
        *,
        magnitudes: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
        cutoff: int = 3,
        fields: int = 8,
        seed: int = 0,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        magnitudes = check_magnitudes("DeformationStability", magnitudes)
        self._settings = (magnitudes, cutoff, fields, seed, batch_size)
        self.name_states(magnitudes, cutoff, fields, seed)
        for name in self.ROWS:
            self.add(name, [], "cat")

    def update(self, model: Model, x: Tensor) -> None:
        r"""Add the samples x (B, ..., H, W) as seen by the model."""
        found = deformations("DeformationStability", model, x, *self._settings)
        for name in self.ROWS:
            self.see(name).append(getattr(found, name))

    def compute(self) -> DeformationCurve:
        r"""The curve over all samples seen, of the default dtype; NaN where none was."""
        tables = {}
        for name in self.ROWS:
            m, fields = len(self._settings[0]), self._settings[2]
            empty = torch.zeros(0, m, 2 if name == "sizes" else fields, dtype=torch.float64, device=self.device)
            seen = self.see(name)
            tables[name] = dim_zero_cat(seen) if len(seen) else empty
        return Deformations(**tables, dtype=torch.get_default_dtype()).curve()
