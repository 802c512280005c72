"""A spec and its data set: which images, which labels are given, batches to train and to test on.

Two sources behind one face: `Resident`, the whole data set on the device, and `Stream`, for what
does not fit there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lnlsr_lib.augment import Augmentation, Draws
from lnlsr_lib.data import Dataset, balanced_subset, data_folder, load_dataset, load_human_labels
from lnlsr_lib.noise import corrupt_labels, imbalanced_subset, noisy_labels
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.webvision import CLASSES, IMAGENET_MEAN, IMAGENET_STD, WebVisionStream

__all__ = ["Batch", "Pixels", "Resident", "Stream", "given_labels", "open_source", "selection"]

EVAL_BATCH = 250  # with 1,000 the activations of ResNet-34 take gigabytes


class Batch(NamedTuple):
    """What a step is given.

    Attributes:
        images: (B, C, H, W), uint8.
        labels: as given, (B,), int64; truth: as they truly are, or None where nobody knows.
        indices: of the samples among those used, (B,), int64; empty where nothing goes by index.
    """

    images: Tensor
    labels: Tensor
    truth: Tensor | None
    indices: Tensor


def selection(spec: RunSpec, labels: Tensor) -> Tensor:
    """Which training images are used, (N,), int64, ascending: ``labels`` are all true labels."""
    index = torch.arange(len(labels))
    if spec.train_size is not None:
        index = balanced_subset(labels, spec.train_size, spec.generator("subset"))
    if spec.imbalance is not None:
        kept = imbalanced_subset(
            labels[index], spec.imbalance, spec.imbalance_ratio, spec.generator("imbalance")
        )
        index = index[kept]
    return index


def given_labels(spec: RunSpec, data: Dataset, index: Tensor) -> Tensor:
    """The labels of the images ``index`` that the network is shown, (N,), int64."""
    if spec.noise == "human":
        return load_human_labels(str(spec.human_labels), spec.dataset, data.train_labels)[index]
    labels, generator = data.train_labels[index], spec.generator("noise")
    if spec.noise == "transition":
        return corrupt_labels(labels, torch.tensor(spec.transition).double(), generator)
    kind = spec.noise, spec.noise_rate, generator, spec.noise_variant
    return noisy_labels(labels, data.name, data.num_classes, *kind)


class Pixels:
    """From uint8 images to what the network takes: scaled to [0, 1], then normalised."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        self.scale, self.shift = (1 / (255 * stds)).to(device), (-means / stds).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 to float32, channels_last."""
        pixels = torch.addcmul(self.shift, images.float(), self.scale)
        return pixels.contiguous(memory_format=torch.channels_last)


def averaged_down(images: Tensor, side: int | None) -> Tensor:
    """Square images made smaller by averaging whole blocks of pixels.

    Args:
        images: (N, C, H, H), uint8.
        side: of the result; H must be a multiple of it. None leaves them as they are.

    Returns:
        (N, C, side, side), uint8, rounded to even.

    Raises:
        ValueError: H is no multiple of ``side``.
    """
    if side is None:
        return images
    block, rest = divmod(images.shape[-1], side)
    if rest:
        raise ValueError(f"images of {images.shape[-1]} pixels cannot be averaged to {side}")
    parts = images.split(1000)
    return torch.cat([F.avg_pool2d(part.float(), block).round().to(torch.uint8) for part in parts])


class Resident:
    """The whole data set on the device, batches by indexing, augmented there.

    Attributes:
        labels, truth: of the images used, as given and as they truly are, (N,).
        wrong: share of labels that are wrong.
    """

    def __init__(self, spec: RunSpec, data: Dataset, device: torch.device) -> None:
        if data.name != spec.dataset:
            raise ValueError(f"the spec asks for {spec.dataset}, but the data are {data.name}")
        index = selection(spec, data.train_labels)
        labels, truth = given_labels(spec, data, index), data.train_labels[index]
        whole = len(index) == len(data.train_labels)
        images = data.train_images if whole else data.train_images[index]
        self.spec = spec
        self.wrong: float | None = (labels != truth).double().mean().item()
        self.images = averaged_down(images, spec.side).to(device)
        self.labels, self.truth = labels.to(device), truth.to(device)
        self.test_images = averaged_down(data.test_images, spec.side).to(device)
        self.test_labels = data.test_labels.to(device)
        self.num_classes, self.mean, self.std = data.num_classes, data.mean, data.std
        self.origin = data.origin
        self.augmentation = Augmentation(spec.padding, spec.flip, spec.degrees)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Those of one epoch, shuffled.

        The last short batch is kept, unless it is of one image, which BatchNorm cannot train on.
        """
        device = self.images.device
        order = torch.randperm(len(self.labels), generator=self.spec.generator(f"order/{epoch}"))
        draws = None
        if self.augmentation != Augmentation():
            generator = self.spec.generator(f"augment/{epoch}")
            drawn = self.augmentation.draw(self.images.shape, generator)
            draws = Draws(*(part.to(device) for part in drawn))
        for index in order.to(device).split(self.spec.batch_size):
            if len(index) > 1:
                images = self.images[index]
                if draws is not None:
                    images = self.augmentation(images, Draws(*(part[index] for part in draws)))
                yield Batch(images, self.labels[index], self.truth[index], index)

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images in order and as they are, with the labels given."""
        yield from zip(self.images.split(EVAL_BATCH), self.labels.split(EVAL_BATCH), strict=True)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in big batches, with their labels."""
        parts = self.test_images.split(EVAL_BATCH), self.test_labels.split(EVAL_BATCH)
        yield from zip(*parts, strict=True)


class Stream:
    """WebVision, read, decoded and augmented by worker processes while the network trains."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        folder = data_folder() / "webvision"
        self.spec, self.device = spec, device
        self.train, self.test = (WebVisionStream(folder, train=train) for train in (True, False))
        self.wrong: float | None = None  # nobody knows
        self.labels = self.train.labels.to(device)
        self.num_classes, self.mean, self.std = CLASSES, IMAGENET_MEAN, IMAGENET_STD
        self.workers = min(16, os.cpu_count() or 1)

    @property
    def origin(self) -> str:
        """Where the images came from, and how many files the last passes had to skip."""
        skipped = len(self.train.skipped), len(self.test.skipped)
        return (
            f"WebVision 1.0, Google subset, first {self.num_classes} classes; files skipped: "
            f"{skipped[0]} train, {skipped[1]} test"
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Those of one epoch, shuffled; their truth is unknown."""
        generator = self.spec.generator(f"order/{epoch}")
        nowhere = torch.empty(0, dtype=torch.int64, device=self.device)  # nothing goes by index
        for images, labels in self.train.batches(self.spec.batch_size, generator, self.workers):
            if len(labels) > 1:
                yield Batch(images.to(self.device), labels.to(self.device), None, nowhere)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images, with their labels."""
        for images, labels in self.test.batches(100, torch.Generator(), self.workers):
            yield images.to(self.device), labels.to(self.device)


def open_source(spec: RunSpec, data: Dataset | None, device: torch.device) -> Resident | Stream:
    """The source of a run's batches; ``data``, if it is at hand, is loaded by name otherwise.

    Raises:
        ValueError: ``data`` are not those of the spec.
        lnlsr_lib.data.DataError: the data set cannot be had.
    """
    if data is None and spec.dataset == "webvision":
        return Stream(spec, device)
    return Resident(spec, load_dataset(spec.dataset) if data is None else data, device)
