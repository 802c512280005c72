"""The paper's numbers beside ours: cells, verdicts, claims and tables, as plain HTML."""

from __future__ import annotations

import csv
import html
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Literal

import pydantic.dataclasses

from lnlsr_lib.cost import duration, images_of
from lnlsr_lib.experiments import EXPERIMENTS
from lnlsr_lib.paper import Published, published
from lnlsr_lib.protocol import PROFILES, Profile, make_spec, method_name
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import StoredRun, results_folder

# fmt: off
__all__ = [
    "Cell", "Claim", "Html", "apl_nlnl", "badge", "cells_of", "claims", "comparison", "grid",
    "lost_classes", "page_link", "precisions_of", "size_of", "sweep", "table",
]
# fmt: on

ROOT = Path(__file__).resolve().parent.parent  # of the checkout, for links into it
ENDINGS = ("png", "svg", "pdf", "csv")  # of a figure's files for download
# When two accuracies count as the same; all three are ours. Percentage points.
AGREES_STDS = 2.0
AGREES_POINTS = 0.5
NEAR_POINTS = 3.0
LOST_RECALL = 5.0  # a class is lost below it; percent, ours
Sign = Literal["<", ">"]
PUBLISHED = (
    "<p class='badge-line'>The paper's: the same number from its tables, in the conditions that "
    "ours is from; in brackets, in all that the sentence is about. Where that does not reach what "
    "<i>holds if</i> asks for, the sentence is not true of every cell of the paper either.</p>"
)
TITLES = ("MNIST", "CIFAR-10", "CIFAR-100", "WebVision")
DATASETS = {title.lower().replace("-", ""): title for title in TITLES}
BECOMES = ("memorised", "corrected", "fitted")  # of the training labels
# What is said in the place of a verdict.
UNTOLD = {
    "not run": "not run",
    "reduced budget": "{}: no verdict",
    "no verdict": "no verdict: not in the paper, or not its protocol",
    "fewer epochs": "no verdict: the paper's {} of a run {} times as long",
}


class Html(str):
    """Text that is HTML already; a notebook shows it as such."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<HTML, {len(self)} characters>"


def _html(value: object) -> str:
    """As it is if it is HTML, else escaped; what stands around ± is never parted."""
    text = value if isinstance(value, Html) else html.escape(str(value))
    return text.replace(" ± ", "&nbsp;±&nbsp;")


def link(path: Path, text: object, title: str = "") -> Html:
    """A link to a file, which holds where the notebook is executed."""
    return Html(f'<a href="{os.path.relpath(path)}" title="{html.escape(title)}">{_html(text)}</a>')


def page_link(name: str, text: object) -> Html:
    """A link to a notebook; in the book, to its page."""
    return Html(f'<a href="{os.path.relpath(ROOT / "notebooks")}/{name}.ipynb">{_html(text)}</a>')


def downloads(folder: Path, stem: str) -> Html:
    """Links to a figure's files."""
    files = (link(folder / f"{stem}.{ending}", ending.upper()) for ending in ENDINGS)
    return Html(" · ".join(files))


def run_link(run: StoredRun, text: object) -> Html:
    """A link to the file of a run; in the book, to its card."""
    name = f"{run.spec.id}.{run.provenance['precision']}"
    return link(results_folder() / "runs" / f"{name}.json", text, name)


