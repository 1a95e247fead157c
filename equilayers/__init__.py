r"""Equivariant layers for PyTorch: exact, fast, and honest about any model."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from equilayers import functional, groups, losses, metrics, nn

try:
    __version__ = version("equilayers")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

LATER = ("convert", "interop", "profiling", "testing")  # imported when they are first asked for

__all__ = ["__version__", "functional", "groups", "losses", "metrics", "nn"]


def __getattr__(name: str) -> ModuleType:
    if name in LATER:
        return importlib.import_module(f"equilayers.{name}")
    raise AttributeError(f"module 'equilayers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
