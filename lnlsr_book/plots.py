"""One plotting style for all figures, panels for a page of any width, files for download."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from lnlsr_book.report import ENDINGS, Cell, Html, agreement
from lnlsr_lib.protocol import METHODS, method_name
from lnlsr_lib.store import StoredRun, write_atomically

# fmt: off
__all__ = [
    "curves", "draw_beside", "draw_curves", "draw_embedding", "finals", "panels", "save_figure",
    "stored_picture",
]
# fmt: on

# A base loss has one colour and one marker everywhere, dashed and open; its version with SR has
# the same, solid and filled. The colours hold on white and on black, and for the colour-blind.
BASES = [method for method in METHODS if not method.endswith("_sr")]
MARKERS = "os^DvPXh"
COLOURS = ["#0077bb", "#d97706", "#009e73", "#cc3311", "#a05ab4", "#8a6d3b", "#7f7f7f", "#33a0d6"]
STYLES = dict(zip(BASES, zip(COLOURS, MARKERS, strict=True), strict=True))
OTHER = ("#7f7f7f", ".")
Draw = Callable[[Axes, Any], object]  # puts the panel of a key on axes
Keys = Mapping[str, Any]  # what to draw, by the panel's title
INK = "#161718"  # on a page it becomes the colour of the text there
PANEL = (3.7, 2.6)  # inches
INSIDE = (0.18, 0.19, 0.58, 0.69)  # the axes in their panel: left, bottom, width, height


def _use_style() -> None:
    """Set seaborn's and matplotlib's defaults for this project, in this process."""
    look = dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK)
    look |= {"axes.labelcolor": INK, "axes.edgecolor": INK, "svg.hashsalt": "lnlsr"}
    look |= {"grid.color": "#8a8a8a", "grid.alpha": "0.35"}
    sns.set_theme(context="paper", style="whitegrid", font_scale=1.1, rc=look)


def curves(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """The histories of ``runs`` in one long table: each series by epoch, and whose it is."""
    tables = [
        pd.DataFrame(_whose(run) | {"epoch": range(1, run.spec.epochs + 1)} | run.history)
        for run in runs
    ] or [pd.DataFrame({"id": []})]
    # On clean labels nothing is memorised: None becomes NaN.
    return pd.concat(tables, ignore_index=True).infer_objects()


def finals(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row a run: whose it is, and its test accuracy after the last epoch and at best."""
    names = ("final_accuracy", "best_accuracy")
    rows = [_whose(run) | {name: getattr(run, name) for name in names} for run in runs]
    return pd.DataFrame(rows or {"id": []})


def _whose(run: StoredRun) -> dict[str, Any]:
    names = ("dataset", "condition", "method", "seed", "profile")
    whose = {name: getattr(run.spec, name) for name in names}
    return whose | {"precision": run.provenance.get("precision"), "id": run.spec.id}


