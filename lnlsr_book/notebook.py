"""What the notebooks share: checked parameters, the runs to show, the page around a figure."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, product
from math import isnan, nan
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from pydantic import ConfigDict, create_model

from lnlsr_book import plots, report
from lnlsr_book.report import Cell, Claim, Html, Sign
from lnlsr_lib.cost import duration, estimate
from lnlsr_lib.data import DataError, load_dataset
from lnlsr_lib.device import resolve_device, resolve_precision
from lnlsr_lib.experiments import COMPARED, EXPERIMENTS, experiment_specs, read_seeds
from lnlsr_lib.protocol import PROFILES, Profile, method_name
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import Store, StoredRun
from lnlsr_lib.sweep import run_all

__all__ = ["Gain", "Page", "check_parameters", "footer", "open_page"]

SMOKE_CELLS = 2  # as many cells of an experiment are trained for a first look
A100 = 312.0  # peak of the GPU that pages name, TFLOP/s in bf16
MEASURES = report.ROOT / "book" / "measures.md"
Methods = str | Sequence[str]
PAIRS = (("ce_sr", "ce"), ("fl_sr", "fl"), ("gce_sr", "gce"))  # with SR, without
WITH_SR = [method for method in COMPARED if method.endswith("_sr")]
WITHOUT = [method for method in COMPARED if method not in (*WITH_SR, "nlnl")]
WORST = {">": "smallest", "<": "largest"}
MOST_COLUMNS = 6  # of a grid
FEATURES = {
    "knn_accuracy": "test images whose ten nearest neighbours name their class, in points more",
    "silhouette": "silhouette of the true classes, more",
}


def check_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse parameters that a notebook does not have, or of another type than it declares.

    Call it with ``globals()`` behind the cell of parameters: the last one executed that holds
    annotated assignments alone. Papermill puts a cell of its own behind that, with any name and
    any type. Other names are none of its business, so a notebook may be executed twice.

    Returns:
        The parameters' values by name.

    Raises:
        ValueError: a name is set that is not declared, or a value is not of its annotated type.
    """
    declared: list[str] = []
    given: list[str] = []
    for source in namespace["In"]:
        with contextlib.suppress(SyntaxError):  # a magic
            body = ast.parse(source).body
            if body and all(isinstance(one, ast.AnnAssign) for one in body):
                declared, given = [ast.unparse(one.target) for one in body], []
            elif source.startswith("# Parameters"):  # papermill's own
                given = [ast.unparse(t) for one in body for t in getattr(one, "targets", ())]
    declared = declared or list(namespace["__annotations__"])  # a kernel that keeps no history
    for name in given:
        if name not in declared:
            raise ValueError(f"unknown parameter {name!r}; there are: {', '.join(declared)}")
    kinds: Any = {name: (namespace["__annotations__"][name], ...) for name in declared}
    model = create_model("parameters", __config__=ConfigDict(strict=True), **kinds)
    values: dict[str, Any] = model(**{name: namespace[name] for name in declared}).model_dump()
    return values


@cache
def _test_labels(dataset: str) -> Any:
    """True labels of a test set; none where it cannot be had, and then nothing is drawn."""
    try:
        return load_dataset(dataset).test_labels.numpy()
    except DataError as error:
        print(error)
        return []


def _best_of(methods: Methods) -> str:
    names = [methods] if isinstance(methods, str) else methods
    listed = ", ".join(map(method_name, names))
    return f"the best of {listed}" if len(names) > 1 else listed


class Gain(NamedTuple):
    """A number of our runs and the paper's, nan where there is none, and the budget of ours."""

    ours: float
    paper: float
    budget: str


def _held(
    claim: Claim, values: Sequence[Gain], of: Callable[[list[float]], float] | None = None
) -> Claim:
    """``claim`` with its numbers: ``of`` all values, or the one that speaks least for it."""
    have = [value for value in values if not isnan(value.ours)]
    groups = [v.ours for v in have], [v.paper for v in have], [v.paper for v in values]
    known = ([number for number in some if not isnan(number)] for some in groups)
    worst: Any = of or (min if claim.sign == ">" else max)
    value, same, whole = (worst(some) if some else nan for some in known)
    which = f", {WORST[claim.sign]} of {len(values)}" * (of is None and len(values) > 1)
    return replace(
        claim,
        measured=claim.measured + which,
        value=value,
        paper=(same, whole),
        of=(len(have), len(values)),
        budget=" and ".join(dict.fromkeys(v.budget for v in have)),
    )


