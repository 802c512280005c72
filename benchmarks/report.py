"""What the benchmarks share: timing our epoch, and results/benchmarks/<name>.csv."""

from __future__ import annotations

import time

import pandas as pd
import torch

from lnlsr_lib.data import Dataset
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import code_version, results_folder, write_atomically
from lnlsr_lib.trainer import train


def epoch_seconds(spec: RunSpec, data: Dataset) -> float:
    """Seconds of the training part of the last of our epochs.

    From the first step's end to the last's, scaled to all steps: leaves the set-up out.
    """
    stamps: list[float] = []

    def stamp() -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        stamps.append(time.perf_counter())

    train(spec, data, on_batch=stamp)
    stamps = stamps[-(len(stamps) // spec.epochs) :]
    return (stamps[-1] - stamps[0]) * len(stamps) / (len(stamps) - 1)


def commit() -> str:
    """The code's, short, with a + if it was changed since."""
    return (code_version()["commit"] or "no commit")[:8] + "+" * bool(code_version()["modified"])


def write_rows(name: str, rows: list[dict[str, object]], keys: tuple[str, ...] = ()) -> None:
    """Store the rows, with the code's commit and PyTorch's version in each, and print them.

    With ``keys`` they take the place of those with the same values there, and the others stay.
    """
    table = pd.DataFrame([row | {"torch": torch.__version__, "commit": commit()} for row in rows])
    path = results_folder() / "benchmarks" / f"{name}.csv"
    if keys and path.exists():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(list(keys), keep="last")
    write_atomically(path, table.to_csv(index=False).encode())
    print(table.T.to_string())
    print(path)
