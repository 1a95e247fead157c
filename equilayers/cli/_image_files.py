r"""Images with or without classes, from a folder, an array, or an idx file."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers.cli._arguments import DataSettings
from equilayers.cli._data import IMAGES, pictures, scaled
from equilayers.cli._words import EXTRA, bad, said

KINDS = "a folder of images, or an .npz, .npy or idx file"
NAMES, LABELS = ("x", "images", "X"), ("y", "labels", "targets")
CHANNELS = (1, 3, 4)
LEAST = 40  # images: `data_symmetry` takes no fewer


def read_images(settings: DataSettings) -> tuple[Tensor, list[str] | None]:
    r"""Images (N, C, H, W) in float32, at most so many, at random, and the class of each where that is known.

    Raises:
        BadInputError: the data cannot be read, are too few, not finite, or of another shape.
    """
    path = settings.data
    x, classes = _folder(settings) if path.is_dir() else _file(settings)
    if classes is not None and len(classes) != len(x):
        bad(f"a label for each of {len(x)} images", len(classes), "Pass the labels of these images.")
    if len(x) < LEAST:
        bad(f"--data of {LEAST} images or more", f"{len(x)} in {path}", "Fewer show nothing.")
    if not path.is_dir():
        kept = _drawn(len(x), settings)
        x = scaled(path, _planes(np.asarray(x[kept])))
        classes = None if classes is None else [classes[i] for i in kept]
    if settings.shape is not None and x.shape[1:] != settings.shape:
        bad(f"--data of images {settings.shape}", f"{x.shape[1:]} in {path}", "Change --input or leave it out.")
    if not np.isfinite(x).all():
        bad("--data of finite numbers", f"NaN or infinity in {path}", "Clean the data.")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), classes


def _drawn(count: int, settings: DataSettings) -> list[int]:
    r"""The places of the images that are looked at."""
    generator = torch.Generator().manual_seed(settings.seed)
    return sorted(torch.randperm(count, generator=generator)[: settings.samples].tolist())


def _folder(settings: DataSettings) -> tuple[NDArray[Any], list[str] | None]:
    r"""Images of a folder, or of its folders, whose names are the classes."""
    path = settings.data
    folders = sorted(each for each in path.iterdir() if each.is_dir())
    if settings.labels is not None:
        bad("--labels with a file of images", f"the folder {path}", "Put the images of each class in a folder.")
    pairs = [(file, each.name) for each in folders or [path] for file in sorted(each.iterdir()) if _is_image(file)]
    if len(pairs) < LEAST:
        got = f"{len(pairs)} in {path}"
        bad(f"--data of {LEAST} images or more", got, f"It takes {' '.join(IMAGES)}, in a folder for each class.")
    pairs = [pairs[i] for i in _drawn(len(pairs), settings)]
    files = [file for file, _ in pairs]
    x = np.stack(list(pictures(files, settings.shape or _shape(files[0]))))
    return x, [name for _, name in pairs] if folders else None


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGES


def _shape(file: Path) -> tuple[int, int, int]:
    r"""Of one image: grey or in colours, height and width."""
    try:
        from PIL import Image
    except ImportError:
        bad("Pillow to be installed, to read images", "none", f"Run {EXTRA}.")
    try:
        with Image.open(file) as image:
            return (1 if image.mode in ("1", "L", "I", "F", "I;16") else 3), image.height, image.width
    except Exception as error:
        bad("--data to hold images", f"{file}: {said(error)}", "Take the file out of the folder.")


def _file(settings: DataSettings) -> tuple[NDArray[Any], list[str] | None]:
    path, labels = settings.data, settings.labels
    x, y = _arrays(path)
    if x.ndim not in (3, 4):
        bad("--data of images (N, H, W) or (N, C, H, W)", f"{x.shape} in {path}", "Change the array.")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels is None and y is None and beside != path and beside.is_file():
        labels = beside
    if labels is not None:
        y, _ = _arrays(labels)
    if y is not None and (y.ndim != 1 or y.dtype.kind not in "iuUS"):
        bad("labels (N,) of whole numbers or words", f"{y.dtype} {y.shape}", "Save one label for each image.")
    return x, None if y is None else [str(label) for label in y.tolist()]


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    r"""The array in a file, and that of labels if it has one. Nothing pickled is read."""
    if not path.is_file():
        bad(f"--data to be {KINDS}", path, "Name one that exists.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                names = list(archive)
                x = next((name for name in (*NAMES, *names[:1]) if name in names), "")
                y = next((name for name in LABELS if name in names and name != x), None)
                return np.asarray(archive[x]), None if y is None else np.asarray(archive[y])
        if path.suffix == ".npy":
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return found, None
        return _idx(path), None
    except Exception as error:
        bad(f"--data to be {KINDS}", f"{path}: {said(error)}", "Save it with numpy.savez(file, x=x, y=y).")


def _idx(path: Path) -> NDArray[Any]:
    r"""The bytes of an idx file, gzipped or not: two zeros, the type, the number of axes, their lengths, the data."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    if raw[:3] != b"\x00\x00\x08" or len(raw) < 4:
        raise ValueError("no idx file of unsigned bytes")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])
    if data.size != math.prod(shape):
        raise ValueError(f"{data.size} bytes of data for the shape {shape}")
    return data.reshape(shape)


def _planes(x: NDArray[Any]) -> NDArray[Any]:
    r"""Images with their channels first."""
    if x.ndim == 3:
        return x[:, None]
    if x.shape[1] not in CHANNELS and x.shape[-1] in CHANNELS:
        return x.transpose(0, 3, 1, 2)
    return x
