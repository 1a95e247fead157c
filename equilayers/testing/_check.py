r"""What a comparison over an orbit found."""

from __future__ import annotations

from dataclasses import dataclass

from equilayers.groups import Group, as_group
from equilayers.testing._diagnosis.locate import Break
from equilayers.testing._execution import Model
from equilayers.testing._outputs import name_of

MENTIONED = 12  # places in a message, besides the first


@dataclass(frozen=True)
class Check:
    r"""What comparing `f(gx)` with `act(g, f(x))` over all g found.

    passed: the law holds, and that was shown. error: largest absolute difference, measured by what is allowed there.
    scale: size of the outputs there. tolerance: largest error allowed there. element, sample, index: where the error is
    largest; expected, found: the two numbers there. output: which of several outputs, by name. nothing_shown: why the
    check could not have failed, empty where it could. dtype: what the model was judged in. diagnosis: why a failed
    check failed. locations: all places where the symmetry is lost.
    """

    passed: bool
    error: float
    scale: float
    tolerance: float
    element: int
    sample: int
    index: tuple[int, ...]
    expected: float
    found: float
    output: str = ""
    nothing_shown: str = ""
    dtype: str = ""
    diagnosis: str = ""
    locations: tuple[Break, ...] = ()

    @property
    def location(self) -> Break | None:
        r"""The first place where the symmetry is lost."""
        return self.locations[0] if self.locations else None

    @property
    def relative_error(self) -> float:
        r"""The error by the size of the outputs."""
        return self.error / self.scale if self.scale else self.error

    def __str__(self) -> str:
        output = f"output {self.output} {self.index}" if self.output else f"output {self.index}"
        where = f"g = {self.element}, sample {self.sample}, {output}"
        lines = [
            f"worst:     {where}: {self.found:.6g} in the place of {self.expected:.6g}",
            f"error:     {self.error:.3g}, {self.relative_error:.2g} of the size of the outputs there, "
            f"{self.scale:.3g}; tolerance {self.tolerance:.3g}{', in float64' if self.dtype == 'float64' else ''}",
        ]
        if self.diagnosis:
            lines.append(f"diagnosis: {self.diagnosis}")
        if self.location is not None:
            lines.append(f"lost at:   {self.location}")
        lines += [f"also at:   {line}" for line in self.others(MENTIONED)]
        return "\n".join(lines)

    def others(self, most: int) -> list[str]:
        r"""A line for each of the other places where the symmetry is lost, up to so many."""
        others = self.locations[1:]
        lines = [f"{found.path or 'the model itself'}: {found.name}: {found.why}" for found in others[:most]]
        return [*lines, *([f"{len(others) - most} more: locate_breaks has all"] if len(others) > most else [])]


def require(check: Check, caller: str, model: Model, group: Group | str) -> None:
    r"""Raise AssertionError, in the name of `caller`, unless the check passed."""
    __tracebackhide__ = True
    if not check.passed:
        group, what = as_group(caller, group), caller.removeprefix("assert_")
        if check.nothing_shown:
            raise AssertionError(
                f"{caller}: nothing was shown of {name_of(model)} and {group!r}: {check.nothing_shown}"
            )
        raise AssertionError(f"{caller}: {name_of(model)} is not {what} under {group!r}\n{check}")
