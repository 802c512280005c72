"""Where the time of a training step goes, by kind of operation.

    python benchmarks/step.py [--steps 40]

CNN-4 on MNIST's shape and CNN-8 on CIFAR-10's, CE+SR, batch 128, on random images, in the
precision that this machine trains in. A clock around every operation on tensors says what each kind
takes, and a clock around the step, in steps without the other, what all of it does; the rest is the
loss's many small operations, Python and PyTorch's bookkeeping. PyTorch's profiler is of no use
here: its records come to lie between the buffers that we keep, and every step then faults in new
ones. CPU only. Writes ``results/benchmarks/step.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from report import write_rows
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from tried import training_step

from lnlsr_lib.device import device_name, keep_freed_memory, resolve_device, resolve_precision

WARM_UP = 5
# Kinds, by what the operation's name has in it; the first that fits.
KINDS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions": ("convolution",),
    "BatchNorm": ("batch_norm",),
    "pools": ("pool",),
    "linear layers": ("addmm", "mm.default"),
    "ReLU": ("relu", "threshold_backward"),
    "optimiser and clipping": ("sgd", "linalg_vector_norm", "mul_."),
    "casts and copies": ("copy", "add_.", "zero", "fill"),
}
REST = "the rest"


class Clock(TorchDispatchMode):
    """Seconds by kind of operation, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        taken, name = time.perf_counter() - start, str(func)
        kinds = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        self.seconds[next(kinds, REST)] += taken
        return result


def run_case(dataset: str, precision: str, steps: int) -> list[dict[str, object]]:
    """One row for each kind of operation, largest first, in milliseconds a step."""
    step, clock = training_step(dataset, precision), Clock()
    whole = []
    for number in tqdm(range(-WARM_UP, steps), dataset):
        start = time.perf_counter()
        step()
        whole.append(time.perf_counter() - start)
        with clock:
            step()
        if number < 0:
            clock.seconds.clear()
    total = 1e3 * statistics.mean(whole[WARM_UP:])
    kinds = {kind: 1e3 * clock.seconds[kind] / steps for kind in KINDS}
    kinds[REST] = total - sum(kinds.values())
    return [
        {
            "case": dataset,
            "kind": kind,
            "ms_per_step": round(milliseconds, 2),
            "share": round(milliseconds / total, 3),
            "precision": precision,
        }
        for kind, milliseconds in sorted(kinds.items(), key=lambda item: -item[1])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps that are timed")
    steps = parser.parse_args().steps
    keep_freed_memory()
    device = resolve_device("cpu")
    precision = resolve_precision("auto", device)
    machine = {"device": device_name(device), "threads": torch.get_num_threads()}
    rows = [
        row | machine
        for dataset in ("mnist", "cifar10")
        for row in run_case(dataset, precision, steps)
    ]
    write_rows("step", rows)


if __name__ == "__main__":
    main()
