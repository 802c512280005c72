"""What the record of memorised and corrected labels costs, as a share of the training step.

    python benchmarks/recording.py [--images 6400]

CE+SR at MNIST's shape, batch 128, on random images, in the precision that this machine trains in. A
clock of the thread's own time runs around the record of every step and around the epoch, so that
other work on the machine counts little. Without the record, a step adds up its loss alone; that is
measured beside it, and taken off. CPU only. Writes ``results/benchmarks/recording.csv``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from report import write_rows

from lnlsr_lib import trainer
from lnlsr_lib.cost import made_up
from lnlsr_lib.device import device_name, resolve_device, resolve_precision
from lnlsr_lib.measure import Tally
from lnlsr_lib.protocol import make_spec


class Timed(Tally):
    """The record with a clock around it."""

    seconds = 0.0
    alone = 0.0

    def add(self, batch: Any, logits: Any, loss: Any, clipped: Any) -> None:
        start = time.thread_time()
        super().add(batch, logits, loss, clipped)
        Timed.seconds += time.thread_time() - start
        start = time.thread_time()
        with torch.no_grad():
            torch.zeros(()).add_(loss * len(batch.labels))
        Timed.alone += time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=6400)
    args = parser.parse_args()
    spec = make_spec("mnist", "ce_sr", 0.8).model_copy(update={"epochs": 3})
    data, device, rows = made_up(spec, args.images), resolve_device(), []
    trainer.Tally = Timed  # type: ignore[misc]
    for kind, details in (("as recorded", False), ("with margins", True)):
        stamps: list[tuple[float, float, float]] = []

        def stamp(state: Any, stamps: list[tuple[float, float, float]] = stamps) -> None:
            stamps.append((time.thread_time(), Timed.seconds, Timed.alone))

        trainer.train(spec, data, details=details, on_epoch=stamp)
        epoch, record, alone = (b - a for a, b in zip(stamps[0], stamps[2], strict=True))
        steps = 2 * -(-args.images // spec.batch_size)
        rows.append(
            {
                "kind": kind,
                "microseconds_per_step": round(1e6 * (record - alone) / steps, 1),
                "ms_per_step": round(1e3 * epoch / steps, 2),
                "ratio": round(epoch / (epoch - record), 4),
                "images": args.images,
                "precision": resolve_precision("auto", device),
                "device": device_name(device),
                "threads": torch.get_num_threads(),
            }
        )
    write_rows("recording", rows)


if __name__ == "__main__":
    main()
