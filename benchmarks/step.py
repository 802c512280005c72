"""Where the time of a training step goes: by PyTorch's profiler, by kind of operation.

    python benchmarks/step.py [--steps 40]

CNN-4 on MNIST's shape and CNN-8 on CIFAR-10's, CE+SR, batch 128, on random images, in the
precision that this machine trains in. The profiler says how the time divides, by operations' own
time without what they call; a clock without the profiler says how long a step is. "The rest" is the
loss's small operations, casts, Python and PyTorch's bookkeeping, which the profiler makes look
somewhat larger than they are. Writes ``results/benchmarks/step.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from report import write_rows
from torch.profiler import ProfilerActivity, profile, schedule
from tqdm import tqdm
from tried import training_step

from lnlsr_lib.trainer import device_name, keep_freed_memory, resolve_device, resolve_precision

WARM_UP = 5
# Kinds, by what the operation's name has in it; the first that fits.
KINDS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions": ("convolution",),
    "BatchNorm": ("batch_norm",),
    "pools": ("pool",),
    "linear layers": ("addmm", "aten::mm"),
    "ReLU": ("relu", "clamp_min", "threshold_backward"),
    "optimiser and clipping": ("sgd", "SGD", "linalg_vector_norm", "aten::mul_"),
    "filling and copying": ("fill_", "zero", "copy_", "add_"),
}


def kind_of(operation: str) -> str:
    """The kind that an operation's time is counted with."""
    fits = (kind for kind, parts in KINDS.items() if any(part in operation for part in parts))
    return next(fits, "the rest")


def run_case(dataset: str, precision: str, steps: int) -> list[dict[str, object]]:
    """One row for each kind of operation, largest first."""
    step = training_step(dataset, precision)
    times = []
    for _ in tqdm(range(WARM_UP + steps), f"{dataset}, clock"):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    milliseconds = 1e3 * statistics.median(times[WARM_UP:])
    plan = schedule(wait=0, warmup=WARM_UP, active=steps)
    with profile(activities=[ProfilerActivity.CPU], schedule=plan) as profiler:
        for _ in tqdm(range(WARM_UP + steps), f"{dataset}, profiler"):
            step()
            profiler.step()
    own: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = kind_of(event.key)
        own[kind] = own.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(own.values())
    return [
        {
            "case": dataset,
            "kind": kind,
            "share": round(microseconds / total, 3),
            "ms_per_step": round(milliseconds * microseconds / total, 2),
            "precision": precision,
        }
        for kind, microseconds in sorted(own.items(), key=lambda item: -item[1])
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