def table(rows: Sequence[Mapping[str, object]], kind: str = "") -> Html:
    """A table with one header row; what is wider than the page scrolls in its own frame.

    Args:
        rows: one mapping a row, from header to content; the first column names the row.
        kind: a class for the style sheet.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows must be one or more")
    head = "".join(f'<th scope="col">{_html(name)}</th>' for name in rows[0])
    lines = []
    for row in rows:
        first, *rest = map(_html, row.values())
        lines.append(f'<th scope="row">{first}</th>' + "".join(f"<td>{v}</td>" for v in rest))
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return Html(
        f'<div class="scrolls" tabindex="0"><table class="plain {kind}"><thead><tr>{head}</tr>'
        f"</thead><tbody>\n{body}</tbody></table></div>"
    )


def lost_classes(run: StoredRun) -> list[int]:
    """The classes of which a trained network recognises less than 5% of the test images."""
    rows = enumerate(run.confusion)
    return [k for k, row in rows if 100 * row[k] < LOST_RECALL * sum(row)]


def precisions_of(runs: Iterable[StoredRun]) -> str:
    """In which they are, such as "bf16, float32"; nothing for none."""
    return ", ".join(sorted({run.provenance["precision"] for run in runs}))


def _beside(runs: Sequence[StoredRun], usual: str, said: Sequence[str] = ()) -> str:
    """What to know of runs: what is said, their precision if it is another, what SR has lost."""
    kinds = precisions_of(runs)
    parts = [*said, *[kinds] * (kinds not in ("", usual))]
    found = [lost for run in runs if run.spec.sr and (lost := lost_classes(run))]
    if found:
        what = f"class {found[0][0]}" if len(found[0]) == 1 else f"{len(found[0])} classes"
        several = f"{len(found)} of {len(runs)} lost a class"
        parts.append(page_link("lost_classes", several if len(runs) > 1 else f"lost: {what}"))
    return f"<small>{'<br>'.join(parts)}</small>" * bool(parts)


def apl_nlnl() -> dict[tuple[str, str, float], Published]:
    """What APL's authors had of NLNL, by data set, noise and noise rate; 13 of these 27 are the
    paper's numbers, too.

    Source: the output stored in ``plot_results.ipynb`` of their repository,
    HanxunH/Active-Passive-Losses, February 2020.
    """
    with open(Path(__file__).with_name("apl_nlnl.csv"), newline="") as lines:
        return {
            (row["dataset"], row["noise"], float(row["noise_rate"])): Published(
                0, float(row["mean"]), float(row["std"])
            )
            for row in csv.DictReader(lines)
        }


def agreement(paper: Published) -> float:
    """How far from the paper's mean "agrees" reaches, in points."""
    return max(AGREES_STDS * (paper.std or 0.0), AGREES_POINTS)


def verdict(ours: float, paper: Published) -> str:
    """Say "agrees", "near" or "differs".

    It agrees within two of the paper's standard deviations or half a point, whichever is more, and
    is near within three points.

    Args:
        ours: mean final accuracy, percent.
        paper: what the paper reports.
    """
    gap = abs(ours - paper.mean)
    if gap <= agreement(paper):
        return "agrees"
    return "near" if gap <= NEAR_POINTS else "differs"


@dataclass(frozen=True)
class Cell:
    """One condition and method: its stored runs, which differ in their seed, and the paper's value.

    Attributes:
        wanted: of the run at the paper's own budget; its seed says nothing.
        spec: of the runs, or of those that are missing; its seed says nothing.
        runs: one or more of one profile, or none.
        paper: None where the paper has no number, or the runs are not by its protocol.
    """

    wanted: RunSpec
    spec: RunSpec
    runs: tuple[StoredRun, ...]
    paper: Published | None

    @property
    def ours(self) -> float:
        """Mean accuracy after the last epoch, percent; nan without runs."""
        return mean(run.final_accuracy for run in self.runs)

    @property
    def published(self) -> float:
        """The paper's mean, percent; nan where it has none."""
        return self.paper.mean if self.paper else nan

    @property
    def verdict(self) -> str:
        """Agrees, near or differs; or reduced budget, fewer epochs, no verdict, not run."""
        if not self.runs:
            return "not run"
        if self.spec.profile != "paper":
            return "reduced budget"
        if self.paper is None:
            return "no verdict"
        if self.spec.loss == "nlnl":
            return "fewer epochs"
        return verdict(self.ours, self.paper)

    @property
    def judged(self) -> bool:
        """Whether it has a verdict."""
        return self.verdict not in UNTOLD

    @property
    def longer(self) -> int:
        """How many times our epochs APL's runs of NLNL had, of which the paper has some.

        Raises:
            ValueError: APL has none on this data set.
        """
        theirs = make_spec(self.wanted.dataset, "nlnl", budget="nlnl").epochs
        return round(theirs / self.wanted.epochs)

    @property
    def words(self) -> str:
        """The verdict, and what to know about it."""
        if self.verdict == "fewer epochs":
            where = self.wanted.dataset, self.wanted.noise
            known = where[0] == "cifar100" or where == ("cifar10", "asymmetric")
            return UNTOLD[self.verdict].format("is" if known else "may be", self.longer)
        if self.verdict in UNTOLD:
            return UNTOLD[self.verdict].format(self.spec.profile)
        return f"{self.verdict} ({len(self.runs)} run{'s' * (len(self.runs) > 1)})"

    def series(self, name: str) -> list[list[float]]:
        """A series of the history, of every seed."""
        return [run.history[name] for run in self.runs]

    @property
    def drop(self) -> float:
        """Best epoch less last epoch, in points, mean over the seeds; nan without runs."""
        return mean(run.best_accuracy - run.final_accuracy for run in self.runs)

    @property
    def name(self) -> str:
        """The paper's data set and condition, such as "MNIST, sym0.8"."""
        return f"{DATASETS[self.wanted.dataset]}, {condition_of(self.wanted)}"


