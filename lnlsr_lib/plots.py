"""One plotting style for all figures, and one way to write them to disk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lnlsr_lib.protocol import METHODS, method_name
from lnlsr_lib.store import StoredRun, write_atomically

__all__ = ["curves", "draw_curves", "save_figure", "title", "use_style"]

# A base loss has one colour everywhere, dashed; its version with SR has the same, solid.
_BASES = [method for method in METHODS if not method.endswith("_sr")]
_COLOURS = dict(zip(_BASES, sns.color_palette("colorblind", len(_BASES)), strict=True))


def use_style() -> None:
    """Set seaborn's and matplotlib's defaults for this project, in this process."""
    sns.set_theme(context="paper", style="whitegrid", font_scale=1.1)
    mpl.rcParams.update({"svg.hashsalt": "lnlsr", "figure.dpi": 110, "savefig.dpi": 200})


def curves(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """The histories of ``runs`` in one long table: method, seed, epoch (from 1), each series.

    Raises:
        ValueError: two runs of one method and seed, which would be drawn as one.
    """
    if len({(run.spec.method, run.spec.seed) for run in runs}) != len(runs):
        raise ValueError("runs must differ in method or seed; draw other conditions apart")
    tables = [
        pd.DataFrame(run.history).assign(
            method=run.spec.method, seed=run.spec.seed, epoch=range(1, run.spec.epochs + 1)
        )
        for run in runs
    ]
    table = pd.concat(tables, ignore_index=True)
    first = ["method", "seed", "epoch"]
    return table[first + [name for name in table if name not in first]]


def draw_curves(axes: Axes, table: pd.DataFrame, series: str) -> None:
    """Draw one line per method: the mean over seeds by epoch, and its range as a band.

    Args:
        axes: where to draw.
        table: from :func:`curves`.
        series: the column to draw, such as "test_accuracy".
    """
    for method, rows in table.groupby("method", sort=False):
        by_epoch = rows.groupby("epoch")[series]
        mean = by_epoch.mean()
        colour = _COLOURS.get(str(method).removesuffix("_sr"), "black")
        dashes = "-" if str(method).endswith("_sr") else "--"
        axes.plot(mean.index, mean, dashes, color=colour, label=method_name(str(method)))
        if rows.seed.nunique() > 1:
            axes.fill_between(
                mean.index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.2, lw=0
            )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def title(text: str, runs: Sequence[StoredRun]) -> str:
    """``text``, with the profile named behind it when it is not the paper's own."""
    spec = runs[0].spec
    return (
        text
        if spec.profile == "paper"
        else (f"{text} — reduced run: profile {spec.profile}, {spec.dataset}, {spec.epochs} epochs")
    )


def save_figure(figure: Figure, table: pd.DataFrame, name: str, folder: Path, profile: str) -> Path:
    """Write a figure and its data: ``<folder>/<name>/<name>.{png,svg,pdf,csv}``.

    A reduced profile is named in the file (``fig3-lite.png``), so it never takes the place of the
    real one. The same figure gives the same bytes, so that regenerating changes nothing.

    Args:
        figure: matplotlib's figure.
        table: the data behind it.
        name: such as "fig3".
        folder: the results folder.
        profile: "paper", "lite" or "smoke".

    Returns:
        The path without its ending.

    Raises:
        lnlsr_lib.store.StoreError: a file cannot be written.
    """
    stem = folder / name / (name if profile == "paper" else f"{name}-{profile}")
    for ending, no_date in (
        ("png", {"Software": None}),
        ("svg", {"Date": None}),
        ("pdf", {"CreationDate": None}),
    ):
        content = io.BytesIO()
        figure.savefig(content, format=ending, bbox_inches="tight", metadata=no_date)
        write_atomically(stem.with_name(f"{stem.name}.{ending}"), content.getvalue())
    write_atomically(stem.with_name(f"{stem.name}.csv"), table.to_csv(index=False).encode())
    return stem
