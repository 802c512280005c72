"""The paper's published numbers: all 378 values of its tables, transcribed by a script.

``paper.csv`` was written by ``scripts/transcribe_tables.py`` from the paper's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import pandas as pd

__all__ = ["Published", "published", "tables"]


@dataclass(frozen=True)
class Published:
    """One value of the paper: test accuracy in percent, its deviation if given, and its table."""

    table: int
    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@cache
def tables() -> pd.DataFrame:
    """All values: columns table, dataset, method, noise, noise_rate, mean, std."""
    with (files("lnlsr_lib") / "paper.csv").open() as file:
        return pd.read_csv(file)


def published(dataset: str, method: str, noise: str, noise_rate: float) -> Published | None:
    """What the paper reports for this combination, from the first table that has it, or None.

    Args:
        dataset: "mnist", "cifar10", "cifar100" or "webvision".
        method: such as "ce_sr"; see :data:`lnlsr_lib.protocol.METHODS`.
        noise: "clean", "symmetric", "asymmetric"; "lt" or "step" for imbalance; "web".
        noise_rate: its rate, or the imbalance ratio; 0 for clean labels and for "web".
    """
    rows = tables().fillna({"noise_rate": 0.0})
    rows = rows[
        (rows.dataset == dataset)
        & (rows.method == method)
        & (rows.noise == noise)
        & ((rows.noise_rate - noise_rate).abs() < 1e-9)
    ]
    if rows.empty:
        return None
    first = rows.iloc[0]
    std = None if pd.isna(first["std"]) else float(first["std"])
    return Published(int(first.table), float(first["mean"]), std)