def cells_of(
    name: str, runs: Iterable[StoredRun], profiles: Sequence[Profile] = PROFILES
) -> list[Cell]:
    """The cells of a figure or table, each with the runs of the first profile that has any.

    Of one seed and several precisions, that in float32 counts.

    Args:
        name: one of :data:`lnlsr_lib.experiments.EXPERIMENTS`.
        runs: stored runs; those of other experiments are passed over.
        profiles: the best first. A cell without runs is of the first.
    """
    stored: dict[RunSpec, dict[int, StoredRun]] = {}
    for run in sorted(runs, key=lambda r: (r.spec.seed, r.provenance["precision"] != "float32")):
        same = stored.setdefault(run.spec.model_copy(update={"seed": 0}), {})
        same.setdefault(run.spec.seed, run)
    cells = []
    columns = [EXPERIMENTS[name].specs(profile, 0) for profile in ("paper", *profiles)]
    for wanted, *specs in zip(*columns, strict=True):
        spec = next((spec for spec in specs if spec in stored), specs[0])
        known = published(wanted.dataset, wanted.method, *paper_condition(wanted))
        paper = known if follows_protocol(wanted) else None
        cells.append(Cell(wanted, spec, tuple(stored.get(spec, {}).values()), paper))
    return cells


def most_stored(name: str, runs: Sequence[StoredRun]) -> Profile:
    """The profile of which most cells have runs, of two the better one; smoke if neither has."""
    count = {p: sum(bool(c.runs) for c in cells_of(name, runs, [p])) for p in PROFILES[:-1]}
    return max(count, key=lambda p: count[p]) if any(count.values()) else "smoke"


def comparison(cells: Sequence[Cell]) -> Html:
    """One row per condition and method: the paper's accuracy, the verdict, ours, every seed.

    Runs of a reduced profile get no verdict: their budget is not the paper's. Of mixed precisions
    the rarer one is named beside its run.

    Raises:
        ValueError: no cells.
    """
    several, rows = len({cell.name for cell in cells}) > 1, []
    usual, note = _precisions(cells)
    for cell in cells:
        seeds = [
            f"{run_link(run, f'{run.final_accuracy:.2f}')} {_beside([run], usual)}".strip()
            for run in cell.runs
        ]
        row = {
            "method": method_name(cell.spec.method) + f", {condition_of(cell.wanted)}" * several,
            "paper": cell.paper or "-",
            "verdict": mark(cell.verdict, cell.words),
            "ours, last epoch": ours(cell),
            "less the paper's": _signed(cell.ours - cell.published) if cell.judged else "-",
            "ours, best epoch": _mean_std([run.best_accuracy for run in cell.runs]),
            "each seed": Html(", ".join(seeds)),
        }
        rows.append(row)
    return Html(table(rows) + note)


def mark(kind: str, text: object, title: str = "") -> Html:
    """``text`` with the colour of a verdict."""
    kind = kind.replace(" ", "-")
    return Html(f'<span class="verdict {kind}" title="{html.escape(title)}">{_html(text)}</span>')


def ours(cell: Cell) -> object:
    """The mean, which leads to the first run; the others have their own links."""
    text = _mean_std([run.final_accuracy for run in cell.runs])
    return run_link(cell.runs[0], text) if cell.runs else text


