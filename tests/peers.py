"""Packages that some tests need and that do not come with the others."""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def required(load: Callable[[], T], what: str, target: str) -> T:
    """What `load` imports; where it cannot, the test is skipped, or fails where EQUILAYERS_REQUIRE_<TARGET>=1."""
    variable = f"EQUILAYERS_REQUIRE_{target.upper()}"
    try:
        return load()
    except ImportError as error:
        reason = f"{what} cannot be imported ({error}). Run `make env`."
        if os.environ.get(variable) == "1":
            pytest.fail(f"{variable}=1, but {reason}")
        pytest.skip(reason)
