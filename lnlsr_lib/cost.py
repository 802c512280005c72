"""What missing runs would cost: a few timed steps on this machine, or a device's FLOP rate."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from lnlsr_lib.checks import check_range
from lnlsr_lib.data import SHAPES, Dataset
from lnlsr_lib.device import device_name, resolve_device, resolve_precision
from lnlsr_lib.models import build_model
from lnlsr_lib.noise import imbalanced_counts
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import StoreError, write_atomically
from lnlsr_lib.trainer import train

__all__ = ["SHAPES", "Cost", "duration", "estimate", "images_of", "made_up", "step_flops"]

TIMED_STEPS = 4
TIMED_TESTS = 256  # images
LARGEST_BATCH = 2**22  # input values; a larger batch is timed by a part of it
# For a device that is not here; both ours, and rough: the share of its peak that convolutions of
# this size reach, and the time of a step's launches.
UTILISATION = 0.3
LAUNCHES = 2e-3  # seconds


@dataclass(frozen=True)
class Cost:
    """What one kind of run costs.

    Attributes:
        spec: one of them; runs: how many are missing.
        seconds: of one run, training and tests.
        specs: all of them.
    """

    spec: RunSpec
    runs: int
    seconds: float
    specs: tuple[RunSpec, ...] = ()

    @property
    def total(self) -> float:
        """Seconds of all of them, one after another."""
        return self.runs * self.seconds


def duration(seconds: float) -> str:
    """Such as 95 s, 17 min, 3.2 h or 12 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def images_of(spec: RunSpec) -> int:
    """How many training images an epoch of ``spec`` has."""
    whole, *_, classes = SHAPES[spec.dataset]
    size = spec.train_size or whole
    if spec.imbalance is None:
        return size
    return sum(imbalanced_counts([size // classes] * classes, spec.imbalance, spec.imbalance_ratio))


def step_flops(spec: RunSpec) -> float:
    """Floating-point operations of a training step's matrix work: two for each multiply-add."""
    *_, channels, side, classes = SHAPES[spec.dataset]
    side = spec.side or side
    model = build_model(spec.model, classes, 0, spec.side)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(2, channels, side, side)).sum().backward()
    networks = 1 if spec.forget_rate is None else 2
    return counter.get_total_flops() * spec.batch_size / 2 * networks


def made_up(spec: RunSpec, size: int) -> Dataset:
    """Random images and labels of the data set's shape; ``size`` to train on."""
    *_, channels, side, classes = SHAPES[spec.dataset]
    tests = min(TIMED_TESTS, LARGEST_BATCH // (channels * side**2))
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> torch.Tensor:
        shape = (n, channels, side, side)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    train, test = ((images(n), torch.arange(n) % classes) for n in (size, tests))
    half = (0.5,) * channels
    return Dataset(spec.dataset, *train, *test, classes, half, half, origin="made up")


def _measure(spec: RunSpec, device: str, precision: str) -> list[float]:
    """Seconds of a step and of the test of one image: two short epochs, the second one counts."""
    *_, channels, side, _ = SHAPES[spec.dataset]
    batch = min(spec.batch_size, max(2, LARGEST_BATCH // (channels * side**2)))
    changes: dict[str, Any] = {"train_size": None, "imbalance": None, "imbalance_ratio": 1.0}
    changes |= {"noise": "clean", "noise_rate": 0.0, "human_labels": None, "transition": None}
    short = spec.model_copy(update=changes | {"batch_size": batch, "epochs": 2})
    stamps: list[float] = []

    def stamp() -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        stamps.append(time.perf_counter())

    data = made_up(short, TIMED_STEPS * batch)
    result = train(short, data, device=device, precision=precision, on_batch=stamp)
    step = (stamps[-1] - stamps[TIMED_STEPS]) / (TIMED_STEPS - 1)
    rest = (result.history["seconds"][1] or 0) - TIMED_STEPS * step
    return [step * spec.batch_size / batch, max(0.0, rest) / len(data.test_labels)]


def timings_file() -> Path:
    """Where timings are kept, in the user's cache folder."""
    return Path(platformdirs.user_cache_path("lnlsr")) / "timings.json"


def _kept_timings() -> dict[str, list[float]]:
    """Timings by what was timed, each a step's and a test image's seconds; none for a bad file."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads(timings_file().read_bytes()).items()
        return {key: [a, b] for key, (a, b) in found if 0 < a < 1e6 and 0 <= b < 1e6}
    return {}


def _keep_timings(timings: dict[str, list[float]]) -> None:
    """Write them beside those that another process may have kept; not at all where one cannot."""
    with contextlib.suppress(StoreError):
        content = json.dumps(_kept_timings() | timings, indent=1).encode()
        write_atomically(timings_file(), content)


def estimate(
    specs: Sequence[RunSpec],
    *,
    device: str = "auto",
    precision: str = "auto",
    tflops: float | None = None,
    again: bool = False,
    kept: bool = True,
    progress: bool = False,
) -> list[Cost]:
    """What ``specs`` would cost, by kind: those with the same network, data and budget are one.

    On this machine a few steps of each kind are timed, with the trainer itself on made-up images;
    reading WebVision's files is not in it. Timings are kept in the user's cache folder, by device,
    precision, version of PyTorch, threads and kind. For another device, the matrix work over
    ``UTILISATION`` of its rate, and ``LAUNCHES`` a step: rough, and a lower bound where the network
    is small.

    Args:
        specs: the runs that are missing.
        device, precision: see :func:`lnlsr_lib.trainer.train`.
        tflops: peak rate of another device, 1e12 operations per second, in [0.001, 1e6]; None for
            this machine.
        again: time anew what was timed before.
        kept: keep the timings, and take those that were kept.
        progress: show a bar on standard error while kinds are timed.

    Raises:
        ValueError: a device or precision that is not there, or a bad ``tflops``.
    """
    if tflops is not None:
        check_range("tflops", tflops, 1e-3, 1e6)
    where = resolve_device(device)
    resolved = resolve_precision(precision, where)
    place = f"{device_name(where)}, {resolved}, torch {torch.__version__}"
    place += f", {torch.get_num_threads()} threads"
    first: dict[str, RunSpec] = {}  # by what is timed
    kinds: dict[tuple[str, int, int], list[RunSpec]] = {}  # by that, epochs and images
    for spec in specs:
        key = (spec.dataset, spec.model, spec.side, spec.batch_size, spec.forget_rate is None)
        name = f"{place}, {key}"
        first.setdefault(name, spec)
        kinds.setdefault((name, spec.epochs, images_of(spec)), []).append(spec)
    timed: dict[str, list[float]] = {}
    if tflops is None:
        if kept and not again:
            timed = _kept_timings()
        missing = [name for name in first if name not in timed]
        for name in tqdm(missing, "timing", unit="kind", disable=not (progress and missing)):
            timed[name] = _measure(first[name], device, resolved)
            if kept:
                _keep_timings({name: timed[name]})
    else:
        for name, spec in first.items():
            step = step_flops(spec) / (UTILISATION * tflops * 1e12) + LAUNCHES
            timed[name] = [step, step / 3 / spec.batch_size]
    costs = []
    for (name, epochs, images), group in kinds.items():
        step, test = timed[name]
        epoch = -(-images // group[0].batch_size) * step + SHAPES[group[0].dataset][1] * test
        costs.append(Cost(group[0], len(group), epochs * epoch, tuple(group)))
    return costs
