"""The paper's published numbers: all 378 values of its tables, transcribed by a script.

``paper.csv`` was written by ``scripts/transcribe_tables.py`` from the paper's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import isnan
from pathlib import Path

import pandas as pd

__all__ = ["Published", "published", "tables"]


@dataclass(frozen=True)
class Published:
    """One value of the paper: test accuracy in percent, its deviation if given, and its table.

    Table 0 stands for a number that is not the paper's.
    """

    table: int
    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@cache
def tables() -> pd.DataFrame:
    """All values: columns table, dataset, method, noise, noise_rate, mean, std."""
    return pd.read_csv(Path(__file__).with_name("paper.csv"))


@cache
def _by_condition() -> dict[tuple[str, str, str, float], Published]:
    rows = tables()[::-1].fillna({"noise_rate": 0.0})  # of two tables the first one counts
    keys = zip(rows["dataset"], rows["method"], rows["noise"], rows["noise_rate"], strict=True)
    deviations = (None if isnan(std) else std for std in rows["std"])
    return dict(zip(keys, map(Published, rows["table"], rows["mean"], deviations), strict=True))


def published(dataset: str, method: str, noise: str, noise_rate: float) -> Published | None:
    """What the paper reports for this combination, from the first table that has it, or None.

    Args:
        dataset: "mnist", "cifar10", "cifar100" or "webvision".
        method: such as "ce_sr"; see :data:`lnlsr_lib.protocol.METHODS`.
        noise: "clean", "symmetric", "asymmetric"; "lt" or "step" for imbalance; "web".
        noise_rate: its rate, or the imbalance ratio; 0 for clean labels and for "web".
    """
    return _by_condition().get((dataset, method, noise, noise_rate))