def _those(cells: Iterable[Cell], wanted: Mapping[str, Any]) -> Iterator[Cell]:
    """See :meth:`Page.select`."""

    def fits(spec: RunSpec, name: str, value: Any) -> bool:
        has = getattr(spec if hasattr(spec, name) else spec.sr, name)
        return bool(has in value if isinstance(value, list | tuple) else has == value)

    return (c for c in cells if all(fits(c.wanted, *item) for item in wanted.items()))


@dataclass(frozen=True)
class Page:
    """One figure or table: its cells with what is stored of them, and what is shown around it.

    Attributes:
        name: of the experiment.
        profile: that of the figure: of which most is stored.
        cells: at that profile.
        budgets: the same cells at the paper's budget, and at lite; smoke is none.
        missing: the paper's runs that are not stored, for one seed.
        store: where the runs lie.
    """

    name: str
    profile: Profile
    cells: tuple[Cell, ...]
    budgets: tuple[tuple[Cell, ...], ...]
    missing: tuple[RunSpec, ...]
    store: Store

    @property
    def runs(self) -> list[StoredRun]:
        """All that are stored of ``cells``."""
        return [run for cell in self.cells for run in cell.runs]

    @property
    def best(self) -> list[Cell]:
        """The cells, each at its best budget; one without runs is of the paper's."""
        both = zip(*self.budgets, strict=True)
        return [next((cell for cell in same if cell.runs), same[0]) for same in both]

    def select(self, **wanted: Any) -> list[Cell]:
        """The cells whose spec, or its SR, has these values; a list stands for any of its values.

        The data set is asked for as in the paper, in a smoke run too.
        """
        return list(_those(self.cells, wanted))

    def mean(
        self,
        series: str = "test_accuracy",
        of: Callable[[list[float]], float] = lambda history: history[-1],
        **wanted: Any,
    ) -> float:
        """Mean of a number over the seeds of one cell; nan where none is stored.

        Args:
            series: of the history.
            of: the number in it, by default the last.
            wanted: see :meth:`select`; of several cells the first.
        """
        return report.mean(of(run.history[series]) for run in self.select(**wanted)[0].runs)

    def gains(
        self, methods: Methods, others: Methods, of: Callable[..., float] = max, **wanted: Any
    ) -> dict[str, Gain]:
        """Final accuracy of a method less that of another, in points, by condition.

        Ours is of the best budget at which all of them are stored, over the seeds that all of them
        have; smoke is none.

        Args:
            methods: such as "ce_sr"; of several the best.
            others: as well.
            of: which of several methods counts.
            wanted: see :meth:`select`.
        """
        mine, theirs = ([side] if isinstance(side, str) else side for side in (methods, others))
        found: dict[str, Gain] = {}

        def less(values: Mapping[str, float]) -> float:
            whole = not any(map(isnan, values.values()))
            gain = of(values[one] for one in mine) - max(values[one] for one in theirs)
            return gain if whole else nan

        for cells in self.budgets:
            for name, same in groupby(_those(cells, wanted), lambda cell: cell.name):
                row = {c.spec.method: c for c in same if c.spec.method in (*mine, *theirs)}
                seeds = set.intersection(*({r.spec.seed for r in c.runs} for c in row.values()))
                if name not in found or isnan(found[name].ours):
                    ours = {
                        one: report.mean(r.final_accuracy for r in c.runs if r.spec.seed in seeds)
                        for one, c in row.items()
                    }
                    paper = {one: c.published for one, c in row.items()}
                    found[name] = Gain(less(ours), less(paper), cells[0].spec.profile)
        return found

    def gain(
        self,
        claim: str,
        *pairs: tuple[Methods, Methods],
        sign: Sign = ">",
        threshold: float = 0,
        **wanted: Any,
    ) -> Claim:
        """A claim on :meth:`gains`, held against the one that speaks least for it.

        Args:
            claim: what is said of all of them.
            pairs: methods and others, one or more.
            sign, threshold: see :class:`lnlsr_book.report.Claim`.
            wanted: see :meth:`select`.
        """
        gains = [gain for pair in pairs for gain in self.gains(*pair, **wanted).values()]
        measured = ", ".join(f"{_best_of(one)} less {_best_of(other)}" for one, other in pairs)
        measured += ", last epoch, in points"
        return _held(Claim(claim, measured, nan, sign, threshold), gains)

    def each(
        self,
        claim: str,
        measured: str,
        of: Callable[[list[float]], float],
        sign: Sign = ">",
        threshold: float = 0,
        **wanted: Any,
    ) -> Claim:
        """A claim on a number of every cell's test accuracy by epoch, its mean over the seeds.

        It is held against the cell that speaks least for it. Arguments: see :meth:`gain`.
        """
        values = []
        for cell in _those(self.best, wanted):
            number = report.mean(of(run.history["test_accuracy"]) for run in cell.runs)
            values.append(Gain(number, nan, cell.spec.profile))
        return _held(Claim(claim, measured, nan, sign, threshold), values)

    def top_three(self, **wanted: Any) -> Claim:
        """The claim that in most noisy conditions the best three methods are those with SR."""
        gains = list(self.gains(WITH_SR, WITHOUT, min, **wanted).values())
        claim = "The three methods with SR are the best three in most cases"
        measured = f"share of the {len(gains)} noisy conditions where they are, last epoch, "
        held = Claim(claim, f"{measured}without NLNL", nan, ">", 0.5)
        return _held(held, gains, lambda some: report.mean(gain > 0 for gain in some))

    def note(self) -> Html:
        """What of the paper's own budget is not run, and what it would cost."""
        if not self.missing:
            return Html("")
        count, whole = len(self.missing), len(self.cells)
        what = "The real thing has not been run" if count == whole else "Not all of it has been run"
        others = " Tables have those that are stored; <code>-p profile paper</code> trains what is "
        others += "missing, and draws all."
        others *= count < whole and self.profile != "paper"
        gpu = duration(sum(cost.total for cost in estimate(self.missing, tflops=A100)))
        return Html(
            f'<p class="missing"><b>{what}</b>: {count} of {whole} runs at the paper\'s budget are '
            f"missing, roughly {gpu} one after another on an A100-class GPU; "
            f"<code>lnlsr estimate {self.name} --profile paper</code> says how long they take on "
            f"your machine.{others}</p>"
        )

    def figure(
        self,
        draw: plots.Draw,
        keys: plots.Keys,
        *,
        caption: str,
        cells: Sequence[Cell] | None = None,
        data: Callable[[Sequence[StoredRun]], pd.DataFrame] = plots.curves,
        **more: Any,
    ) -> Html:
        """Draw it, write its files, and return the page: see :func:`lnlsr_book.plots.panels`.

        ``cells`` are those that it shows; by default all of the page. ``data`` is what goes into
        its CSV.
        """
        number, _, words = EXPERIMENTS[self.name].title.partition(": ")
        number = words if number == self.name else number
        runs = [run for cell in cells or self.cells for run in cell.runs]
        profiles = {run.spec.profile for run in runs}
        if profiles == {"smoke"}:
            number += ", rehearsed on scikit-learn's digits (profile smoke)"
            caption = f"What the real one shows: {caption}"
        if profiles == {"lite"}:
            size = report.size_of(run.spec for run in runs)
            number += f", reduced (profile lite: {size}, {runs[0].spec.epochs} epochs)"
        more["heading"] = number * (profiles in ({"smoke"}, {"lite"}))
        more["heading"] += "filled: at the paper's budget; open: reduced" * (len(profiles) > 1)
        whole, shown = plots.panels(draw, keys, caption=f"<b>{number}.</b> {caption}", **more)
        plots.save_figure(whole, data(runs), self.name, self.store.folder, self.profile)
        return Html(self.note() + shown + report.badge(runs))

    def embeddings(self, keys: plots.Keys, caption: str, columns: int = 2) -> Html:
        """:meth:`figure` of t-SNE panels: of each cell that is asked for, its first seed.

        Where the test labels that colour them are not at hand, the picture as it is stored.

        Args:
            keys: what to :meth:`select`, by the panel's title.
            caption, columns: of the figure.
        """

        def draw(axes: Axes, wanted: Mapping[str, Any]) -> None:
            runs = self.select(**wanted)[0].runs
            for run in runs:
                if run.details:
                    points = self.store.details(run)["embedding"]
                    return plots.draw_embedding(axes, points, _test_labels(run.spec.dataset))
            said = "run without features" if runs else "not run"
            return plots.draw_embedding(axes, [], [], said)

        alt = "Test images as points in the colour of their true class, by t-SNE."
        if not all(len(_test_labels(run.spec.dataset)) for run in self.runs if run.details):
            said = f"{caption} As stored: the test labels that colour it are not at hand."
            shown = plots.stored_picture(self.name, self.store.folder, alt, said)
            return Html(self.note() + (shown or f"<p>{said}</p>") + report.badge(self.runs))
        return self.figure(draw, keys, caption=caption, alt=alt, columns=columns)

    def separation(self, pairs: plots.Keys) -> Html:
        """Claims on the features themselves: that SR separates the classes better.

        Args:
            pairs: what to :meth:`select` for the loss alone, by a name for the pair.
        """

        def of(number: str, wanted: Mapping[str, Any], sr: str) -> float:
            runs = self.select(**{**wanted, "method": wanted["method"] + sr})[0].runs
            return report.mean(run.features[number] for run in runs if run.features)

        statements = []
        for (name, wanted), (number, measured) in product(pairs.items(), FEATURES.items()):
            gain = of(number, wanted, "_sr") - of(number, wanted, "")
            statements.append(Claim(f"{name}: further apart with SR", measured, gain, ">", 0, 3))
        return self.claims(*statements)

    def by_epoch(self, caption: str) -> Html:
        """:meth:`figure` of test accuracy by epoch: a panel a condition, a line a method.

        A panel's axis begins at the multiple of ten below what it shows; the caption says so.
        """
        caption += " Each panel's axis begins at the multiple of ten below its lowest value."

        def draw(axes: Axes, cells: Sequence[Cell]) -> None:
            lines = {cell.spec.method: cell.series("test_accuracy") for cell in cells}
            lowest = [min(seed) for seeds in lines.values() for seed in seeds]
            axes.set(ylim=(min(lowest, default=0) // 10 * 10, 100), ylabel="test accuracy (%)")
            plots.draw_curves(axes, lines)

        def condition(cell: Cell) -> str:
            return f"{cell.wanted.noise} {cell.wanted.noise_rate or ''}".strip()

        keys = {name: list(cells) for name, cells in groupby(self.cells, condition)}
        return self.figure(draw, keys, caption=caption, alt="One line a method, by epoch.")

    def beside(self, caption: str, columns: int = 3) -> Html:
        """:meth:`figure` of all cells: a panel a condition, ours beside the paper's."""
        keys = {name: list(cells) for name, cells in groupby(self.best, lambda cell: cell.name)}
        alt = "A row a method: the paper's accuracy as a diamond, every seed of ours as a dot."
        more: dict[str, Any] = {"alt": alt, "columns": columns, "cells": self.best}
        more["data"] = plots.finals
        return self.figure(plots.draw_beside, keys, caption=caption, **more)

    def grids(self) -> Html:
        """A table for each data set, laid out as in the paper."""
        wide = len({cell.wanted.condition for cell in self.best}) > MOST_COLUMNS

        def part(cell: Cell) -> str:
            kind = ", asymmetric noise" * (wide and cell.wanted.noise == "asymmetric")
            return report.DATASETS[cell.wanted.dataset] + kind

        parts = groupby(self.best, part)
        return Html("".join(f"<h3>{name}</h3>{report.grid(list(c))}" for name, c in parts))

    def comparison(self) -> Html:
        """The paper's numbers beside ours, each cell at its best profile."""
        return report.comparison(self.best)

    def sweep(self) -> Html:
        """What is varied, and what comes of it, each cell at its best profile."""
        return report.sweep(self.best)

    def claims(self, *statements: Claim) -> Html:
        """See :func:`lnlsr_book.report.claims`."""
        return report.claims(statements, self.profile)

    def footer(self, *rests_on: Any, also: Sequence[str] = ()) -> Html:
        """How to make the page again, its files, and the functions that it rests on.

        ``also``: the other experiments whose runs the page shows.
        """
        stem = self.name if self.profile == "paper" else f"{self.name}-{self.profile}"
        folder = self.store.folder / self.name  # not there where no figure was drawn
        own = report.link(report.ROOT / "notebooks" / f"{self.name}.ipynb", "notebook")
        every = (f"<code>lnlsr run {name} --profile paper</code>" for name in (self.name, *also))
        rows = {
            "its runs, at the paper's budget": "<br>".join(every),
            "how long that takes here": "the same with <code>estimate</code>",
            "files": f"{report.downloads(folder, stem)} · {own}" if folder.exists() else own,
            "the numbers logged": report.link(MEASURES, "what each means"),
        }
        return footer(self.name, rests_on, rows)


def footer(name: str, rests_on: Iterable[Any], rows: Mapping[str, str]) -> Html:
    """How to make a page again, and what it rests on.

    Args:
        name: of the notebook.
        rests_on: functions and classes of the library.
        rows: what else is to be said, in HTML, by what it is about.
    """
    sources = []
    for thing in rests_on:  # by name: a decorated function's file is its decorator's
        file = f"{thing.__module__.replace('.', '/')}.py#{thing.__name__}"
        sources.append(report.link(report.ROOT / file, thing.__name__))
    again = f"<code>papermill notebooks/{name}.ipynb {name}.ipynb</code>"
    whole = {"this page": again, **rows, "rests on": ", ".join(sources)}
    return report.table([{"what": what, "how": Html(how)} for what, how in whole.items()])


def open_page(name: str, namespace: Mapping[str, Any]) -> Page:
    """Check a notebook's parameters, and find the runs that it shows.

    With profile "auto" nothing is trained that takes long: the page shows the profile of which most
    cells are stored, of two the better one; if there is none, a smoke run of the first cells, but
    for a table. A profile that is named is trained where it is missing.

    Args:
        name: one of :data:`lnlsr_lib.experiments.EXPERIMENTS`.
        namespace: ``globals()`` of the notebook, with profile, seeds, device and precision.

    Raises:
        ValueError: a bad name or parameter.
    """
    given = check_parameters(namespace)
    seeds, device, precision = read_seeds(given["seeds"]), given["device"], given["precision"]
    resolve_precision(precision, resolve_device(device))  # or one of them is unknown
    wanted, store = given["profile"], Store()
    experiment_specs(name)  # or it is unknown
    if wanted not in ("auto", *PROFILES):
        raise ValueError(f"profile must be auto, {', '.join(PROFILES)}, got {wanted!r}")

    def stored() -> list[StoredRun]:
        return [r for r in store.runs() if precision in ("auto", r.provenance["precision"])]

    def cells(*profiles: Profile) -> list[Cell]:
        return report.cells_of(name, runs, profiles)

    runs = stored()
    profile: Profile = report.most_stored(name, runs) if wanted == "auto" else wanted
    first_look = profile == "smoke" and not name.startswith("table")  # whose cells never are digits
    if first_look or profile == wanted:
        details, todo = EXPERIMENTS[name].details, []
        for cell in cells(profile)[: SMOKE_CELLS if profile == "smoke" else None]:
            have = {run.spec.seed for run in cell.runs if run.details or not details}
            lacking = set(seeds or ([] if have else [1])) - have
            todo += [cell.spec.model_copy(update={"seed": seed}) for seed in sorted(lacking)]
        run_all(todo, store, device=device, precision=precision, details=details)
        runs = stored()
    missing = [cell.spec for cell in cells("paper") if not cell.runs]
    if seeds is not None:
        runs = [run for run in runs if run.spec.seed in seeds]
        shown = {run.spec for run in runs}
        lacks = [spec.id for spec in experiment_specs(name, profile, seeds) if spec not in shown]
        print(f"Not stored, and not shown: {', '.join(lacks) or 'none'}")
    mine = cells(profile)
    # what stands beside the paper's numbers is never of digits
    budgets = tuple(cells("paper")), tuple(cells("lite"))
    print(
        f"{name}: profile {profile}, {sum(bool(cell.runs) for cell in mine)} of {len(mine)} cells "
        f"are stored; at the paper's budget {len(missing)} are missing"
    )
    return Page(name, profile, tuple(mine), budgets, tuple(missing), store)
