r"""Reports name the places where the symmetry is lost first: what follows from them is no reason of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from equilayers.convert._report import Cause, Entry, Refused

Names = Mapping[Tensor, str]


def traced(
    entries: Sequence[Entry], refused: Mapping[str, Refused], names: Names, more: Sequence[Cause] = ()
) -> list[Entry]:
    r"""The entries, with those refused where the symmetry was lost, and left as they are where that is why.

    refused: by path, those that follow from a cause, or may. names: of the parameters of the model. more: causes of
    what the model puts out.
    """
    paths = {each.path for each in entries}
    sure = [each.cause for each in refused.values() if each.cause is not None and not each.doubtful]
    first: dict[str, Cause] = {}
    for cause in sorted([*sure, *more], key=lambda cause: cause.number):
        if cause.where in paths:
            first.setdefault(cause.where, cause)
    found = []
    for entry in entries:
        mine = refused.get(entry.path)
        behind = None if mine is None else mine.cause
        if entry.path in first and (behind is not None or entry.done != "refused"):
            found.append(Entry(entry.path, entry.before, "refused", reason=_reason(first[entry.path], names)))
        elif behind is not None and behind.where in first:
            where = behind.where or "the model itself"
            reason = f"left as it is: it follows from what is refused in {where}"
            found.append(dataclasses.replace(entry, done="kept", after="", reason=reason))
        else:
            found.append(entry)
    return found


def _reason(cause: Cause, names: Names) -> str:
    r"""The reason, with the names of the parameters in it."""
    inside = f"{cause.where}." if cause.where else ""
    met = [names[parameter].removeprefix(inside) for parameter in cause.parameters]
    return f"{', '.join(met)}: {cause.reason}" if met else cause.reason
