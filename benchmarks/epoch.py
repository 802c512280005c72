"""Our training epoch beside the conventional loop: same network, loss, data and batch size.

    python benchmarks/epoch.py [--rounds 5] [--cases cnn4 cnn8 resnet34]

The conventional loop is what most training scripts do: a torchvision data set of PIL images,
augmentation, ToTensor and Normalize per sample, a DataLoader with 2 workers, float32, NCHW,
``loss.item()`` at every step, memory as glibc manages it by default. Ours is
:func:`lnlsr_lib.trainer.train` as it is. Both run in this process, alternating, under CE+SR; the
ratio is taken round by round, and its median is what to quote. Beside them stands the floor: the
step's matrix work at the rate of a large bf16 (float32) GEMM, measured in the same run. An epoch is
long enough that the batches which the workers prefetch at its start do not count.

Cases: cnn4 on MNIST, cnn8 on CIFAR-10 with its augmentation, resnet34 on random images of
CIFAR-100's shape with its augmentation. Writes ``results/benchmarks/epoch.csv``.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from PIL import Image
from report import epoch_seconds, write_rows
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import VisionDataset
from torchvision.models import resnet34
from tqdm import trange

from lnlsr_lib.cost import made_up, step_flops
from lnlsr_lib.data import Dataset, load_dataset
from lnlsr_lib.device import (
    device_name,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
)
from lnlsr_lib.objective import build_criterion
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import RunSpec


@dataclass(frozen=True)
class Case:
    """What is trained, and on how many images of an epoch."""

    dataset: str
    images: int


CASES = {
    "cnn4": Case("mnist", 60_000),
    "cnn8": Case("cifar10", 12_800),
    "resnet34": Case("cifar100", 2_560),
}


def block(i: int, o: int) -> list[nn.Module]:
    return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]


def conventional_model(name: str) -> nn.Module:
    """The network as it is usually written, ReLU before the pool."""
    if name == "resnet34":
        model = resnet34(num_classes=100)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        return model
    sides = {"cnn4": [(1, 32), (32, 64)], "cnn8": [(3, 64, 64), (64, 128, 128), (128, 196, 196)]}
    layers: list[nn.Module] = []
    for widths in sides[name]:
        for i, o in pairwise(widths):
            layers += block(i, o)
        layers.append(nn.MaxPool2d(2))
    hidden = 128 if name == "cnn4" else 256
    head = [nn.Linear(3136, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class PILImages(VisionDataset):
    """One PIL image at a time, as torchvision's data sets give them."""

    def __init__(self, spec: RunSpec, data: Dataset) -> None:
        steps: list[object] = []
        if spec.padding:
            steps.append(transforms.RandomCrop(data.train_images.shape[-1], padding=spec.padding))
        if spec.flip:
            steps.append(transforms.RandomHorizontalFlip())
        if spec.degrees:
            steps.append(transforms.RandomRotation(spec.degrees))
        steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        super().__init__(root="", transform=transforms.Compose(steps))
        images = data.train_images.permute(0, 2, 3, 1).numpy()  # (N, H, W, C), as they store it
        self.images = images[..., 0] if images.shape[-1] == 1 else images
        self.labels = data.train_labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def default_memory() -> None:
    """Let glibc hand memory back as it does by default, once its thresholds have adapted."""
    if sys.platform.startswith("linux"):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 65_536)  # M_MMAP_MAX
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: the highest it adapts to
        mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD: twice that


def our_memory() -> None:
    """What the trainer sets, anew."""
    keep_freed_memory.cache_clear()
    keep_freed_memory()


def conventional_epoch(spec: RunSpec, images: PILImages, device: torch.device) -> float:
    """Seconds of one epoch, without the start of the workers."""
    model = conventional_model(spec.model).to(device)
    criterion = build_criterion(spec)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    loader = DataLoader(images, spec.batch_size, shuffle=True, num_workers=2)
    total, stamps = 0.0, []
    for batch, labels in loader:
        loss = criterion(model(batch.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
        optimizer.step()
        total += loss.item() * len(labels)
        stamps.append(time.perf_counter())
    return (stamps[-1] - stamps[0]) * len(stamps) / (len(stamps) - 1)


def gemm_rate(precision: str, device: torch.device) -> float:
    """Operations a second of a 2048 x 2048 matrix product, at its best."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, 2048, 2048, device=device).to(dtype).unbind()
    times = []
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def run_case(name: str, rounds: int) -> dict[str, object]:
    """Both loops, alternating; one row of the table."""
    case, device = CASES[name], resolve_device()
    spec = make_spec(case.dataset, "ce_sr").model_copy(update={"epochs": 1, "seed": 1})
    data = made_up(spec, case.images) if name == "resnet34" else load_dataset(case.dataset)
    data = replace(
        data,
        train_images=data.train_images[: case.images],
        train_labels=data.train_labels[: case.images],
        test_images=data.test_images[:100],
        test_labels=data.test_labels[:100],
    )
    images = PILImages(spec, data)
    precision = resolve_precision("auto", device)
    conventional, ours, rates = [], [], []
    for _ in trange(rounds + 1, desc=name):
        default_memory()
        conventional.append(conventional_epoch(spec, images, device))
        our_memory()
        ours.append(epoch_seconds(spec, data))
        rates.append(gemm_rate(precision, device))
    steps = -(-case.images // spec.batch_size)
    step = statistics.median(ours[1:]) / steps
    floor = step_flops(spec) / max(rates)
    ratios = [theirs / mine for theirs, mine in zip(conventional, ours, strict=True)][1:]
    return {
        "case": f"{name}, {case.dataset}",
        "images": case.images,
        "rounds": rounds,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "conventional_ms_per_step": round(1e3 * statistics.median(conventional[1:]) / steps, 2),
        "ours_ms_per_step": round(1e3 * step, 2),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "gemm_gflops_per_second": round(max(rates) / 1e9),
        "floor_ms_per_step": round(1e3 * floor, 2),
        "ours_over_floor": round(step / floor, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    write_rows("epoch", [run_case(name, args.rounds) for name in args.cases])


if __name__ == "__main__":
    main()
