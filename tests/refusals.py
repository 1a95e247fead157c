"""Refusals: the form `<caller>: expected ..., got .... <What to do.>` that every error of the library has."""

import re
from collections.abc import Callable

import pytest

FORM = re.compile(r"(?P<caller>[^ ].*?): expected (?P<wanted>.+), got (?P<got>.+?)\. (?P<hint>[A-Z].*\.)", re.DOTALL)


def assert_refused(call: Callable[[], object], error: type[Exception], caller: str, *words: str) -> str:
    """The call raises this error, in the form of the house, in the name of `caller`, with these words; the message."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert type(caught.value) is error, repr(caught.value)
    message = str(caught.value)
    match = FORM.fullmatch(message)
    assert match, f"not of the form: {message}"
    assert match["caller"] == caller, message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    return message
