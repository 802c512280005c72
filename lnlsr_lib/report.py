"""The paper's numbers beside ours: comparison, verdicts, badges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lnlsr_lib.cost import SHAPES, duration, images_of
from lnlsr_lib.paper import Published, published
from lnlsr_lib.protocol import make_spec, method_name
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import StoredRun

__all__ = [
    "badge",
    "claims",
    "comparison",
    "downloads",
    "follows_protocol",
    "paper_condition",
    "precisions",
    "verdict",
]

# When two accuracies count as the same; all three are ours. Percentage points.
AGREES_STDS = 2.0
AGREES_POINTS = 0.5
NEAR_POINTS = 3.0


def verdict(ours: float, paper: Published) -> str:
    """Say "agrees", "near" or "differs".

    It agrees within two of the paper's standard deviations or half a point, whichever is more, and
    is near within three points.

    Args:
        ours: mean final accuracy, percent.
        paper: what the paper reports.
    """
    gap = abs(ours - paper.mean)
    if gap <= max(AGREES_STDS * (paper.std or 0.0), AGREES_POINTS):
        return "agrees"
    return "near" if gap <= NEAR_POINTS else "differs"


def comparison(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row per condition and method: our final and best accuracy, the paper's, the verdict.

    Runs that differ in their seed alone are averaged. A run of a reduced profile gets no verdict:
    its budget is not the paper's.

    Args:
        runs: stored runs, one or more, all of one profile.

    Raises:
        ValueError: no runs, or runs of several profiles.
    """
    profiles = {run.spec.profile for run in runs}
    if len(profiles) != 1:
        raise ValueError(f"runs must be of one profile, got {sorted(profiles) or 'none'}")
    groups: dict[RunSpec, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.spec.model_copy(update={"seed": 0}), []).append(run)
    rows: list[dict[str, object]] = []
    for spec, group in groups.items():
        final = pd.Series([run.final_accuracy for run in group])
        best = pd.Series([run.best_accuracy for run in group])
        paper = published(spec.dataset, spec.method, *paper_condition(spec))
        if spec.profile != "paper":
            said = "reduced run: no verdict"
        elif not follows_protocol(spec):
            said, paper = "not the paper's protocol", None
        else:
            said = "not in the paper" if paper is None else verdict(float(final.mean()), paper)
            if any("copy" in run.provenance["data"] for run in group):
                said += ", on a copy of the data"
        rows.append(
            {
                "method": method_name(spec.method),
                "condition": spec.condition,
                "seeds": len(group),
                "ours, last epoch": _mean_std(final),
                "ours, best epoch": _mean_std(best),
                "paper": "" if paper is None else str(paper),
                "verdict": said,
            }
        )
    if len({row["condition"] for row in rows}) == 1:
        for row in rows:
            del row["condition"]
    return _by_method(rows)


def follows_protocol(spec: RunSpec) -> bool:
    """Whether this is a run of the paper's own: no swept parameter, no variant of the code's."""
    protocol = make_spec(
        spec.dataset,
        spec.method,
        spec.noise_rate,
        noise=spec.noise,
        imbalance=spec.imbalance,
        imbalance_ratio=spec.imbalance_ratio,
        human_labels=spec.human_labels,
        transition=spec.transition,
        profile=spec.profile,
        seed=spec.seed,
    )
    return spec == protocol and not (spec.imbalance and spec.noise != "clean")


def paper_condition(spec: RunSpec) -> tuple[str, float]:
    """The noise and its rate, or the imbalance and its ratio, as the paper's tables have them."""
    if spec.dataset == "webvision":
        return "web", 0.0
    if spec.imbalance is not None:
        return {"long-tailed": "lt"}.get(spec.imbalance, spec.imbalance), spec.imbalance_ratio
    return spec.noise, spec.noise_rate


