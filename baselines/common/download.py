r"""Where the idx files of MNIST and Fashion-MNIST come from, where they lie, and what they must add up to.

What is downloaded is checked as it comes, before anything is unpacked. Files that are there already are checked by
their unpacked bytes: compressing again changes the .gz file and leaves the data as it was.
"""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from baselines.common.files import write
from baselines.common.idx import unpack

ENVIRONMENT_VARIABLE = "EQUILAYERS_DATA"

#: The four files of a data set: train images, train labels, t10k images, t10k labels.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

#: SHA-256 of the unpacked bytes, in the order of FILES.
CHECKSUMS: dict[str, tuple[str, str, str, str]] = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}

#: SHA-256 of the .gz files at BASE_URLS, in the order of FILES.
PACKED_CHECKSUMS: dict[str, tuple[str, str, str, str]] = {
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion-mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
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
    name already. A file is written only after its sum was checked; what has another sum is never unpacked.

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
        if all(_is_right(folder, file, sum_) for file, sum_ in zip(FILES, CHECKSUMS[name], strict=True)):
            return folder
    target = given if given.name == name else given / name
    for file, unpacked, packed in zip(FILES, CHECKSUMS[name], PACKED_CHECKSUMS[name], strict=True):
        if not _is_right(target, file, unpacked):
            url = f"{BASE_URLS[name].rstrip('/')}/{file}.gz"
            came = _fetch(name, url)
            if (found := _sha256(came)) != packed:
                wanted = f"{url} to be {file}.gz of {name} (SHA-256 {packed})"
                got = f"{found}, {len(came)} bytes"
                raise ValueError(f"download: expected {wanted}, got {got}. Fetch the file again, from another network.")
            write(target / f"{file}.gz", lambda path, came=came: path.write_bytes(came))  # type: ignore[misc]
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
    found = _sha256(data)
    if found == expected:
        return
    known = {sum_: (other, of) for other, sums in CHECKSUMS.items() for of, sum_ in zip(FILES, sums, strict=True)}
    hint = "Fetch the file again."
    if found in known:
        other, of = known[found]
        found += f", which is {of} of {other}"
        hint = "Put it in its place."
        if other == name and of.partition("-")[2] == file.partition("-")[2]:
            found += ": train and t10k are swapped"
            hint = "Give the two files each other's name."
    wanted = f"{source} to be {file} of {name} (SHA-256 unpacked {expected})"
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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_right(folder: Path, file: str, checksum: str) -> bool:
    path = find_file(folder, file)
    if path is None:
        return False
    try:
        return _sha256(unpack(path)) == checksum
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
