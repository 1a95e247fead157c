r"""The idx file format of MNIST and its siblings: a magic number, the sizes, then the bytes."""

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
_AGAIN = "Fetch the file again."


def read_idx(path: str | os.PathLike[str], kind: Kind | None = None) -> NDArray[np.uint8]:
    r"""Read an idx file of unsigned bytes, gzipped or plain.

    Args:
        path: the file. A name that ends in ``.gz`` has to be gzipped; any other name may be.
        kind: ``"images"`` (three axes) or ``"labels"`` (one axis). None: as `kind_of` the file's name.

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
    r"""Tell from a file's name what it should hold; None when the name tells nothing."""
    return "images" if "images-idx3" in file_name else "labels" if "labels-idx1" in file_name else None


def unpack(path: Path) -> bytes:
    r"""Read a file and unpack it if it is gzipped; the errors are those of `read_idx`."""
    if not path.is_file():
        raise FileNotFoundError(f"read_idx: expected path to be a file, got {path}. Check the name.")
    raw = path.read_bytes()
    # By content and not by name alone: some browsers unpack on saving, some drop the suffix.
    if raw.startswith(_GZIP_START) or path.suffix == ".gz":
        return unpack_gzip(raw, "read_idx", str(path))
    return raw


def unpack_gzip(raw: bytes, caller: str, source: str) -> bytes:
    r"""Unpack a gzip stream; the ValueError for one that is not whole names `caller` and `source`."""
    if not raw.startswith(_GZIP_START):
        wanted, got = "gzipped (to start with 1f 8b)", f"the first bytes '{raw[:4].hex(' ')}'"
        hint = "If it is unpacked already, take '.gz' off its name; otherwise fetch it again."
        raise ValueError(f"{caller}: expected {source} to be {wanted}, got {got}. {hint}")
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        got = f"a corrupt one of {len(raw)} bytes ({error})"
        raise ValueError(f"{caller}: expected {source} to be a whole gzip stream, got {got}. {_AGAIN}") from error


def parse_idx(data: bytes, source: str, kind: Kind | None = None) -> NDArray[np.uint8]:
    r"""Parse unpacked idx bytes.

    Args:
        data: the whole file, unpacked.
        source: what to call it in an error.
        kind: what it has to hold; None lets images and labels pass.

    Returns:
        Read-only uint8 view of ``data``, ``(N, H, W)`` or ``(N,)``.

    Raises:
        ValueError: as `read_idx`.
    """
    size = len(data)
    if size < 4:
        raise _refused(source, "start with a magic number of 4 bytes", f"{size} bytes: it is truncated")
    (magic,) = struct.unpack(">I", data[:4])
    _check_magic(magic, source, kind)
    axes = magic & 0xFF
    start = 4 + 4 * axes
    if size < start:
        raise _refused(source, f"have a header of {start} bytes", f"{size} bytes: it is truncated")
    shape = struct.unpack(f">{axes}I", data[4:start])
    expected, found = math.prod(shape), size - start
    content = f"{expected} bytes of data for the shape {shape}"
    if found < expected:
        raise _refused(source, f"hold {content}", f"{found}: it is truncated")
    if found > expected:
        raise _refused(source, f"end after {content}", f"{found - expected} trailing bytes")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _check_magic(magic: int, source: str, kind: Kind | None) -> None:
    names = {number: name for name, number in MAGIC.items()}
    allowed: tuple[Kind, ...] = ("images", "labels") if kind is None else (kind,)
    if names.get(magic) in allowed:
        return
    wanted = "have the magic number " + " or ".join(f"0x{MAGIC[name]:08x} ({name})" for name in allowed)
    got, hint = f"0x{magic:08x}", "This is no idx file of unsigned bytes; fetch it again."
    if magic in names:
        got += f" ({names[magic]}): images and labels are swapped"
        hint = "Give the two files each other's name."
    raise _refused(source, wanted, got, hint)


def _refused(source: str, wanted: str, got: str, hint: str = _AGAIN) -> ValueError:
    return ValueError(f"read_idx: expected {source} to {wanted}, got {got}. {hint}")
