r"""Where the idx files of MNIST and Fashion-MNIST come from, where they lie, and what they must add up to.

Sums are those of the unpacked bytes: compressing again changes the .gz file and leaves the data as it was.
"""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from baselines.common.files import write
from baselines.common.idx import unpack, unpack_gzip

ENVIRONMENT_VARIABLE = "EQUILAYERS_DATA"

#: The four files of a data set: train images, train labels, t10k images, t10k labels.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

#: MD5 of the unpacked bytes, in the order of FILES.
CHECKSUMS: dict[str, tuple[str, str, str, str]] = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}

#: The addresses torchvision uses. Fashion-MNIST has no https there; the sums stand guard.
BASE_URLS: dict[str, str] = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}

_TIMEOUT_SECONDS = 60.0


def download(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    r"""Fetch the four idx files of a data set and check their sums; files that are right already stay.

    The files go to ``data_dir/<name>`` (the two data sets share their file names), or to ``data_dir`` when that is its
    name already. A file is written only after its sum was checked.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        data_dir: folder, made if it is missing. None: EQUILAYERS_DATA, else ``equilayers`` in the user's cache folder.

    Returns:
        The folder that holds the four files.

    Raises:
        ConnectionError: the files cannot be reached.
        ValueError: an unknown name, or what came is not the file.
    """
    check_name("download", name)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    given = given_folder(data_dir) or Path(cache) / "equilayers"
    for folder in _candidates(name, given):
        if all(_is_right(folder, file, md5) for file, md5 in zip(FILES, CHECKSUMS[name], strict=True)):
            return folder
    target = given if given.name == name else given / name
    for file, md5 in zip(FILES, CHECKSUMS[name], strict=True):
        if not _is_right(target, file, md5):
            url = f"{BASE_URLS[name].rstrip('/')}/{file}.gz"
            packed = _fetch(name, url)
            check_sum("download", name, file, unpack_gzip(packed, "download", url), url)
            write(target / f"{file}.gz", lambda path, packed=packed: path.write_bytes(packed))  # type: ignore[misc]
    return target


def locate(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Path, ...]:
    r"""Find the four files, in the order of FILES, in ``data_dir/<name>`` or ``data_dir``; None: EQUILAYERS_DATA.

    Raises:
        FileNotFoundError: no folder given, a missing folder or a missing file; says both ways to get the data.
    """
    given = given_folder(data_dir)
    if given is None:
        raise _no_data(name, f"data_dir or {ENVIRONMENT_VARIABLE} to be a folder", "neither")
    if not given.is_dir():
        raise _no_data(name, "data_dir to be a folder that exists", str(given))
    missing: list[str] = []
    for folder in _candidates(name, given):
        found = [find_file(folder, file) for file in FILES]
        paths = tuple(path for path in found if path is not None)
        if len(paths) == len(FILES):
            return paths
        absent = [file for file, path in zip(FILES, found, strict=True) if path is None]
        missing = absent if not missing or len(absent) < len(missing) else missing
    raise _no_data(name, "data_dir to hold the four idx files", f"{given} without {', '.join(missing)}")


def find_file(folder: Path, file: str) -> Path | None:
    r"""Return the path of one of FILES in a folder, the gzipped one first, or None."""
    # The gzipped one first: it is the one that download() can put right.
    return next((path for path in (folder / f"{file}.gz", folder / file) if path.is_file()), None)


def check_name(caller: str, name: str) -> None:
    r"""Raise a ValueError that lists the names when there are no idx files of this name."""
    if name not in CHECKSUMS:
        raise ValueError(f"{caller}: expected name to be one of {list(CHECKSUMS)}, got {name!r}. Choose one of these.")


def check_sum(caller: str, name: str, file: str, data: bytes, source: str) -> None:
    r"""Raise a ValueError when the unpacked bytes are not those of a file of a data set; say whose they are."""
    expected = CHECKSUMS[name][FILES.index(file)]
    found = _md5(data)
    if found == expected:
        return
    known = {md5: (other, of) for other, sums in CHECKSUMS.items() for of, md5 in zip(FILES, sums, strict=True)}
    hint = "Fetch the file again."
    if found in known:
        other, of = known[found]
        found += f", which is {of} of {other}"
        hint = "Put it in its place."
        if other == name and of.partition("-")[2] == file.partition("-")[2]:
            found += ": train and t10k are swapped"
            hint = "Give the two files each other's name."
    wanted = f"{source} to be {file} of {name} (MD5 unpacked {expected})"
    raise ValueError(f"{caller}: expected {wanted}, got {found}. {hint}")


def given_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    r"""Return the folder the user named, by argument or else by environment variable."""
    named = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    return None if named is None else Path(named).expanduser()


def _candidates(name: str, given: Path) -> tuple[Path, Path]:
    # The folder that bears the name goes first: the parent may hold the other data set's files.
    return given / name, given


def _no_data(name: str, expected: str, got: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"load_arrays: expected {expected}, got {got}. Two ways to get {name}: (1) pass --data-dir DIR or set "
        f"{ENVIRONMENT_VARIABLE} to a folder with the idx files ({', '.join(FILES)}, plain or .gz; in it or in "
        f"its folder {name}); (2) pass --download to fetch them."
    )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _is_right(folder: Path, file: str, md5: str) -> bool:
    path = find_file(folder, file)
    if path is None:
        return False
    try:
        return _md5(unpack(path)) == md5
    except ValueError:
        return False


def _fetch(name: str, url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException) as error:
        way = f"get the {name} files on another machine and pass --data-dir DIR or set {ENVIRONMENT_VARIABLE}"
        message = f"download: expected {url} to be reachable, got {error!r}. Check the network, or {way}."
        raise ConnectionError(message) from error