def grid(cells: Sequence[Cell]) -> Html:
    """The paper's own layout: a row a method, a column a condition; ours above the paper's.

    What is not of the paper's budget says so; where precisions are mixed, what is in the rarer one,
    too; and where runs with SR have lost a class.
    """
    wide, (usual, note) = dict[str, dict[str, object]](), _precisions(cells)
    for cell in cells:
        row = wide.setdefault(cell.spec.method, {"method": method_name(cell.spec.method)})
        said: list[str] = [cell.spec.profile] if cell.verdict == "reduced budget" else []
        said += [f"1/{cell.longer} epochs"] if cell.verdict == "fewer epochs" else []
        paper = f'<small title="paper">{_html(cell.paper or "-")}</small>'
        lines = mark(cell.verdict, ours(cell), cell.words), _beside(cell.runs, usual, said), paper
        row[condition_of(cell.wanted)] = Html("<br>".join(filter(None, lines)))
    return Html(table(list(wide.values()), "grid") + note)


def departures(spec: RunSpec) -> dict[str, object]:
    """In what a run differs from the paper's own, such as ``{"sr.weight": 30.0}``.

    That is a swept parameter, or a variant of the code's; of a smoke run its data set, too.
    """
    if spec.profile == "smoke":
        return {"dataset": spec.dataset}
    given = {"noise", "noise_rate", "imbalance", "imbalance_ratio", "human_labels", "transition"}
    kept = spec.model_dump(include=given | {"profile", "seed"})
    mine, protocol = spec.model_dump(), make_spec(spec.dataset, spec.method, **kept).model_dump()
    found: dict[str, object] = {}
    for name, value in mine.items():
        if isinstance(value, dict):
            theirs = protocol[name] or {}
            found |= {f"{name}.{k}": v for k, v in value.items() if theirs.get(k) != v}
        elif value != protocol[name]:
            found[name] = value
    return found


def follows_protocol(spec: RunSpec) -> bool:
    """Whether this is a run of the paper's own."""
    return not departures(spec) and not (spec.imbalance and spec.noise != "clean")


def paper_condition(spec: RunSpec) -> tuple[str, float]:
    """The noise and its rate, or the imbalance and its ratio, as the paper's tables have them."""
    if spec.dataset == "webvision":
        return "web", 0.0
    if spec.imbalance is not None:
        return {"long-tailed": "lt"}.get(spec.imbalance, spec.imbalance), spec.imbalance_ratio
    return spec.noise, spec.noise_rate


def condition_of(spec: RunSpec) -> str:
    """The condition by its short name, such as "sym0.8" or "lt0.01"; of WebVision "web"."""
    return "web" if spec.dataset == "webvision" else spec.condition.removeprefix("clean-")


def size_of(specs: Iterable[RunSpec]) -> str:
    """What runs are trained on, such as "20,000 images of 16×16 pixels"."""
    found = list(specs)
    counts = sorted({images_of(spec) for spec in found})
    sides = sorted({spec.side for spec in found if spec.side})
    some = ", some" * any(spec.side is None for spec in found)
    images = " to ".join(dict.fromkeys(f"{count:,}" for count in (counts[0], counts[-1])))
    reduced = (f"{some} of {side} by {side} pixels" for side in sides)
    return f"{images} images" + "".join(reduced)


def sweep(cells: Sequence[Cell]) -> Html:
    """One row per cell: what is varied of SR, its accuracy, and what became of the labels; what is
    not of the paper's budget says so.

    Args:
        cells: runs with SR; where lambda grows the row says so.
    """
    rows = []
    for cell in cells:
        sr = cell.spec.sr
        assert sr is not None
        last = {name: [100 * one[-1] for one in cell.series(name)] for name in BECOMES}
        reduced = f"<small>{cell.spec.profile}</small>" * (cell.spec.profile != "paper")
        rows.append(
            {
                "method": method_name(cell.spec.method),
                "λ": f"{sr.weight:g}" + ", growing" * (sr.growth != 1),
                "p": f"{sr.p:g}",
                "τ": f"{sr.temperature:g}",
                "last epoch": Html(f"{_html(ours(cell))} {reduced}") if cell.runs else "not run",
                "drops by": f"{cell.drop:.2f}" if cell.runs else "-",
                **{f"{name} (%)": f"{mean(of):.1f}" if of else "-" for name, of in last.items()},
            }
        )
    return table(rows)


def _precisions(cells: Iterable[Cell]) -> tuple[str, str]:
    """In which most of their runs are, and a note that says so if some are not."""
    found = [run.provenance["precision"] for cell in cells for run in cell.runs]
    usual = statistics.mode(found) if found else ""
    note = f"<p class='badge-line'>In {usual}, but for what names another precision.</p>"
    return usual, note * (len(set(found)) > 1)


