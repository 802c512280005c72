"""Which classes CE+SR loses in its first epochs, and what a warm-up changes.

    python benchmarks/lost_classes.py [--seeds 1-20] [--variants none warmup ...] [--epochs 3]
                                      [--precision float32]

MNIST, symmetric 0.8: the first epochs of the runs at the paper's budget (their learning rate and
their lambda), one row for each seed and variant. A class is lost if its recall on the test set is
below 5%. Rows are appended to ``results/lost_classes/lost_classes.csv`` as they finish, and those
that are there in this precision are not made again, so that several processes may share the work.
Rows of an earlier protocol have other ids, and do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import time
from pathlib import Path
from typing import Any

import filelock
import torch

from lnlsr_lib.data import load_dataset
from lnlsr_lib.device import device_name, resolve_device, resolve_precision
from lnlsr_lib.models import build_model
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import code_version, results_folder
from lnlsr_lib.trainer import train

# What differs from the protocol's CE+SR; all of it ours.
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "warmup": {"warmup": 1},
    "weight 2": {"weight": 2},
    "weight 1": {"weight": 1},
    "tau 0.3, weight 2": {"temperature": 0.3, "weight": 2},
}
LOST = 0.05  # recall


class EnoughError(Exception):
    """Raised to stop a run after its first epochs."""


def recalls(spec: RunSpec, weights: dict[str, Any], data: Any) -> torch.Tensor:
    """Recall of each class on the test set, (K,)."""
    model = build_model(spec.model, data.num_classes, 0)
    model.load_state_dict(weights)
    model.eval()
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    hits = torch.zeros(data.num_classes)
    with torch.no_grad():
        for images, labels in zip(
            data.test_images.split(500), data.test_labels.split(500), strict=True
        ):
            pixels = (images.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
            right = model(pixels).argmax(dim=1) == labels
            hits += labels[right].bincount(minlength=data.num_classes)
    return hits / data.test_labels.bincount(minlength=data.num_classes)


def first_epochs(spec: RunSpec, data: Any, epochs: int, precision: str) -> list[dict[str, Any]]:
    """Test accuracy and lost classes after each of the first epochs."""
    rows: list[dict[str, Any]] = []

    def record(state: dict[str, Any]) -> None:
        recall = recalls(spec, state["models"][0], data)
        rows.append(
            {
                "epoch": state["epoch"],
                "test_accuracy": round(state["history"]["test_accuracy"][-1], 2),
                "lost_classes": int((recall < LOST).sum()),
                "lowest_recall": round(100 * recall.min().item(), 2),
            }
        )
        if len(rows) == epochs:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        train(spec, data, precision=precision, on_epoch=record)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="1-20", help="such as 1-20")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["none", "warmup"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "float32", "bf16"), default="auto")
    args = parser.parse_args()
    path: Path = results_folder() / "lost_classes" / "lost_classes.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    data, device = load_dataset("mnist"), resolve_device()
    precision = resolve_precision(args.precision, device)
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        for variant in args.variants:
            spec = make_spec("mnist", "ce_sr", 0.8, sr=VARIANTS[variant], seed=seed)
            lock = filelock.FileLock(path.with_name(f".{spec.id}.lock"))
            with filelock.FileLock(path.with_name(".csv.lock")):
                done = path.exists() and any(
                    (row["run"], row["precision"]) == (spec.id, precision)
                    for row in csv.DictReader(path.open())
                )
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            with lock:
                if done:
                    continue
                start = time.perf_counter()
                rows = first_epochs(spec, data, args.epochs, precision)
                seconds = round(time.perf_counter() - start, 1)
                for row in rows:
                    row |= {
                        "seed": seed,
                        "variant": variant,
                        "run": spec.id,
                        "precision": precision,
                        "device": device_name(device),
                        "threads": torch.get_num_threads(),
                        "torch": torch.__version__,
                        "seconds": seconds,
                        "commit": code_version()["commit"] or "no commit",
                    }
                with filelock.FileLock(path.with_name(".csv.lock")), path.open("a") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerows(rows)
                print(seed, variant, rows[-1], flush=True)
            lock_file = Path(lock.lock_file)
            lock_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
