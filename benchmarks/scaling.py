"""How our epoch grows with the data and with the classes, and what memory training takes.

    python benchmarks/scaling.py

Time: CNN-4 under CE+SR on 10,000, 20,000 and 60,000 images of MNIST's shape, and on 10, 100 and
1,000 classes; each five times, in turn, the second epoch of a run, and the median; what an image
takes, over that in the first row, is taken round by round. The images are random, which changes no
time. Memory: a process of its own for each data set loads it, trains a few steps and tests once;
the peak of its resident set. Writes ``results/benchmarks/scaling.csv`` and ``memory.csv``.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
from dataclasses import replace

import torch
from report import epoch_seconds, write_rows
from tqdm import tqdm

from lnlsr_lib.cost import made_up
from lnlsr_lib.device import device_name, resolve_device, resolve_precision
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.trainer import train

ROUNDS = 5
SIZES = [(size, 10) for size in (10_000, 20_000, 60_000)]
CLASSES = [(10_000, classes) for classes in (100, 1_000)]


def seconds_of(size: int, classes: int) -> float:
    """Seconds of the training part of an epoch: the second, when memory has been touched."""
    spec = make_spec("mnist", "ce_sr").model_copy(update={"epochs": 2})
    data = replace(
        made_up(spec, size), train_labels=torch.arange(size) % classes, num_classes=classes
    )
    return epoch_seconds(spec, data)


def peak_mib(
    dataset: str, method: str, precision: str, answers: multiprocessing.Queue[int]
) -> None:
    """Peak resident memory of this process, in MiB: loading, five steps, the whole test."""
    spec = make_spec(dataset, method, 0.6).model_copy(update={"epochs": 1, "train_size": 640})
    train(spec, precision=precision)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # there in bytes, elsewhere in KiB
    answers.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit)


def main() -> None:
    device = resolve_device()
    machine = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": resolve_precision("auto", device),
    }
    context, memory = multiprocessing.get_context("spawn"), []
    for dataset, method, precision in (
        *(("mnist", "ce_sr", precision) for precision in ("float32", "bf16")),
        *(("cifar10", "ce_sr", precision) for precision in ("float32", "bf16")),
        *(("cifar10", "co_teaching", precision) for precision in ("float32", "bf16")),
    ):
        answers = context.Queue()
        child = context.Process(target=peak_mib, args=(dataset, method, precision, answers))
        child.start()
        row = {"case": f"{dataset}, {method}", "peak_mib": answers.get(timeout=600)}
        memory.append(row | machine | {"precision": precision})
        child.join()
    times: dict[tuple[int, int], list[float]] = {}
    for _ in tqdm(range(ROUNDS)):
        for case in SIZES + CLASSES:
            times.setdefault(case, []).append(seconds_of(*case))
    first = times[SIZES[0]]
    rows = [
        {
            "images": size,
            "classes": classes,
            "rounds": ROUNDS,
            "seconds_median": round(statistics.median(each), 3),
            "seconds_min": round(min(each), 3),
            "seconds_max": round(max(each), 3),
            "per_image_over_first": round(
                statistics.median(s / f for s, f in zip(each, first, strict=True))
                * (SIZES[0][0] / size),
                3,
            ),
        }
        | machine
        for (size, classes), each in times.items()
    ]
    write_rows("scaling", rows)
    write_rows("memory", memory)


if __name__ == "__main__":
    main()
