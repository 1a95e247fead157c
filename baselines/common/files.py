r"""Files that are whole or not there: results are written beside their place and renamed into it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, save: Callable[[Path], object]) -> None:
    r"""Call `save` with a temporary file in the folder of `path`, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save(Path(name))
        Path(name).chmod(0o666 & ~_umask())  # mkstemp keeps others out, results are to be read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    r"""Write a text file whole."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    r"""Write a JSON file whole, keys in the order given."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    r"""The value of a JSON file.

    Raises:
        ValueError: the file is no JSON, with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"read_json: expected {path} to be JSON, got {error}. Delete the file.") from error


def writable_folder(path: Path, caller: str = "study", option: str = "--out") -> Path:
    r"""Make the folder and prove that it can be written to, before hours are spent on what should go there.

    Raises:
        OSError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        why = error.strerror or error
        raise OSError(
            f"{caller}: expected {option} to be a writable folder, got {path} ({why}). Name another."
        ) from error
    return path
