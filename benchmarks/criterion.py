"""SR's step beside the same formula by hand, and what the checks of values cost.

    python benchmarks/criterion.py [--rounds 40] [--compiled]

A step is the value of CE+SR and its gradient. By hand it is three lines around PyTorch's cross
entropy and nothing else. The rows of the checks have a loss beside itself with its checks told to
step aside. Both sides run in turn in one process,
a ratio a round; times are those of the thread, so that other processes matter little. Writes
``results/benchmarks/criterion.csv``; the compiled rows are kept unless they are asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from report import commit
from torch import Tensor, nn
from torch.nn import functional as F

from lnlsr_lib.device import device_name
from lnlsr_lib.losses import build_loss
from lnlsr_lib.regularization import SparseRegularization
from lnlsr_lib.store import results_folder

Function = Callable[[Tensor, Tensor], Tensor]
TAU, P, WEIGHT = 0.5, 0.1, 1.2


def by_hand(unit_logits: bool) -> Function:
    """CE+SR in three lines."""
    cross_entropy = nn.CrossEntropyLoss()

    def objective(z: Tensor, y: Tensor) -> Tensor:
        z = (F.normalize(z, dim=1) if unit_logits else z) / TAU
        norm = z.softmax(dim=1).clamp(1e-7, 1).pow(P).sum(dim=1).mean()
        return cross_entropy(z, y) + WEIGHT * norm  # type: ignore[no-any-return]

    return objective


def yes() -> bool:
    """That code is being compiled: then no check looks at values."""
    return True


def beside(
    ours: Function, other: Function, n: int, k: int, rounds: int, aside: bool = False
) -> tuple[float, float, float]:
    """Microseconds of a step of each, the fastest, and the median ratio of the rounds."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, k, generator=generator, requires_grad=True)
    y = torch.randint(k, (n,), generator=generator)
    repeats = max(2, 4_000_000 // (n * k + 20_000))
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            function = (ours, other)[side]
            step_aside = mock.patch("torch.compiler.is_compiling", yes)
            with step_aside if aside and side else contextlib.nullcontext():
                begin = time.thread_time()
                for _ in range(repeats):
                    z.grad = None
                    function(z, y).backward()
                seconds = time.thread_time() - begin
            if turn:  # the first warms up
                times[side].append(1e6 * seconds / repeats)
    ratios = [mine / theirs for mine, theirs in zip(*times, strict=True)]
    return min(times[0]), min(times[1]), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made_with = [
        device_name(torch.device("cpu")), 1, "float32", torch.__version__,
        commit(),
    ]  # fmt: skip
    header = ["what", "mode", "samples", "classes", "ours_us", "beside_us", "ratio_median"]
    header += ["ratio_of_fastest", "device", "threads", "precision", "torch", "commit"]
    path = results_folder() / "benchmarks" / "criterion.csv"
    rows = []
    for n, k in ((128, 10), (128, 1000), (4096, 10), (4096, 1000)):
        pairs: list[tuple[str, Function, Function, bool]] = []
        for unit in (False, True):
            ours = SparseRegularization(nn.CrossEntropyLoss(), TAU, P, WEIGHT, unit_logits=unit)
            pairs.append(("CE+SR, " + ("unit" if unit else "plain"), ours, by_hand(unit), False))
        if not args.compiled and n * k > 1e6:  # below, what they do instead is no less
            for name in ("ce", "gce", "nce"):
                loss = build_loss(name)
                pairs.append((f"checks of {name}", loss, loss, True))
        for what, ours, other, aside in pairs:
            if args.compiled:
                torch.compiler.reset()
                ours, other = torch.compile(ours), torch.compile(other)
            mine, theirs, ratio = beside(ours, other, n, k, args.rounds, aside)
            mode = "compiled" if args.compiled else "eager"
            figures = [f"{value:.1f}" for value in (mine, theirs)]
            figures += [f"{value:.3f}" for value in (ratio, mine / theirs)]
            rows.append([what, mode, n, k, *figures, *made_with])
            print(*rows[-1][:8], flush=True)
    mode = "compiled" if args.compiled else "eager"
    if path.exists():
        with path.open() as lines:
            rows += [row for row in list(csv.reader(lines))[1:] if row[1] != mode]
    with path.open("w", newline="") as lines:
        csv.writer(lines, lineterminator="\n").writerows(
            [header, *sorted(rows, key=lambda r: r[1] == "compiled")]
        )


if __name__ == "__main__":
    main()
