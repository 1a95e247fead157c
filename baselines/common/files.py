r"""Files that are whole or not there: results are written beside their place and renamed into it."""

import errno
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, save: Callable[[Path], object]) -> None:
    r"""Call `save` with a temporary file in the folder of `path`, then rename it to `path`.

    Links are followed, and what is no regular file, such as a pipe, is written to and stays.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        save(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            hint = "Make room, or name another folder; --resume goes on with what is finished."
            message = f"write: expected room for {path}, got {(error.strerror or str(error)).lower()}. {hint}"
            raise OSError(message) from error
        raise


def write_tensors(path: Path, value: Any) -> None:
    r"""Write with `torch.save`, the file whole: to memory first, since it calls a full disk a RuntimeError."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def write_text(path: Path, text: str) -> None:
    r"""Write a text file whole."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    r"""Write a JSON file whole, keys in the order given."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    r"""The value of a JSON file; the ValueError for a file that is none has its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"read_json: expected {path} to be JSON, got {error}. Delete the file.") from error


def writable_folder(path: Path, caller: str = "study", option: str = "--out") -> Path:
    r"""Make the folder and prove that it can be written to, else OSError, before hours are spent on its contents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        got = f"{path} ({error.strerror or error})"
        raise OSError(f"{caller}: expected {option} to be a writable folder, got {got}. Name another.") from error
    return path
