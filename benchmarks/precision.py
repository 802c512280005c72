"""Bf16 beside float32 on this machine: which of them trains faster here.

    python benchmarks/precision.py

A step of CE+SR, batch 128, on random images (CNN-4 on MNIST's shape, CNN-8 on CIFAR-10's), and a
product of two 1024x1024 matrices; in float32 and in bf16 in turn, after a few that do not count,
and the medians. Writes this machine's rows of ``results/benchmarks/precision.csv``, and leaves
those of others.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from itertools import pairwise

import torch
from report import write_rows
from tqdm import tqdm
from tried import Action, training_step

from lnlsr_lib.device import device_name, keep_freed_memory, resolve_device, resolve_precision

WARM_UP, ROUNDS = 3, 25
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512_f": "AVX512"}
SIDE = 1024


def product(dtype: torch.dtype) -> Action:
    matrix = torch.randn(SIDE, SIDE).to(dtype)
    return partial(torch.mm, matrix, matrix)


def main() -> None:
    keep_freed_memory()
    cpu, can = resolve_device("cpu"), torch.cpu.get_capabilities()
    machine = {
        "device": device_name(cpu),
        "instructions": next((name for key, name in INSTRUCTIONS.items() if can.get(key)), "none"),
        "threads": torch.get_num_threads(),
        "auto": resolve_precision("auto", cpu),
    }
    cases = {
        "matrix product": [product(dtype) for dtype in PRECISIONS.values()],
        "CNN-4, 1x28x28": [training_step("mnist", name) for name in PRECISIONS],
        "CNN-8, 3x32x32": [training_step("cifar10", name) for name in PRECISIONS],
    }
    rows = []
    for case, actions in cases.items():
        times: list[list[float]] = []
        for _ in tqdm(range(WARM_UP + ROUNDS), case):
            stamps = [time.perf_counter()]
            for action in actions:
                action()
                stamps.append(time.perf_counter())
            times.append([1e3 * (end - begin) for begin, end in pairwise(stamps)])
        float32, bf16 = zip(*times[WARM_UP:], strict=True)
        rows.append(
            machine
            | {
                "case": case,
                "float32_ms": round(statistics.median(float32), 2),
                "bf16_ms": round(statistics.median(bf16), 2),
                "speedup": round(statistics.median(map(float.__truediv__, float32, bf16)), 2),
            }
        )
    write_rows("precision", rows, keys=("device", "instructions", "threads", "case"))


if __name__ == "__main__":
    main()