def draw_curves(axes: Axes, lines: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw lines by epoch, each with its name at its end: the mean over seeds, each seed thinly.

    Args:
        axes: where to draw; its limits in y should be set.
        lines: the values of every seed, (S, E), by a method such as "ce_sr", which has its style
            and its name; or by any other name, for a sweep. Those without seeds are left out; if
            all are, it is said so.
    """
    ends = []
    for i, (name, values) in enumerate(lines.items()):
        if not len(values):
            continue
        base = name.removesuffix("_sr")
        shade = mpl.colors.to_hex(mpl.colormaps["viridis"](0.85 * i / max(1, len(lines) - 1)))
        colour, marker = STYLES.get(base, (shade, MARKERS[i % len(MARKERS)]))
        solid, name = base != name or base not in STYLES, METHODS.get(name, name)
        seeds = np.asarray(values, dtype=float)  # (S, E); None becomes nan
        mean, epochs = seeds.mean(axis=0), np.arange(1, seeds.shape[1] + 1)
        if len(seeds) > 1:
            axes.plot(epochs, seeds.T, lw=0.6, alpha=0.5, color=colour)
            axes.plot([epochs[-1]] * len(seeds), seeds[:, -1], "o", ms=2.5, color=colour)
        form: dict[str, Any] = {"marker": marker, "ms": 4, "markevery": max(1, len(epochs) // 7)}
        form |= {"ls": "-" if solid else "--", "markerfacecolor": colour if solid else "none"}
        axes.plot(epochs, mean, color=colour, lw=1.4, label=name, **form)
        ends.append((mean[-1], epochs[-1], name, colour))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if not ends:
        axes.text(0.5, 0.5, "not run", ha="center", transform=axes.transAxes)
    _label_ends(axes, sorted(end for end in ends if np.isfinite(end[0])))


def _label_ends(axes: Axes, ends: Sequence[tuple[float, int, str, str]]) -> None:
    """Write each line's name right of its end, none over another; ``ends`` from below."""
    low, high = axes.get_ylim()
    steps = 0.085 * (high - low) * np.arange(len(ends))
    pushed_up = np.maximum.accumulate([value for value, *_ in ends] - steps) + steps
    at = np.minimum(pushed_up, high - steps[::-1])
    for y, (value, epoch, name, colour) in zip(at, ends, strict=True):
        arrow = {"arrowstyle": "-", "lw": 0.5, "color": colour, "shrinkA": 1, "shrinkB": 1}
        arrow["relpos"] = (0, 0.5)  # from the middle of the name's left edge
        look: dict[str, Any] = {"va": "center", "color": colour, "fontsize": "small"}
        look |= {"xytext": (1.06, y), "textcoords": ("axes fraction", "data")}
        look |= {"fontweight": "bold", "annotation_clip": False, "arrowprops": arrow}
        axes.annotate(name, (epoch, value), **look)


def draw_beside(axes: Axes, cells: Sequence[Cell]) -> None:
    """One row a method: the paper's accuracy as a diamond on what agrees with it, our seeds dots.

    Args:
        axes: where to draw.
        cells: of one condition.
    """
    left, bottom, width, height = axes.get_position().bounds  # names are longer than numbers
    axes.set_position((left + 0.2 * width, bottom, 1.1 * width, height))
    for y, cell in enumerate(cells):
        colour, _ = STYLES.get(cell.spec.method.removesuffix("_sr"), OTHER)
        if cell.paper is not None:
            axes.errorbar(
                cell.paper.mean, y, xerr=agreement(cell.paper), fmt="D", color=INK, mfc="none"
            )
        final = [run.final_accuracy for run in cell.runs]
        inner = colour if cell.spec.profile == "paper" else "none"
        axes.plot(final, [y] * len(final), "o", ms=5, color=colour, markerfacecolor=inner)
    if not any(cell.runs or cell.paper for cell in cells):
        axes.text(0.5, 0.5, "not run", ha="center", transform=axes.transAxes)
    axes.set_yticks(range(len(cells)), [method_name(cell.spec.method) for cell in cells])
    axes.set(ylim=(len(cells) - 0.4, -0.6), xlabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))


def draw_embedding(
    axes: Axes, points: ArrayLike, labels: ArrayLike, nothing: str = "not run"
) -> None:
    """Scatter points in the colour of their true class, and write each class at its median.

    Args:
        axes: where to draw.
        points: (N, 2); none at all where nothing is stored, or no labels are at hand.
        labels: (N,), integers.
        nothing: what to say where there are no points.
    """
    axes.set(xticks=[], yticks=[])
    left, bottom, width, height = axes.get_position().bounds  # no labels: there is more room
    axes.set_position((left - 0.2 * width, bottom - 0.15 * height, 1.5 * width, 1.15 * height))
    xy, classes = np.asarray(points, dtype=float).reshape(-1, 2), np.asarray(labels, dtype=int)
    if len(xy) == 0 or len(xy) != len(classes):
        axes.text(0.5, 0.5, nothing, ha="center", transform=axes.transAxes)
        return
    palette = np.array(sns.color_palette("husl", classes.max() + 1))
    look: dict[str, Any] = {"linewidths": 0, "alpha": 0.6, "rasterized": True}
    axes.scatter(xy[:, 0], xy[:, 1], s=2, c=palette[classes], **look)
    for label in np.unique(classes):
        x, y = np.median(xy[classes == label], axis=0)
        box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": palette[label]}
        middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
        axes.text(x, y, str(label), color="black", bbox=box, **middle)


