r"""Trained models of other libraries as modules on plain tensors; a library is imported when it is asked for."""

from equilayers.interop import escnn

__all__ = ["escnn"]
