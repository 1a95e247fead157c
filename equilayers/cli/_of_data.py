r"""Under which groups the data are symmetric, whole and class by class, and what to tie."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from equilayers.cli._arguments import DataSettings
from equilayers.cli._image_files import LEAST, read_images
from equilayers.cli._measure import INVARIANT, NOT_INVARIANT
from equilayers.cli._words import bad, clean
from equilayers.groups import group_from_name
from equilayers.testing import DataSymmetry, data_symmetry

PLANE = ("C2", "C4", "D1", "D2", "D4")
STEPS = 8  # shifts along an axis, at most: the more, the longer it takes


@dataclass(frozen=True)
class DataReport:
    r"""What was found. classes: of each class that has enough images, None where they were not asked for.

    left_out: groups that do not act on these images, and why.
    """

    settings: DataSettings
    shape: tuple[int, ...]
    whole: DataSymmetry
    classes: dict[str, DataSymmetry] | None
    small: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def symmetric(self) -> tuple[str, ...]:
        r"""The groups that nothing was found against, in no class either."""
        each = (self.whole, *(self.classes or {}).values())
        return tuple(name for name in self.whole.symmetric if all(name in found.symmetric for found in each))

    @property
    def code(self) -> int:
        r"""The exit code."""
        return INVARIANT if self.symmetric else NOT_INVARIANT

    @property
    def advice(self) -> str:
        r"""What to tie; what holds of the whole and not of a class moves images from one class to another."""
        tests = tuple(replace(test, symmetric=test.group in self.symmetric) for test in self.whole.tests)
        words = replace(self.whole, tests=tests).advice
        mixed = [name for name in self.whole.symmetric if name not in self.symmetric]
        if mixed:
            words += f" {', '.join(mixed)}: of all images, but not of each class: its labels may not be invariant."
        return words

    def __str__(self) -> str:
        count, size = sum(self.shape[:1]), "×".join(map(str, self.shape[1:]))
        lines = [f"{clean(self.settings.data)}: {count} images of {size}", *str(self.whole).splitlines()[:-1]]
        lines += [f"  {line}" for line in self.left_out]
        if self.classes is not None:
            lines.append("class by class, nothing against:")
            width = max(map(len, self.classes), default=0)
            for name, found in self.classes.items():
                images = 2 * found.tests[0].images
                lines.append(f"  {clean(name):{width}}  {' '.join(found.symmetric) or 'none'} (about {images} images)")
            lines += [f"  {clean(name)}: fewer than {LEAST} images" for name in self.small]
        return "\n".join([*lines, self.advice])

    def json(self) -> str:
        r"""All of it as JSON."""
        found = {
            "data": str(self.settings.data),
            "shape": list(self.shape),
            "exit_code": self.code,
            "symmetric": list(self.symmetric),
            "advice": self.advice,
            **_known(self.whole),
            "left_out": list(self.left_out),
            "classes": None if self.classes is None else {name: _known(each) for name, each in self.classes.items()},
            "classes_too_small": list(self.small),
        }
        return json.dumps(found, indent=2) + "\n"


def _known(found: DataSymmetry) -> dict[str, Any]:
    return {"level": found.level, "classifier": found.classifier, "groups": [asdict(test) for test in found.tests]}


def check_data(settings: DataSettings) -> DataReport:
    r"""Read the images and test them.

    Raises:
        BadInputError: they cannot be read, or a group that was asked for does not act on them.
    """
    x, labels = read_images(settings)
    if settings.by_class and labels is None:
        bad("labels, with --by-class", f"none for {settings.data}", "Pass --labels, or a folder for each class.")
    groups, left_out = _groups(settings, tuple(x.shape[-2:]))
    whole = _tested(x, groups, settings, settings.level)
    classes, small = None, []
    if settings.by_class and labels is not None:
        classes, names = {}, sorted(set(labels))
        for name in names:
            own = x[[i for i, label in enumerate(labels) if label == name]]
            if len(own) < LEAST:
                small.append(name)
            else:
                classes[name] = _tested(own, groups, settings, settings.level / len(names))
    return DataReport(settings, tuple(x.shape), whole, classes, tuple(small), left_out)


def _tested(x: Tensor, groups: tuple[str, ...], settings: DataSettings, level: float) -> DataSymmetry:
    return data_symmetry(x, groups, classifier=settings.classifier, level=level, seed=settings.seed)


def _groups(settings: DataSettings, size: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    r"""Those that were asked for, or all that act on images of this size; and why others do not."""
    if settings.groups is not None:
        for name in settings.groups:
            try:
                group = group_from_name(name)
                group.check_stackable(size[-group.space_ndim :], "check")
            except ValueError as error:
                bad(f"--group that acts on images of {size[0]} x {size[1]}", f"{name} ({error})", "Leave it out.")
        return settings.groups, ()
    square = size[0] == size[1]
    found = [name for name in PLANE if square or name not in ("C4", "D4")]
    left_out = [] if square else ["C4, D4: not tested, the images are not square"]
    for axis, name, length in ((-1, "T{}", size[1]), (-2, "T{}:-2", size[0])):
        steps = max((n for n in range(2, STEPS + 1) if length % n == 0), default=0)
        if steps:
            found.append(name.format(steps))
        else:
            left_out.append(f"shifts of axis {axis}: not tested, {length} pixels have no divisor up to {STEPS}")
    return tuple(found), tuple(left_out)
