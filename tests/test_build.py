"""What the build of the book does to executed notebooks, and the parts that it computes."""

import importlib.util
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.paper import tables
from lnlsr_lib.store import Store, StoredRun
from lnlsr_lib.trainer import HISTORY

ROOT = Path(__file__).parent.parent


@pytest.fixture
def build(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    monkeypatch.setenv("LNLSR_RESULTS", str(ROOT / "results"))
    monkeypatch.chdir(ROOT / "book")
    spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("vendor_mathjax", None)


def stored(index=1, lost=False, **changes):
    spec = experiment_specs("fig3")[index].model_copy(update=changes)
    history = {name: [1.0] * spec.epochs for name in HISTORY}
    history |= {"test_accuracy": [98.0] * spec.epochs, "memorised": [None] * spec.epochs}
    facts = dict.fromkeys(("torch", "device", "data", "commit"), "x")
    facts |= {"precision": "float32", "threads": 1, "seconds": 60.0, "modified": False}
    matrix = [[10, 0], [10, 0]] if lost else [[9, 1], [0, 10]]
    return StoredRun(spec, history, facts, matrix, {"knn_accuracy": 90.0})


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("../results/runs/a-b.float32.json", "../results/runs/a-b.float32.html"),
        ("../results/fig3/fig3.svg", "../results/fig3/fig3.svg"),
        ("../book/intro.md#verdicts", "../intro.html#verdicts"),
        ("../lnlsr_lib/losses.py#FocalLoss", "../_modules/lnlsr_lib/losses.html#FocalLoss"),
        ("../lnlsr_book/plots.py#panels", "../_modules/lnlsr_book/plots.html#panels"),
        ("fig3.ipynb", "fig3.ipynb"),
        ("./fig3.ipynb", "../notebooks/fig3.html"),
        ("https://example.org/", "https://example.org/"),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(build, link, target):
    assert build.site_links(f'<a href="{link}">', "../") == f'<a href="{target}">'


def test_a_links_target_holds_at_the_root_too(build):
    text = build.site_links('<a href="../notebooks/table1.ipynb">', "")
    assert text == '<a href="notebooks/table1.html">'


def test_code_is_gathered_behind_the_page_and_links_are_mended(build, tmp_path):
    page = '<a href="../results/runs/x.float32.json">98</a>'
    cells = [
        new_markdown_cell("[verdicts](../book/intro.md#verdicts), [use](../book/use.md)"),
        new_code_cell('page = notebook.open_page("fig3", globals())'),
        new_code_cell("page.comparison()"),
    ]
    cells[1].outputs = [new_output("stream", name="stdout", text="fig3: six of six\n")]
    cells[2].outputs = [new_output("execute_result", data={"text/html": page}, execution_count=1)]
    path = tmp_path / "made.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    assert build.fit_into_book(path) == ["fig3: six of six"]
    prose, opened, shown, code = nbformat.read(path, as_version=4).cells
    assert prose.source == "[verdicts](#verdicts), [use](../use.md)"
    assert opened.outputs == []
    assert "remove-input" in opened.metadata["tags"]
    assert 'href="../results/runs/x.float32.html"' in shown.outputs[0].data["text/html"]
    assert all(cell.source in code.source for cell in cells[1:])
    assert "dropdown" in code.source


def test_a_card_holds_what_was_trained_and_what_came_out(build):
    run = stored()
    text = build.card(run, ["fig3"], True)
    for part in (
        '<a href="../../notebooks/fig3.html">fig3</a>',
        f"{run.spec.id}.float32.json",
        f"{run.spec.id}.float32.npz",
        "sr.temperature",
        "knn_accuracy",
        "<td>98</td>",
        "--share:90%",
        "By epoch, from 98 to 98.",
    ):
        assert part in text


def test_the_scorecard_has_every_number_of_the_paper_and_its_verdict(build):
    page, counts = build.scorecard([stored()])
    # table 6 has all of table 2 again, table 4 some of 1 and 2
    once = len(tables().drop_duplicates(["dataset", "method", "noise", "noise_rate"]))
    assert once < len(tables())
    assert counts == {"agrees": 1, "not run": once - 1}
    assert page.count('class="verdict agrees"') == 1
    assert page.count("<a ") == len(tables())


def test_what_was_found_counts_lost_classes_and_gains(build):
    runs = [stored(0), stored(1, lost=True), stored(5)]
    runs[0].history["test_accuracy"][-1] = 22.0
    _, counts = build.scorecard(runs)
    text = build.findings(runs, counts)
    assert "Of 1 pairs under label noise" in text
    assert "1 end more accurate with SR" in text
    assert "is 76.0 to 76.0 points" in text
    assert "in 1 of 2 runs with SR on MNIST, sym0.8, and in none of 0 in the other" in text
    assert "3 [stored runs]" in text


def test_runs_are_shown_on_their_pages(build):
    run = stored()
    pages = build.shown_on([run])[build.run_name(run)]
    assert {"fig3", "fig7", "table1"} <= set(pages)
    listed = build.all_runs([run], {build.run_name(run): pages})
    assert run.spec.id in listed
    assert build.all_runs([], {}) == "<p>No run is stored.</p>"
    assert "notebooks/fig3.ipynb" in listed


def unseen(build, runs):
    """The runs at the paper's budget that no page shows."""
    whole = [run for run in runs if run.spec.profile == "paper"]
    shown = build.shown_on(whole)
    return [build.run_name(run) for run in whole if build.run_name(run) not in shown]


def test_every_stored_run_at_the_papers_budget_is_on_a_page(build):
    assert unseen(build, Store(ROOT / "results").runs()) == []


def test_a_run_that_no_page_shows_is_noticed(build):
    other = stored(learning_rate=0.5)
    half = stored(4)  # GCE, which the page on precisions does not compare
    half.provenance["precision"] = "bf16"
    both = stored(1)
    both.provenance["precision"] = "bf16"
    runs = [stored(1), both, stored(4), half, other]
    assert unseen(build, runs) == [build.run_name(half), build.run_name(other)]
    assert unseen(build, [half]) == []


def test_seeds_that_lose_a_class_early_are_counted_after_the_last_epoch(build, tmp_path):
    path = tmp_path / "lost.csv"
    assert build.first_epochs_lose(path) == ""
    lines = ["variant,epoch,lost_classes"]
    lines += [f"none,{epoch},{lost}" for epoch, lost in ((1, 1), (2, 0), (1, 1), (2, 2))]
    path.write_text("\n".join([*lines, "warmup,2,1"]))
    assert "first 2 epochs at symmetric 0.8, 1 of 2 seeds" in build.first_epochs_lose(path)