def mean(values: Iterable[float]) -> float:
    """nan for none."""
    found = list(values)
    return statistics.fmean(found) if found else nan


def _signed(value: float) -> str:
    """Such as +0.31, with a true minus."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _mean_std(values: Sequence[float]) -> str:
    """Such as 98.06, or 98.06 ± 0.86 (sample deviation) over several seeds; a dash for none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


@pydantic.dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper as a number and a threshold.

    Attributes:
        claim: what is said.
        measured: how it is measured here.
        value: ours; nan where a run that it needs is missing.
        sign: ">" or "<", between value and threshold.
        threshold: where the claim stops to hold; ours where the paper gives none.
        digits: behind the point.
        of: in how many conditions it is measured, and how many it is about.
        paper: what the paper's own numbers give, in the same conditions and in all; nan for none.
        budget: of the runs that ``value`` is from; that of the page if it says nothing.

    Raises:
        ValueError: another sign.
    """

    claim: str
    measured: str
    value: float
    sign: Literal["<", ">"]
    threshold: float
    digits: int = 2
    of: tuple[int, int] = (1, 1)
    paper: tuple[float, float] = (nan, nan)
    budget: str = ""

    @property
    def holds(self) -> bool | None:
        """None where it cannot be said."""
        gap = self.value - self.threshold
        return None if isnan(gap) else gap > 0 if self.sign == ">" else gap < 0

    def number(self, value: float) -> str:
        """As it is printed; a dash for nan."""
        return "-" if isnan(value) else f"{value:.{self.digits}f}"


def claims(statements: Sequence[Claim], profile: str) -> Html:
    """One row a claim: how it is measured, our value, the threshold, whether it holds.

    Args:
        statements: one or more.
        profile: of the runs; lite is named beside each outcome, and smoke tests nothing.
    """
    outcomes: dict[bool | None, tuple[str, str]] = {None: ("not run", "not tested")}
    outcomes |= {True: ("agrees", "holds"), False: ("differs", "does not hold")}
    published = any(not isnan(one.paper[1]) for one in statements)
    rows = []
    for one in statements:
        budget, part = one.budget or profile, one.of[0] < one.of[1]
        value, holds = (nan, None) if budget == "smoke" else (one.value, one.holds)
        kind, said = outcomes[holds]
        if holds is not None:
            said += f" so far ({one.of[0]} of {one.of[1]})" * part
            said += f", at {budget} budget" * (budget != "paper")
        row: dict[str, object] = {"claim": one.claim, "outcome": mark(kind, said)}
        row["ours"] = one.number(value)
        if published:
            same, whole = map(one.number, one.paper)
            apart = part and holds is not None and whole != "-"
            row["the paper's"] = f"{same} ({whole} of all)" if apart else whole
        row |= {"holds if": f"{one.sign} {one.threshold:g}", "how it is measured": one.measured}
        rows.append(row)
    return Html(table(rows, "claims") + PUBLISHED * published)


def badge(runs: Sequence[StoredRun]) -> Html:
    """What stands behind a figure, in one line: profile, seeds, device, time, code.

    Args:
        runs: the stored runs that the figure shows; of none there is nothing to say.
    """
    if not runs:
        return Html("")
    facts = [run.spec.model_dump() | run.provenance for run in runs]
    times: dict[str, list[float]] = {}
    for run, fact in zip(runs, facts, strict=True):
        changed = "+" * bool(fact["modified"])
        fact["commit"] = " to ".join(f"{one}"[:8] for one in run.commits) + changed
        times.setdefault(" and ".join(run.places), []).append(fact["seconds"])
    named = ("profile", "data", "epochs", "seed", "precision", "torch", "commit", "protocol")
    each = {n: _html(", ".join(map(str, sorted({f[n] for f in facts})))) for n in named}
    took = [
        f"{len(of)} run{'s' * (len(of) > 1)} in {duration(sum(of))} on {_html(place)}"
        for place, of in times.items()
    ]
    each |= {"took": " · ".join(took), "size": size_of(run.spec for run in runs)}
    return Html(
        "<p class='badge-line'><b>Profile {profile}</b> · data: {data}, trained on {size} · "
        "{epochs} epochs · seed {seed} · {took} · {precision} · torch {torch} · commit {commit} · "
        "protocol {protocol}</p>".format(**each)
    )
