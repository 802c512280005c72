"""WebVision 1.0, its Google subset, as a stream: it is too large to be held as one tensor.

Images are decoded and augmented by worker processes. A file that is missing or no image is left
out of its batch and reported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.utils.data
from torch import Tensor

from lnlsr_lib.data import SHAPES, DataError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "WebVisionStream"]

# Per channel, of pixels scaled to [0, 1]. Source: the authors' code, which takes ImageNet's.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLASSES = SHAPES["webvision"][-1]

Sample = tuple[Tensor | None, int, str]  # image, label, and why there is none


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor, list[str]]:
    """Images (B, 3, 224, 224) and labels (B,) of the good samples; why the others are left out."""
    good = [(image, label) for image, label, _ in samples if image is not None]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    return images, labels, [why for image, _, why in samples if image is None]


class WebVisionStream(torch.utils.data.Dataset[Sample]):
    """The training or the validation images of WebVision's first 50 classes, in batches.

    Training images get a random resized crop, a horizontal flip and colour jitter; validation
    images are resized to 256 at their shorter side and cropped at the centre. Normalisation is left
    to the caller.

    Args:
        folder: WebVision's, with ``info/train_filelist_google.txt`` and the training images by the
            paths given there; for validation ``info/val_filelist.txt`` and ``val_images_256``.
        train: the Google training images, with the web's labels; else the validation images.

    Attributes:
        names, labels: paths and int64 (N,), in the list's order.
        max_bad: how many missing or broken files one pass may skip: 1% of the list, or 10 if that
            is more (ours). One image at least must be good.
        skipped: the files that the latest pass has left out so far, and why.

    Raises:
        DataError: the list is missing or malformed, or has no image of these classes.

    Source: the paper, section 3.3, and the authors' code.
    """

    def __init__(self, folder: Path | str, *, train: bool) -> None:
        from torchvision.transforms import v2

        self.train, self.skipped = train, list[str]()
        self.folder = Path(folder) if train else Path(folder) / "val_images_256"
        path = Path(folder) / "info" / f"{'train_filelist_google' if train else 'val_filelist'}.txt"
        if not path.is_file():
            raise DataError(
                f"{path} is missing: it should list the images of WebVision 1.0 in {self.folder}, "
                "one 'image label' a line"
            )
        self.names: list[str] = []
        labels: list[int] = []
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                name, _, label = line.rstrip().rpartition(" ")
                if not name or not label.isdecimal() or len(label) > 9:
                    raise DataError(f"{path}, line {number} should be 'image label': {line[:80]!r}")
                if int(label) < CLASSES:
                    self.names.append(name)
                    labels.append(int(label))
        if not labels:
            raise DataError(f"{path} lists no image with a label below {CLASSES}")
        self.labels = torch.tensor(labels)
        self.max_bad = min(max(10, len(labels) // 100), len(labels) - 1)
        augmentation = [
            v2.RandomResizedCrop(224),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
        ]
        crop = augmentation if train else [v2.Resize(256), v2.CenterCrop(224)]
        self.transform = v2.Compose([*crop, v2.PILToTensor()])

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The image at an index, augmented by a seed."""
        from torchvision.datasets.folder import pil_loader

        index, seed = key
        try:
            image = pil_loader(self.folder / self.names[index])
        except Exception as error:  # given any bytes, decoders raise anything
            return None, 0, f"{self.names[index]} ({type(error).__name__})"
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(seed)
            return self.transform(image), int(self.labels[index]), ""

    def _report(self) -> str:
        named = ", ".join(sorted(self.skipped)[:5])
        return f"{self.folder}: {len(self.skipped)} files skipped, missing or no images: {named}"

    def batches(
        self, batch_size: int, generator: torch.Generator, num_workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass; training images are shuffled.

        A batch lacks the files that had to be skipped, and the last one may be short.

        Args:
            batch_size: B >= 1. Paper: 512.
            generator: a CPU generator; order and augmentation depend on it alone, not on the number
                of workers. Give every epoch its own, or one that goes on.
            num_workers: processes that decode; 0 decodes in this one. They hand over batches in
                shared memory, two a worker, each of 77 MB where B is 512.

        Yields:
            Images, uint8 (B, 3, 224, 224), and labels, int64 (B,).

        Raises:
            DataError: more than ``max_bad`` files were skipped; names some.
            ValueError: ``batch_size`` or ``num_workers`` is out of range.

        Warns:
            UserWarning: files were skipped; at the end of the pass.
        """
        skipped = self.skipped = list[str]()
        n = len(self.names)
        order = torch.randperm(n, generator=generator) if self.train else torch.arange(n)
        seeds = torch.randint(2**62, (n,), generator=generator)
        loader = torch.utils.data.DataLoader(
            self,
            batch_size,
            sampler=list(zip(order.tolist(), seeds.tolist(), strict=True)),
            num_workers=num_workers,
            collate_fn=_collate,
            generator=generator,
        )
        for images, labels, bad in loader:
            skipped += bad
            if len(skipped) > self.max_bad:
                raise DataError(f"{self._report()}; at most {self.max_bad} are allowed")
            if len(labels):
                yield images, labels
        if skipped:
            warnings.warn(self._report(), stacklevel=2)
