"""What was tried to make a step faster, beside what is in use, so that nobody need guess.

    python benchmarks/tried.py

Each alternative in turn with what is in use, batch 128: medians over the rounds. Operations in this
process; what is set before a process starts, or is about several, in processes that start together.
`torch.compile` needs a C++ compiler, and is left out without one. Writes
``results/benchmarks/tried.csv``.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from unittest import mock

import torch
from report import write_rows
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lnlsr_lib.cost import SHAPES
from lnlsr_lib.device import device_name, keep_freed_memory, resolve_device
from lnlsr_lib.models import build_model, flatten, norm_pool
from lnlsr_lib.objective import build_criterion
from lnlsr_lib.protocol import make_spec

ROUNDS, PROCESS_ROUNDS = 40, 5
Action = Callable[[], object]


def training_step(dataset: str, precision: str, *, compiled: bool = False) -> Action:
    """One step of CE+SR on random images, as the trainer makes it."""
    spec = make_spec(dataset, "ce_sr", 0.6)
    *_, channels, side, classes = SHAPES[dataset]
    model = build_model(spec.model, classes, 0).to(memory_format=torch.channels_last)
    call = torch.compile(model) if compiled else model
    criterion = build_criterion(spec)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    images = torch.randn(128, channels, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (128,))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        with autocast:
            logits = call(images)
        loss = criterion(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def first_convolution(dtype: torch.dtype, *, unfolded: bool) -> Action:
    """CNN-4's first convolution, forward and backward; or as unfold and a matrix product."""
    images = torch.randn(128, 1, 28, 28).to(dtype)
    layer = nn.Conv2d(1, 32, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
    weight, bias = layer.weight, layer.bias
    gradient = torch.randn(128, 32, 28, 28).to(dtype).contiguous(memory_format=torch.channels_last)
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, 32)

    def convolve() -> None:
        F.conv2d(images, weight, bias, padding=1).backward(gradient)

    def multiply() -> None:
        patches = F.pad(images[:, 0], (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
        torch.addmm(bias, patches.reshape(-1, 9), weight.flatten(1).t()).backward(rows)

    return multiply if unfolded else convolve


class StridedPool(torch.autograd.Function):
    """2x2 max-pool by comparing strided views; the same values and gradients as PyTorch's."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        a, b, c, d = (x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
        top, bottom = torch.maximum(a, b), torch.maximum(c, d)
        ctx.save_for_backward(b > a, d > c, bottom > top)
        return torch.maximum(top, bottom)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        right_top, right_bottom, below = ctx.saved_tensors
        n, c, h, w = gradient.shape
        out = torch.empty(n, c, 2 * h, 2 * w, dtype=gradient.dtype).contiguous(
            memory_format=torch.channels_last
        )
        zero = gradient.new_zeros(())
        top = torch.where(below, zero, gradient)
        bottom = gradient - top
        out[:, :, ::2, ::2] = torch.where(right_top, zero, top)
        out[:, :, ::2, 1::2] = torch.where(right_top, top, zero)
        out[:, :, 1::2, ::2] = torch.where(right_bottom, zero, bottom)
        out[:, :, 1::2, 1::2] = torch.where(right_bottom, bottom, zero)
        return out


def pooling(call: Callable[[Tensor], Tensor], layout: torch.memory_format) -> Action:
    """Forward and backward of a pool on the first block's output, bf16."""
    x = torch.randn(128, 32, 28, 28).bfloat16().contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(128, 32, 14, 14).bfloat16().contiguous(memory_format=layout)
    return lambda: call(x).backward(gradient)


def block(call: Callable[[Tensor, nn.BatchNorm2d], Tensor], precision: torch.dtype) -> Action:
    """BatchNorm, pool and ReLU of CNN-4's first block, forward and backward."""
    x = torch.randn(128, 32, 28, 28).to(precision).contiguous(memory_format=torch.channels_last)
    x, norm = x.requires_grad_(), nn.BatchNorm2d(32)
    gradient = torch.randn(128, 32, 14, 14).to(x).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        x.grad = None
        F.relu(call(x, norm)).backward(gradient)

    return step


def flattening(call: Callable[[Tensor], Tensor]) -> Action:
    """From the second pool of CNN-4 to its linear layer, forward and backward, bf16."""
    x = torch.randn(128, 64, 14, 14).bfloat16().contiguous(memory_format=torch.channels_last)
    x, gradient = x.requires_grad_(), torch.randn(128, 3136).bfloat16()

    def step() -> None:
        x.grad = None
        call(F.relu(F.max_pool2d(x, 2))).backward(gradient)

    return step


def seconds_a_step(
    threads: int, steps: int, answers: multiprocessing.Queue[float], together: Barrier
) -> None:
    """In a process of its own: seconds a step of CNN-4 in bf16 with so many threads."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    step = training_step("mnist", "bf16")
    for _ in range(10):
        step()
    together.wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    answers.put((time.perf_counter() - start) / steps)


def side_by_side(processes: int, threads: int, steps: int = 200, **environment: str) -> float:
    """Milliseconds a step, over all of the processes that train at once, in an environment."""
    context = multiprocessing.get_context("spawn")
    answers, together = context.Queue(), context.Barrier(processes)
    given = (threads, steps, answers, together)
    children = [context.Process(target=seconds_a_step, args=given) for _ in range(processes)]
    with mock.patch.dict(os.environ, environment):
        for child in children:
            child.start()
    each = [answers.get(timeout=600) for _ in children]
    for child in children:
        child.join()
    return 1e3 * statistics.mean(each) / processes


def pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def norm_then_pool(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.max_pool2d(norm(x), 2)


# What could be set before the start, on Linux.
ENVIRONMENTS = {
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "threads bound to cores": {"OMP_PROC_BIND": "true"},
    "threads that sleep and do not spin": {"OMP_WAIT_POLICY": "passive"},
}


def main() -> None:
    keep_freed_memory()
    device = resolve_device("cpu")
    last, first = torch.channels_last, torch.contiguous_format
    bf16, float32 = torch.bfloat16, torch.float32
    pairs: list[tuple[str, str, Action, Action]] = [
        (
            "first convolution as unfold and matrix product, float32",
            "convolution",
            first_convolution(float32, unfolded=True),
            first_convolution(float32, unfolded=False),
        ),
        (
            "first convolution as unfold and matrix product, bf16",
            "convolution",
            first_convolution(bf16, unfolded=True),
            first_convolution(bf16, unfolded=False),
        ),
        (
            "max-pool from strided views, bf16",
            "PyTorch's",
            pooling(StridedPool.apply, last),
            pooling(pool, last),
        ),
        ("max-pool in NCHW, bf16", "channels last", pooling(pool, first), pooling(pool, last)),
        (
            "BatchNorm, then pool, float32",
            "pool first",
            block(norm_then_pool, float32),
            block(norm_pool, float32),
        ),
        (
            "BatchNorm, then pool, bf16",
            "pool first",
            block(norm_then_pool, bf16),
            block(norm_pool, bf16),
        ),
        (
            "flattening as (C, H, W), bf16",
            "as (H, W, C)",
            flattening(lambda x: x.flatten(1)),
            flattening(flatten),
        ),
    ]
    if shutil.which("g++") or shutil.which("clang++"):
        for dataset, precision in (("mnist", "float32"), ("mnist", "bf16"), ("cifar10", "bf16")):
            pairs.append(
                (
                    f"torch.compile, {SHAPES[dataset][2]}x{SHAPES[dataset][3]} images, {precision}",
                    "eager",
                    training_step(dataset, precision, compiled=True),
                    training_step(dataset, precision),
                )
            )
    machine = {"device": device_name(device), "threads": torch.get_num_threads()}
    rows = []
    for name, beside, tried, used in tqdm(pairs):
        for _ in range(5):
            tried(), used()
        times: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            tried()
            middle = time.perf_counter()
            used()
            times.append((middle - start, time.perf_counter() - middle))
        other, ours = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        rows.append({"tried": name, "beside": beside, "tried_ms": other, "beside_ms": ours})
    threads = torch.get_num_threads()
    if threads > 1:
        usual = partial(side_by_side, 1, threads)
        pairs_of_processes = [
            (
                f"one process of {threads} threads, a step of CNN-4, bf16",
                f"{threads} processes of one, a step of any",
                usual,
                partial(side_by_side, threads, 1),
            )
        ]
        for name, environment in ENVIRONMENTS.items():
            tried_so = partial(side_by_side, 1, threads, **environment)
            pairs_of_processes.append(
                (f"{name}, a step of CNN-4, bf16", "as they are", tried_so, usual)
            )
        for name, beside, tried, used in tqdm(pairs_of_processes):
            times = [(tried(), used()) for _ in range(PROCESS_ROUNDS)]
            other, ours = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append({"tried": name, "beside": beside, "tried_ms": other, "beside_ms": ours})
    for row in rows:
        row["ratio"] = round(row["tried_ms"] / row["beside_ms"], 2)
        row["tried_ms"], row["beside_ms"] = round(row["tried_ms"], 2), round(row["beside_ms"], 2)
    write_rows("tried", [row | machine for row in rows])


if __name__ == "__main__":
    main()
