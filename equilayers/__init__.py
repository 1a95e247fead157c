r"""Equivariant layers for PyTorch: exact, fast, and honest about any model."""

from importlib.metadata import PackageNotFoundError, version

from equilayers import functional, groups, losses, metrics, nn

try:
    __version__ = version("equilayers")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "functional", "groups", "losses", "metrics", "nn"]
