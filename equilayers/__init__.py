r"""Equivariant layers for PyTorch: exact, fast, and honest about any model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equilayers import convert, functional, groups, interop, losses, metrics, nn, profiling, testing

    __version__: str

# Imported when they are first asked for.
__all__ = [
    "__version__",
    "convert",
    "functional",
    "groups",
    "interop",
    "losses",
    "metrics",
    "nn",
    "profiling",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in __all__:
        return importlib.import_module(f"equilayers.{name}")
    raise AttributeError(f"module 'equilayers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    metadata = importlib.import_module("importlib.metadata")
    try:
        return str(metadata.version("equilayers"))
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
