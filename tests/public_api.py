"""The public names of equilayers and their signatures, one a line; `python tests/public_api.py` writes the snapshot."""

import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import nn

ROOT = Path(__file__).parent.parent
SNAPSHOT = ROOT / "tests" / "golden" / "public_api.txt"
MODULES = [
    *("groups", "functional", "functional.cost", "functional.choices", "functional.vectors", "nn", "metrics", "losses"),
    *("testing", "testing.strategies", "convert", "profiling", "interop", "interop.escnn"),
]


def snapshot() -> str:
    """What is public: `module.name(signature)`, then the methods and properties that our classes add to it."""
    return "".join(f"{line}\n" for name in MODULES for line in _module(f"equilayers.{name}"))


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    own = [key for key, thing in vars(module).items() if getattr(thing, "__module__", "") == name and key[0] != "_"]
    public = sorted(getattr(module, "__all__", own))
    for key in public:
        thing = getattr(module, key)
        yield f"{name}.{key}{_signature(thing)}"
        if inspect.isclass(thing):
            yield from sorted(
                filter(None, (_member(f"{name}.{key}", *member) for member in _members(thing, public).items()))
            )


def _members(kind: type, public: list[str]) -> dict[str, object]:
    """What the class and those of our bases that are not public define. Of a torchmetrics class, two."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("equilayers.")]
    bases = [base for base in ours if base is kind or base.__name__ not in public]
    members = {key: thing for base in reversed(bases) for key, thing in vars(base).items()}
    return {key: members[key] for key in ("compute", "update")} if hasattr(kind, "update") else members


def _member(owner: str, name: str, thing: object) -> str:
    if name.startswith("_"):
        return ""
    if isinstance(thing, property | functools.cached_property):
        return f"{owner}.{name}"
    function = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
    bound = not isinstance(thing, staticmethod)
    return f"{owner}.{name}{_signature(function, bound)}" if inspect.isfunction(function) else ""


def _signature(thing: object, bound: bool = False) -> str:
    """Names and defaults, without that of a bound first argument: what a call spells. Types are mypy's business."""
    if not callable(thing):
        return ""
    if inspect.isclass(thing) and thing.__init__ is nn.Module.__init__:
        return "()"
    bare = [
        parameter.replace(annotation=parameter.empty, default=_Shown.of(parameter.default))
        for parameter in list(inspect.signature(thing).parameters.values())[bound:]
    ]
    return str(inspect.Signature(bare))


class _Shown(str):
    """A default as it is written."""

    __slots__ = ()

    @classmethod
    def of(cls, value: object) -> object:
        if value is inspect.Parameter.empty:
            return value
        return cls(getattr(value, "__qualname__", None) or repr(value))

    def __repr__(self) -> str:
        return str(self)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