def _by_method(rows: list[dict[str, object]]) -> pd.DataFrame:
    """A table with one row a method; "method" heads the column of row names."""
    return pd.DataFrame(rows).set_index("method").rename_axis(index=None, columns="method")


def _mean_std(values: pd.Series) -> str:
    """Such as 98.06, or 98.06 ± 0.86 (sample deviation) over several seeds."""
    spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


def badge(runs: Sequence[StoredRun]) -> str:
    """What stands behind a figure, in one line of Markdown: profile, seeds, device, time, code.

    Args:
        runs: the stored runs that the figure shows, one or more.
    """
    if not runs:
        raise ValueError("runs must be one or more")

    def each(values: Sequence[object]) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    seconds = sum(run.provenance["seconds"] for run in runs)
    commits = [
        (run.provenance["commit"] or "no commit")[:8] + "+" * bool(run.provenance["modified"])
        for run in runs
    ]
    sizes = [
        "all" if images_of(run.spec) == SHAPES[run.spec.dataset][0] else images_of(run.spec)
        for run in runs
    ]
    return (
        f"**Profile {each([run.spec.profile for run in runs])}** · "
        f"data: {each([run.provenance['data'] for run in runs])}, "
        f"{each(sizes)} training images · {each([run.spec.epochs for run in runs])} epochs · "
        f"seed {each([run.spec.seed for run in runs])} · "
        f"{each([run.provenance['device'] for run in runs])}, "
        f"{each([run.provenance['threads'] for run in runs])} thread(s), "
        f"{each([run.provenance['precision'] for run in runs])} · "
        f"{len(runs)} runs in {duration(seconds)} · "
        f"torch {each([run.provenance['torch'] for run in runs])} · commit {each(commits)} · "
        f"protocol {each([run.spec.protocol for run in runs])}"
    )


def claims(
    statements: Sequence[tuple[str, bool]], profile: str, heading: str = "The paper's claims"
) -> str:
    """The paper's claims, each with whether our runs bear it out, as a Markdown list.

    Args:
        statements: (claim, whether it holds in our runs).
        profile: of the runs; a reduced one is named, since its budget is not the paper's.
        heading: what they are, where the paper does not make them.
    """
    scope = "" if profile == "paper" else f" (profile {profile}: not the paper's budget)"
    lines = [f"- {'holds' if holds else '**does not hold**'}: {text}" for text, holds in statements]
    return f"**{heading}, in our runs{scope}:**\n\n" + "\n".join(lines)


def downloads(stem: Path, notebook: str) -> str:
    """Markdown links to a figure's files and to its notebook, relative to the notebook.

    Args:
        stem: path of the figure without its ending, from :func:`lnlsr_lib.plots.save_figure`.
        notebook: file name of the notebook.
    """
    links = [
        f"[{ending.upper()}](../results/{stem.parent.name}/{stem.name}.{ending})"
        for ending in ("png", "svg", "pdf", "csv")
    ]
    return f"Download: {' · '.join(links)} · [notebook]({notebook})"


def precisions(runs: Mapping[str, Sequence[StoredRun]]) -> pd.DataFrame:
    """Final accuracy in float32 and in bf16, side by side, one row per method and seed.

    Args:
        runs: stored runs by precision, the same specs in the same order under each.

    Raises:
        ValueError: the specs differ.
    """
    specs = [[run.spec for run in group] for group in runs.values()]
    if any(other != specs[0] for other in specs[1:]):
        raise ValueError("every precision must have runs of the same specs, in the same order")
    rows: list[dict[str, object]] = []
    for i, spec in enumerate(specs[0]):
        row: dict[str, object] = {
            "method": method_name(spec.method),
            "seed": str(spec.seed),
            "profile": spec.profile,
        }
        for name, group in runs.items():
            row[f"{name}, last epoch"] = f"{group[i].final_accuracy:.2f}"
            row[f"{name}, time"] = duration(group[i].provenance["seconds"])
        rows.append(row)
    return _by_method(rows)
