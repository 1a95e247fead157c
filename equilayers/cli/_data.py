r"""The inputs a model is checked on: random ones, an array, or images from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilayers.cli._arguments import Settings
from equilayers.cli._words import EXTRA, bad, said

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}  # by the number of channels


def inputs(settings: Settings) -> Tensor | list[Tensor] | dict[str, Tensor]:
    r"""Inputs (B, *shape) in float32: standard normal, or the first ones of `--data`; several as they were named.

    Raises:
        BadInputError: the data cannot be read, have another shape, or are not finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    found = {name: _one(settings, name, shape, generator) for name, shape in settings.shapes.items()}
    if list(found) == ["x"]:
        return found["x"]
    return list(found.values()) if "0" in found else found


def _one(settings: Settings, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    path = settings.data
    if path is None:
        return torch.randn(settings.samples, *shape, generator=generator, device="cpu")
    if path.is_dir() and len(settings.shapes) == 1:
        x = _folder(path, settings)
    elif path.is_file() and path.suffix == ".npz":
        x = scaled(path, _array(path, name)[: settings.samples])
        x = x[:, None] if x.ndim == 3 and shape[:-2] == (1,) else x
        if x.shape[1:] != shape or not len(x):
            got = f"{len(x)} of {x.shape[1:]} in {path}"
            bad(f"--data of one or more inputs {shape}", got, "Change --input or the array.")
    else:
        bad("--data to be an .npz file or a folder of images", path, "Name one that exists; a folder is for one input.")
    if not np.isfinite(x).all():
        bad("--data of finite numbers", f"NaN or infinity in {path}", "Clean the data.")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _array(path: Path, wanted: str) -> NDArray[Any]:
    r"""The array of that name in an .npz file, or the only one. Nothing pickled is read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = list(archive)
            name = wanted if wanted in names or len(names) != 1 else names[0]
            found: NDArray[Any] = np.asarray(archive[name])
    except Exception as error:
        hint = f"Save it with numpy.savez(file, {wanted}={wanted})."
        bad(f"--data to hold an array {wanted}, or one alone", f"{path}: {said(error)}", hint)
    if found.ndim < 1:
        bad("--data to hold inputs", f"a single number in {path}", "Save it with numpy.savez(file, x=x).")
    return found


def scaled(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    r"""Bytes as 0..1, floating-point numbers as they are."""
    if x.dtype == np.uint8:
        return x.astype(np.float32) / 255
    if x.dtype.kind != "f":
        bad("--data of uint8 or floating-point numbers", f"{x.dtype} in {path}", "Convert it with x.astype('float32').")
    return x


def _folder(path: Path, settings: Settings) -> NDArray[Any]:
    r"""The first images of a folder by name, as 0..1."""
    if len(settings.shape) != 3 or settings.shape[0] not in MODES:
        bad("--input 1,H,W or 3,H,W for a folder of images", settings.shape, "Pass the images as an .npz file.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)[: settings.samples]
    if not files:
        bad("--data to be a folder with images", path, f"It takes {' '.join(IMAGES)}.")
    return np.stack(list(pictures(files, settings.shape)))


def pictures(files: list[Path], shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    try:
        from PIL import Image
    except ImportError:
        bad("Pillow to be installed, to read images", "none", f"Run {EXTRA}.")
    channels, height, width = shape
    for file in files:
        try:
            with Image.open(file) as image:
                size = image.size
                pixels = np.asarray(image.convert(MODES[channels])) if size == (width, height) else None
        except Exception as error:
            bad("--data to hold images", f"{file}: {said(error)}", "Take the file out of the folder.")
        if pixels is None:
            got = f"{file} of height {size[1]} and width {size[0]}"
            bad(f"images of height {height} and width {width}", got, "Change --input, or resize the image.")
        x = pixels.astype(np.float32) / 255
        yield x[None] if channels == 1 else x.transpose(2, 0, 1)
