r"""The study's data: digits, MNIST and Fashion-MNIST without class 9, split, padded and standardised."""

import math
import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.common.download import FILES, check_name, check_sum, locate
from baselines.common.download import download as download_files
from baselines.common.idx import kind_of, parse_idx, unpack

__all__ = ["DATASETS", "Dataset", "Split", "download_files", "load_arrays", "load_dataset"]

Folder = str | os.PathLike[str] | None
Sizes = tuple[int, int, int]
DROPPED_CLASS = 9  # the paper's choice, for both data sets: among the digits, a 6 rotated by 180 degrees is a 9
NUM_CLASSES = 9


@dataclass(frozen=True)
class _Protocol:
    splits: Sizes  # train, test, validation: the order of the paper
    padding: int  # pixels on each side
    scale: int  # the largest pixel value


_LARGE = _Protocol((10_000, 50_000, 2_000), padding=4, scale=255)
_PROTOCOLS = {"digits": _Protocol((900, 517, 200), padding=2, scale=16), "mnist": _LARGE, "fashion-mnist": _LARGE}
DATASETS: tuple[str, ...] = tuple(_PROTOCOLS)  # the names that `load_dataset` knows


@dataclass(frozen=True, eq=False)  # comparing tensors gives tensors, so a generated == would raise
class Split:
    r"""Images ``x`` (float32, ``(N, 1, H, W)``, standardised) and their classes ``y`` (int64, ``(N,)``, 0..8)."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    r"""Three disjoint splits, and the mean and deviation (in 0..1 pixel units) that standardised all of them."""

    name: str
    train: Split
    validation: Split
    test: Split
    mean: float
    std: float
    num_classes: int = NUM_CLASSES


def load_arrays(name: str, data_dir: Folder = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    r"""Read MNIST or Fashion-MNIST from idx files and check every file's sum.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        data_dir: folder with the four idx files, plain or gzipped, or with a folder ``<name>`` that holds them. None:
            the environment variable EQUILAYERS_DATA.

    Returns:
        Images ``(70000, 28, 28)`` and labels ``(70000,)``, both uint8, train first and t10k after.

    Raises:
        FileNotFoundError, ValueError: no folder or file; an unknown name, a damaged file, a wrong sum, swapped files.
    """
    check_name("load_arrays", name)
    parts = []
    for file, path in zip(FILES, locate(name, data_dir), strict=True):
        data = unpack(path)
        # The format first: "truncated" or "images and labels are swapped" says more than a wrong sum.
        parts.append(parse_idx(data, str(path), kind_of(file)))
        check_sum("load_arrays", name, file, data, str(path))
    return np.concatenate(parts[0::2]), np.concatenate(parts[1::2])


def load_dataset(
    name: str,
    *,
    data_dir: Folder = None,
    download: bool = False,
    seed: int = 0,
    splits: Sizes | None = None,
    pad_first: bool = True,
) -> Dataset:
    r"""Load a data set by the study's protocol.

    Class 9 is dropped, the rest shuffled by ``seed`` and cut into three; pixels are scaled to 0..1, zero-padded
    (28 -> 36, digits 8 -> 12), then standardised, ``x = (pixel - mean) / std``, with the mean and the (population)
    deviation of the padded training split: one number each. The padding's value becomes ``-mean / std``.

    Args:
        name: ``"digits"`` (scikit-learn's, 1617 images), ``"mnist"`` (63042) or ``"fashion-mnist"`` (63000).
        data_dir: as for `load_arrays`; not used for digits.
        download: fetch the files that are not there yet; not used for digits.
        seed: of the split, and of nothing else.
        splits: ``(n_train, n_test, n_validation)``, each at least 1. None: the paper's 10,000 / 50,000 / 2,000, for
            digits 900 / 517 / 200.
        pad_first: False standardises by the moments of the images alone and pads after: the padding's value is 0.

    Returns:
        A `Dataset` on the CPU, float32 images and int64 classes, H = W = 36 (digits: 12).

    Raises:
        ValueError, FileNotFoundError: as `load_arrays`; splits larger than the data, a training split of one value.
        TypeError: a seed or a split size that is not an int.
        ConnectionError, ImportError: ``download`` without network; digits without scikit-learn.

    Source: Moskalev, Sepliarskaia, Bekkers, Smeulders 2023, arXiv:2308.03904.
    """
    if name not in _PROTOCOLS:
        wanted = f"one of {list(DATASETS)}"
        raise ValueError(f"load_dataset: expected name to be {wanted}, got {name!r}. Choose one of these.")
    protocol = _PROTOCOLS[name]
    sizes = protocol.splits if splits is None else splits
    _check_request(seed, sizes)
    if download and name != "digits":
        data_dir = download_files(name, data_dir)
    images, labels = _digits() if name == "digits" else load_arrays(name, data_dir)
    train, test, validation = _split_indices(name, labels, sizes, seed)
    mean, std = _moments(images[train], protocol if pad_first else replace(protocol, padding=0))

    def make(index: NDArray[np.int64]) -> Split:
        p, (height, width) = protocol.padding, images.shape[1:]
        x = torch.zeros(len(index), 1, height + 2 * p, width + 2 * p, dtype=torch.float32, device="cpu")
        inside = x[:, 0, p : p + height, p : p + width]
        inside.copy_(torch.from_numpy(images[index]))
        standardised = x if pad_first else inside
        standardised.div_(protocol.scale).sub_(mean).div_(std)  # in place: the test split of MNIST is 0.25 GB
        return Split(x, torch.from_numpy(labels[index].astype(np.int64)))

    return Dataset(name, make(train), make(validation), make(test), mean, std)


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        message = "load_dataset: expected scikit-learn to be installed for 'digits', got no module sklearn."
        raise ImportError(f"{message} Run `pip install equilayers[study]`.") from error
    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)


def _check_request(seed: int, sizes: Sizes) -> None:
    # bool is an int to Python; here it is a slip.
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"load_dataset: expected seed to be an int, got {seed!r}. Pass a whole number.")
    hint = "Pass splits=(n_train, n_test, n_validation)."
    if not isinstance(sizes, (tuple, list)) or any(not isinstance(n, int) or isinstance(n, bool) for n in sizes):
        raise TypeError(f"load_dataset: expected splits to be three ints, got {sizes!r}. {hint}")
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"load_dataset: expected splits to be three ints of at least 1, got {sizes!r}. {hint}")


def _split_indices(name: str, labels: NDArray[np.uint8], sizes: Sizes, seed: int) -> tuple[NDArray[np.int64], ...]:
    r"""Return the indices of train, test and validation, disjoint and without class 9."""
    kept = np.flatnonzero(labels != DROPPED_CLASS)
    n_train, n_test, n_validation = sizes
    if sum(sizes) > len(kept):
        most = f"at most the {len(kept)} images of {name} without class {DROPPED_CLASS}"
        got = f"{n_train} + {n_test} + {n_validation} = {sum(sizes)}"
        raise ValueError(f"load_dataset: expected splits to add up to {most}, got {got}. Ask for fewer.")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    order = kept[torch.randperm(len(kept), generator=generator, device="cpu").numpy()]
    # Validation before test: another test size then leaves what is trained and selected on as it was.
    held = n_train + n_validation
    return order[:n_train], order[held : held + n_test], order[n_train:held]


def _moments(images: NDArray[np.uint8], protocol: _Protocol) -> tuple[float, float]:
    r"""Return the mean and deviation of the images after scaling and zero-padding."""
    n, height, width = images.shape
    count = n * (height + 2 * protocol.padding) * (width + 2 * protocol.padding)
    # Zeros add nothing to either sum, so nothing is padded here; integers make both sums exact.
    total = int(images.sum(dtype=np.int64))
    squares = int(np.square(images, dtype=np.uint16).sum(dtype=np.int64))
    variance = count * squares - total * total  # times count^2
    if variance == 0:
        wanted, got = "the training split to hold more than one pixel value", f"{n} constant images"
        raise ValueError(f"load_dataset: expected {wanted}, got {got}. Ask for a larger training split.")
    return total / count / protocol.scale, math.sqrt(variance) / count / protocol.scale
