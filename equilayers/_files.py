r"""Files that are whole or not there, and numbers as JSON has them."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    r"""Write a file beside its place and rename it: whole, or the old one stays."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def strict(number: float) -> float | str:
    r"""A number that JSON has; others in words."""
    return number if math.isfinite(number) else str(number)
