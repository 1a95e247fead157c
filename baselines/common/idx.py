"""The idx file format of MNIST and its siblings: a magic number, the sizes, then the bytes."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["images", "labels"]

#: The magic number says the element type (0x08: unsigned byte) and the number of axes.
MAGIC: dict[Kind, int] = {"images": 0x00000803, "labels": 0x00000801}
_GZIP_START = b"\x1f\x8b"


def read_idx(path: str | os.PathLike[str], kind: Kind | None = None) -> NDArray[np.uint8]:
    r"""Read an idx file of unsigned bytes, gzipped or plain.

    Args:
        path: the file. A name that ends in ``.gz`` has to be gzipped; any other name may be.
        kind: ``"images"`` (three axes) or ``"labels"`` (one axis). None: the file's name decides
            (``images-idx3`` or ``labels-idx1``); a name that tells nothing lets both pass.

    Returns:
        Writable uint8 array, ``(N, H, W)`` for images and ``(N,)`` for labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a corrupt gzip stream, a wrong magic number, images where labels were expected
            or the reverse, truncated data, or bytes after the data.
    """
    path = Path(path)
    return parse_idx(unpack(path), str(path), kind or kind_of(path.name)).copy()


def kind_of(file_name: str) -> Kind | None:
    """Tell from a file's name what it should hold; None when the name tells nothing."""
    if "images-idx3" in file_name:
        return "images"
    return "labels" if "labels-idx1" in file_name else None


def unpack(path: Path) -> bytes:
    """Read a file and unpack it if it is gzipped; the errors are those of :func:`read_idx`."""
    if not path.is_file():
        raise FileNotFoundError(f"read_idx: expected path to be a file, got {path}. Check the name.")
    raw = path.read_bytes()
    # By content and not by name alone: some browsers unpack on saving, some drop the suffix.
    if raw.startswith(_GZIP_START) or path.suffix == ".gz":
        return unpack_gzip(raw, "read_idx", str(path))
    return raw


def unpack_gzip(raw: bytes, caller: str, source: str) -> bytes:
    """Unpack a gzip stream; ``who`` and ``source`` are named in the ValueError if it is not a whole one."""
    if not raw.startswith(_GZIP_START):
        raise ValueError(
            f"{caller}: expected {source} to be gzipped (to start with 1f 8b), got the first bytes "
            f"'{raw[:4].hex(' ')}'. If it is unpacked already, take '.gz' off its name; otherwise fetch it again."
        )
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{caller}: expected {source} to be a whole gzip stream, got a corrupt one of {len(raw)} bytes ({error}). "
            "Fetch the file again."
        ) from error


def parse_idx(data: bytes, source: str, kind: Kind | None = None) -> NDArray[np.uint8]:
    r"""Parse unpacked idx bytes.

    Args:
        data: the whole file, unpacked.
        source: what to call it in an error.
        kind: what it has to hold; None lets images and labels pass.

    Returns:
        Read-only uint8 view of ``data``, ``(N, H, W)`` or ``(N,)``.

    Raises:
        ValueError: as :func:`read_idx`.
    """
    shape, start = _header(data, source, kind)
    expected, found = math.prod(shape), len(data) - start
    if found < expected:
        raise ValueError(
            f"read_idx: expected {source} to hold {expected} bytes of data for the shape {shape}, got {found}: "
            "it is truncated. Fetch the file again."
        )
    if found > expected:
        raise ValueError(
            f"read_idx: expected {source} to end after {expected} bytes of data for the shape {shape}, got "
            f"{found - expected} trailing bytes. Fetch the file again."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _header(data: bytes, source: str, kind: Kind | None) -> tuple[tuple[int, ...], int]:
    """Return the shape and the offset of the first data byte."""
    if len(data) < 4:
        raise ValueError(
            f"read_idx: expected {source} to start with a magic number of 4 bytes, got {len(data)} bytes: "
            "it is truncated. Fetch the file again."
        )
    (magic,) = struct.unpack(">I", data[:4])
    _check_magic(magic, source, kind)
    axes = magic & 0xFF
    start = 4 + 4 * axes
    if len(data) < start:
        raise ValueError(
            f"read_idx: expected {source} to have a header of {start} bytes, got {len(data)} bytes: "
            "it is truncated. Fetch the file again."
        )
    return struct.unpack(f">{axes}I", data[4:start]), start


def _check_magic(magic: int, source: str, kind: Kind | None) -> None:
    names = {number: name for name, number in MAGIC.items()}
    allowed: tuple[Kind, ...] = ("images", "labels") if kind is None else (kind,)
    if names.get(magic) in allowed:
        return
    wanted = " or ".join(f"0x{MAGIC[name]:08x} ({name})" for name in allowed)
    if magic in names:
        raise ValueError(
            f"read_idx: expected {source} to have the magic number {wanted}, got 0x{magic:08x} ({names[magic]}): "
            "images and labels are swapped. Give the two files each other's name."
        )
    raise ValueError(
        f"read_idx: expected {source} to have the magic number {wanted}, got 0x{magic:08x}. "
        "This is no idx file of unsigned bytes; fetch it again."
    )