def _svg(figure: Figure, alt: str) -> str:
    """The figure as an element of a page, in the colour of the text around it."""
    content = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(content, format="svg", transparent=True, dpi=130, metadata={"Date": None})
    text = content.getvalue().decode()
    box, (_, body) = re.search(r'viewBox="[^"]*"', text), text.split("</metadata>", 1)
    body = re.sub(r"\n +", "\n", body).replace(INK, "currentColor")
    head = f'<svg class="panel" role="img" aria-label="{html.escape(alt)}"'
    return f"{head} {box[0] if box else ''}>{body}"


def panels(
    draw: Draw, keys: Keys, *, caption: str, alt: str, columns: int = 3, heading: str = ""
) -> tuple[Figure, Html]:
    """Draw the panels of a figure twice: in one figure for files, and apart for a page.

    On the page they lie beside one another where there is room, and in the colours of its theme.

    Args:
        draw: puts a panel on axes: ``draw(axes, key)``.
        keys: the key of each panel, by its title; one or more.
        caption: what the figure shows, in sentences; HTML.
        alt: a sentence for those who do not see it; the panel's title is put before it.
        columns: of the file.
        heading: over the file's panels.

    Raises:
        ValueError: no panels, or a caption or alt text that is no sentence.
    """
    for name, text in (("caption", caption), ("alt", alt)):
        if len(text.split()) < 4 or not text.endswith("."):
            raise ValueError(f"{name} must be a sentence that says what is seen, got {text!r}")
    if not keys:
        raise ValueError("keys must be one or more")
    _use_style()
    columns, parts = min(columns, len(keys)), []
    rows = -(-len(keys) // columns)
    whole = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows))
    places = whole.subfigures(rows, columns, squeeze=False).flat
    for place, (name, key) in zip(places, keys.items(), strict=False):
        part = Figure(figsize=PANEL)
        for axes in (place.add_axes(INSIDE), part.add_axes(INSIDE)):
            axes.set_title(name, fontsize="medium")
            draw(axes, key)
        parts.append(_svg(part, f"{name}: {alt}"))
    whole.suptitle(heading, y=1, va="bottom")
    inner = "\n".join(parts)
    return whole, Html(
        f'<figure class="panels"><div style="--columns:{columns}">{inner}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def stored_picture(name: str, folder: Path, alt: str, whence: str) -> Html:
    """A figure as it was last written, for a machine that cannot draw it; or nothing.

    Args:
        name: of its files, such as "fig5".
        folder: the results folder.
        alt: a sentence for those who do not see it.
        whence: what to say of it; HTML.
    """
    path = folder / name / f"{name}.png"
    if not path.exists():
        return Html("")
    content = base64.b64encode(path.read_bytes()).decode()
    return Html(
        f'<figure><img src="data:image/png;base64,{content}" alt="{html.escape(alt)}">'
        f"<figcaption>{whence}</figcaption></figure>"
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
    for ending, undated in zip(ENDINGS, ("Software", "Date", "CreationDate"), strict=False):
        content = io.BytesIO()
        look: dict[str, Any] = {"bbox_inches": "tight", "dpi": 130, "metadata": {undated: None}}
        figure.savefig(content, format=ending, **look)
        write_atomically(Path(f"{stem}.{ending}"), content.getvalue(), folder / ".partial")
    numbers = table.to_csv(index=False, float_format="%.6g")  # no figure shows more
    write_atomically(Path(f"{stem}.csv"), numbers.encode(), folder / ".partial")
    return stem
