"""Our training epoch beside the conventional loop: same network, loss, data and batch size.

    python benchmarks/epoch.py [--images 12800] [--rounds 5]

The conventional loop is what most training scripts do: a torchvision data set of PIL images,
ToTensor and Normalize per sample, a DataLoader with 2 workers, float32, NCHW, ``loss.item()`` at
every step. Ours is :func:`lnlsr_lib.trainer.train` as it is. Both run in this process, alternating,
MNIST with CNN-4 under CE+SR; the ratio is taken round by round, and its median is what to quote.
Writes ``results/benchmarks/epoch.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import resource
import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import VisionDataset
from torchvision.transforms import Compose, Normalize, ToTensor
from torchvision.transforms.functional import to_pil_image
from tqdm import trange

from lnlsr_lib.data import Dataset, load_dataset
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.store import results_folder, write_atomically
from lnlsr_lib.trainer import (
    build_criterion,
    device_name,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
    train,
)


class ConventionalCNN4(nn.Sequential):
    """CNN-4 as it is usually written, ReLU before the pool."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(3136, 128), nn.BatchNorm1d(128), nn.ReLU()),
            nn.Linear(128, 10),
        )


class PILImages(VisionDataset):
    """One PIL image at a time, as torchvision's MNIST gives them."""

    def __init__(self, data: Dataset) -> None:
        transform = Compose([ToTensor(), Normalize(data.mean, data.std)])
        super().__init__(root="", transform=transform)
        self.data = data

    def __len__(self) -> int:
        return len(self.data.train_labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = to_pil_image(self.data.train_images[index])
        return self.transform(image), int(self.data.train_labels[index])


def conventional_epoch(data: Dataset, size: int, device: torch.device) -> float:
    """Seconds of one epoch of the conventional loop, the start of its workers included."""
    spec = make_spec("mnist", "ce_sr", 0.0)
    model = ConventionalCNN4().to(device)
    criterion = build_criterion(spec)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    images = Subset(PILImages(data), range(size))
    loader = DataLoader(images, spec.batch_size, shuffle=True, num_workers=2)
    start = time.perf_counter()
    total = 0.0
    for batch, labels in loader:
        loss = criterion(model(batch.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
        optimizer.step()
        total += loss.item() * len(labels)
    return time.perf_counter() - start


def our_epoch(data: Dataset, size: int) -> float:
    """Seconds of the training part of one epoch of ours."""
    spec = make_spec("mnist", "ce_sr", 0.0).model_copy(update={"epochs": 1, "train_size": size})
    steps = -(-size // spec.batch_size)
    stamps: list[float] = []
    train(spec, data, on_batch=lambda: stamps.append(time.perf_counter()))
    # From the first step's end to the last's, scaled to all steps: leaves the set-up out.
    return (stamps[-1] - stamps[0]) * steps / (steps - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12_800, help="training images an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up")
    args = parser.parse_args()
    device = resolve_device()
    data = load_dataset("mnist")
    conventional, ours = [], []
    # glibc's memory setting is part of ours and, once made, cannot be unmade in a process; the
    # conventional loop profits from it here, so the ratio is a little too modest.
    keep_freed_memory()
    for _ in trange(args.rounds + 1):
        conventional.append(conventional_epoch(data, args.images, device))
        ours.append(our_epoch(data, args.images))
    ratios = [theirs / mine for theirs, mine in zip(conventional, ours, strict=True)][1:]
    row = {
        "case": "mnist cnn4 ce_sr",
        "images": args.images,
        "rounds": args.rounds,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": resolve_precision("auto", device),
        "conventional_seconds_median": round(statistics.median(conventional[1:]), 2),
        "ours_seconds_median": round(statistics.median(ours[1:]), 2),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, row, lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    write_atomically(results_folder() / "benchmarks" / "epoch.csv", text.getvalue().encode())
    for name, value in row.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
