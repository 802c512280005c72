from math import isnan, nan

import pytest

from lnlsr_book import report
from lnlsr_book.report import Cell, Claim
from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.paper import Published, published
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.store import StoredRun

FACTS = {
    "precision": "float32",
    "device": "cpu (some processor)",
    "threads": 2,
    "seconds": 600.0,
    "commit": "0123456789abcdef",
    "modified": False,
    "data": "MNIST",
    "torch": "2.0",
}


def run_of(spec, accuracy=98.0, confusion=((1,),), **provenance):
    history = {"test_accuracy": [99.0, accuracy]}
    return StoredRun(spec, history, FACTS | provenance, [[*row] for row in confusion])


def stored(method="ce_sr", accuracy=98.0, seed=1, profile="paper", dataset="mnist", **more):
    spec = make_spec(dataset, method, 0.8, profile=profile, seed=seed)
    return run_of(spec, accuracy, **more)


def cell(*runs):
    """The one cell of figure 3 that these runs belong to."""
    cells = report.cells_of("fig3", runs)
    (found,) = [one for one in cells if one.runs]
    return found


@pytest.mark.parametrize(
    ("ours", "mean", "std", "said"),
    [
        (98.06, 98.06, 0.86, "agrees"),
        (96.35, 98.06, 0.86, "agrees"),  # within two deviations
        (96.30, 98.06, 0.86, "near"),
        (99.45, 99.0, 0.02, "agrees"),  # within half a point
        (99.55, 99.0, 0.02, "near"),
        (95.10, 98.06, 0.86, "near"),  # within three points
        (95.00, 98.06, 0.86, "differs"),
        (95.9, 99.0, 0.02, "differs"),
        (64.5, 64.16, None, "agrees"),
        (60.0, 64.16, None, "differs"),
    ],
)
def test_verdict(ours, mean, std, said):
    assert report.verdict(ours, Published(1, mean, std)) == said


def test_a_cell_has_every_seed_and_its_verdict_is_of_their_mean():
    one, two = stored(accuracy=98.0), stored(accuracy=95.0, seed=2)
    assert cell(one).verdict == "agrees"
    assert cell(one).words == "agrees (1 run)"
    both = cell(two, one)
    assert [run.spec.seed for run in both.runs] == [1, 2]
    assert both.ours == 96.5
    assert both.words == "agrees (2 runs)"
    assert cell(two).verdict == "differs"
    assert both.series("test_accuracy") == [[99.0, 98.0], [99.0, 95.0]]


def test_all_cells_are_there_and_one_without_runs_says_so():
    cells = report.cells_of("fig3", [stored()])
    assert [c.spec.method for c in cells] == ["ce", "ce_sr", "fl", "fl_sr", "gce", "gce_sr"]
    assert [c.verdict for c in cells] == ["not run", "agrees", *["not run"] * 4]
    assert all(isnan(c.ours) for c in cells if not c.runs)


def test_the_first_profile_with_runs_is_taken_and_profiles_are_never_mixed():
    paper, lite = stored(), stored(profile="lite", seed=2)
    assert cell(lite, paper).runs == (paper,)
    reduced = cell(lite)
    assert (reduced.verdict, reduced.words) == ("reduced budget", "lite: no verdict")
    assert report.grid([reduced]).count("<small>lite</small>") == 1
    assert "lite</small>" not in report.grid([cell(paper)])
    smoke = cell(stored(profile="smoke"))
    assert (smoke.verdict, smoke.name) == ("reduced budget", "MNIST, sym0.8")


def test_of_one_seed_the_run_in_float32_counts():
    first, second = stored(), stored(accuracy=50.0, precision="bf16")
    assert cell(first, second).runs == cell(second, first).runs == (first,)
    assert cell(second).runs == (second,)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnist", "may be of a run 14 times as long"),
        ("cifar10", "may be of a run 8 times as long"),
        ("cifar100", "is of a run 10 times as long"),
    ],
)
def test_nlnl_gets_no_verdict_since_it_has_fewer_epochs(name, said):
    (found,) = [c for c in report.cells_of("table1", [stored("nlnl", dataset=name)]) if c.runs]
    assert (found.verdict, found.judged) == ("fewer epochs", False)
    assert found.words == f"no verdict: the paper's {said}"
    assert f"1/{found.longer} epochs" in report.grid([found])
    assert "<td>-</td>" in report.comparison([found])  # no difference either


def test_of_nlnl_under_asymmetric_noise_cifar10s_are_apls():
    run = run_of(make_spec("cifar10", "nlnl", noise="asymmetric", noise_rate=0.2))
    (found,) = [c for c in report.cells_of("table2", [run]) if c.runs]
    assert found.words == "no verdict: the paper's is of a run 8 times as long"


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_variant": "official"},
        {"learning_rate": 0.02},
        {"sr": None},
        {"sr": stored().spec.sr.model_copy(update={"p": 0.5})},
    ],
    ids=repr,
)
def test_a_run_by_another_protocol_is_not_one_of_the_papers(changes):
    assert report.follows_protocol(stored().spec)
    assert not report.follows_protocol(stored().spec.model_copy(update=changes))


def test_sr_where_the_protocol_has_none_and_noise_beside_imbalance_are_not_the_papers():
    plain = stored("ce").spec
    assert report.follows_protocol(plain)
    assert not report.follows_protocol(plain.model_copy(update={"sr": stored().spec.sr}))
    uneven = make_spec("cifar10", "ce", imbalance="step", imbalance_ratio=0.1)
    assert report.follows_protocol(uneven)
    both = make_spec("cifar10", "ce", 0.4, imbalance="step", imbalance_ratio=0.1, noise="symmetric")
    assert not report.follows_protocol(both)


def test_a_swept_run_has_no_number_of_the_papers():
    spec = experiment_specs("fig2")[0]
    (found,) = [c for c in report.cells_of("fig2", [run_of(spec)]) if c.runs]
    assert (found.verdict, found.paper) == ("no verdict", None)


@pytest.mark.parametrize(
    ("dataset", "method", "condition", "paper"),
    [
        ("cifar10", "ce", {"imbalance": "long-tailed", "imbalance_ratio": 0.1}, ("lt", 0.1)),
        ("cifar100", "ce_sr", {"imbalance": "step", "imbalance_ratio": 0.01}, ("step", 0.01)),
        ("webvision", "ce_sr", {}, ("web", 0.0)),
        ("cifar10", "apl", {"noise_rate": 0.4, "noise": "asymmetric"}, ("asymmetric", 0.4)),
    ],
)
def test_conditions_are_found_in_the_papers_tables(dataset, method, condition, paper):
    spec = make_spec(dataset, method, **condition)
    assert report.paper_condition(spec) == paper
    assert report.published(dataset, method, *paper) is not None
    assert report.follows_protocol(spec)


def test_comparison_puts_paper_and_verdict_behind_the_name_and_links_each_seed():
    text = report.comparison([cell(stored(accuracy=98.0), stored(accuracy=99.0, seed=2))])
    head = text[: text.index("</thead>")]
    places = [head.index(name) for name in ("method", "paper", "verdict", "ours, last epoch")]
    assert places == sorted(places)
    assert "98.50&nbsp;±&nbsp;0.71" in text
    assert "<td>99.00&nbsp;±&nbsp;0.00</td>" in text  # the best epochs
    assert "98.06&nbsp;±&nbsp;0.86" in text
    for run in (stored(), stored(seed=2)):
        assert f"runs/{run.spec.id}.float32.json" in text


@pytest.mark.parametrize(("usual", "rarer"), [("float32", "bf16"), ("bf16", "float32")])
def test_tables_name_the_rarer_precision_where_they_are_mixed(usual, rarer):
    first, second = stored(precision=usual), stored(seed=2, precision=usual)
    group = report.cells_of("fig3", [first, second, stored("ce", 22.0, precision=rarer)])
    for text in (report.comparison(group), report.grid(group)):
        assert f"In {usual}, but" in text
        assert text.count(f"<small>{rarer}</small>") == 1
        assert f"<small>{usual}</small>" not in text
    alone = [cell(stored("ce", precision=rarer))]
    for text in (report.comparison(alone), report.grid(alone)):
        assert "but for what" not in text
        assert f"<small>{rarer}" not in text


def test_a_cell_of_both_precisions_says_which_of_its_runs_is_in_the_rarer_one():
    one = cell(*(stored(seed=n, precision="bf16") for n in (1, 2)), stored(seed=3))
    assert "<small>bf16, float32</small>" in report.grid([one])
    assert report.comparison([one]).count(" <small>float32</small>") == 1


def test_comparison_has_the_difference_where_there_is_a_verdict():
    assert "<td>+0.44</td>" in report.comparison([cell(stored(accuracy=98.5))])
    assert "<td>\N{MINUS SIGN}1.06</td>" in report.comparison([cell(stored(accuracy=97.0))])
    assert "<td>-</td>" in report.comparison([cell(stored(profile="lite"))])


def test_a_sweep_says_what_is_varied_and_what_becomes_of_the_labels():
    one = experiment_specs("sweeps")[0]
    history = {"test_accuracy": [80.0, 75.0], "memorised": [0.1, 0.4], "corrected": [0.3, 0.25]}
    run = StoredRun(one, history | {"fitted": [0.5, 0.875]}, FACTS, [[1]])
    cells = report.cells_of("sweeps", [run])[:2]
    assert cells[0].drop == 5
    assert isnan(cells[1].drop)
    text = report.sweep(cells)
    for value in ("75.00", "5.00", "40.0", "25.0", "87.5"):
        assert f">{value}<" in text
    assert text.count("<td>-</td>") == 4  # of the one that is not run
    assert text.count("<td>not run</td>") == 1
    lite = StoredRun(experiment_specs("sweeps", "lite")[1], run.history, FACTS, [[1]])
    mixed = report.sweep(report.cells_of("sweeps", [run, lite])[:3])
    assert mixed.count("<small>lite</small>") == 1
    assert "<small>" not in text
    assert "growing" not in text
    grows = report.cells_of("warmup", [])
    assert report.sweep(grows).count("4, growing") == 2


def test_conditions_are_named_where_they_differ():
    runs = [run_of(make_spec("mnist", "ce", rate)) for rate in (0.2, 0.4)]
    cells = [c for c in report.cells_of("fig5", runs) if c.runs]
    assert "CE, sym0.2" in report.comparison(cells)
    assert "sym0.2" not in report.comparison(cells[:1]).replace(cells[0].runs[0].spec.id, "")


def test_grid_has_a_row_a_method_and_a_column_a_condition():
    runs = [run_of(make_spec("mnist", "ce", rate), 10.0) for rate in (0.2, 0.8)]
    cells = [c for c in report.cells_of("table1", runs) if c.spec.dataset == "mnist"]
    text = report.grid(cells)
    assert text.count("<tr>") == 1 + 9
    assert text.count('scope="col"') == 1 + 5
    assert text.count('class="verdict differs"') == 2
    assert text.count('class="verdict not-run"') == 43


@pytest.mark.parametrize("name", ["table3", "table5"])  # data and conditions without NLNL
def test_grid_takes_every_table(name):
    assert 'class="verdict not-run"' in report.grid(report.cells_of(name, []))


def test_a_table_escapes_what_is_not_html_and_needs_rows():
    text = report.table([{"a<b": "x & y", "link": report.Html("<b>bold</b>")}])
    assert "a&lt;b" in text
    assert "x &amp; y" in text
    assert "<b>bold</b>" in text
    assert text._repr_html_() == str(text)
    with pytest.raises(ValueError, match="one or more"):
        report.table([])


def test_badge_names_everything_that_stands_behind_a_figure():
    text = report.badge([stored(), stored("ce", 22.0, modified=True)])
    for part in (
        "Profile paper",
        "trained on 60,000 images · 50 epochs",
        "50 epochs",
        "seed 1",
        "2 runs in 20 min on cpu (some processor), 2 threads",
        "float32",
        "01234567, 01234567+",
        f"protocol {stored().spec.protocol}",
    ):
        assert part in text
    assert report.badge([]) == ""
    assert "seed 1, 2, 10 ·" in report.badge([stored(seed=seed) for seed in (10, 1, 2)])
    there = report.badge([stored(), stored("ce", 22.0, device="cuda (an H100)", seconds=60.0)])
    assert "1 run in 60 s on cuda (an H100), 2 threads" in there
    assert "1 run in 10 min on cpu (some processor)" in there


@pytest.mark.parametrize("first", [0, 1])
def test_badge_names_each_commit_that_a_run_was_trained_with(first):
    both = ["0123456789abcdef", "fedcba9876543210"]
    runs = [stored(commit=both[1], commits=both), stored("ce")]
    text = report.badge(runs if first == 0 else runs[::-1])
    assert "commit 01234567, 01234567 to fedcba98 ·" in text


@pytest.mark.parametrize(("seconds", "said"), [(59.6, "60 s"), (600, "10 min"), (9000, "2.5 h")])
def test_badge_gives_the_time_in_a_readable_unit(seconds, said):
    assert f"1 run in {said}" in report.badge([stored(seconds=seconds)])


@pytest.mark.parametrize(
    ("value", "sign", "threshold", "holds"),
    [
        *((1.0, ">", 0, True), (0.0, ">", 0, False), (1.0, "<", 2, True), (2.0, "<", 2, False)),
        (nan, "<", 2, None),
    ],
)
def test_a_claim_holds_does_not_or_cannot_be_said(value, sign, threshold, holds):
    claim = Claim("the sky is up", "by looking", value, sign, threshold)
    assert claim.holds is holds
    said = {True: "holds", False: "does not hold", None: "not tested"}[holds]
    assert f">{said}</span>" in report.claims([claim], "paper")
    budget = "" if holds is None else ", at lite budget"
    assert f">{said}{budget}</span>" in report.claims([claim], "lite")
    assert ">not tested</span>" in report.claims([claim], "smoke")


def test_a_claim_of_its_own_budget_names_that_and_not_the_pages():
    reduced = report.claims([Claim("a", "b", 1.0, ">", 0, budget="lite")], "paper")
    assert ">holds, at lite budget</span>" in reduced
    whole = report.claims([Claim("a", "b", 1.0, ">", 0, budget="paper")], "lite")
    assert ">holds</span>" in whole
    digits = report.claims([Claim("a", "b", 1.0, ">", 0, budget="smoke")], "paper")
    assert ">not tested</span>" in digits


def test_what_the_papers_numbers_give_has_a_column_where_any_claim_has_it():
    plain, other = (
        Claim("a", "b", 1.0, ">", 0),
        Claim("c", "d", 2.0, ">", 0, 1, paper=(3.456, 3.456)),
    )
    assert "the paper&#x27;s" not in report.claims([plain], "paper")
    both = report.claims([plain, other], "smoke")  # which tests nothing, but the paper's stay
    assert ">the paper&#x27;s</th>" in both
    assert "<td>-</td><td>-</td>" in both
    assert "<td>-</td><td>3.5</td>" in both


def test_a_claim_refuses_another_sign():
    with pytest.raises(ValueError, match=r"should be '<' or '>' .*input_value='=='"):
        Claim("a", "b", 1.0, "==", 1.0)


def test_links_hold_where_the_notebook_is(tmp_path, monkeypatch):
    monkeypatch.setenv("LNLSR_RESULTS", str(tmp_path / "results"))
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert 'href="../results/runs/' in report.run_link(stored(), "98.00")
    monkeypatch.chdir(tmp_path)
    assert 'href="results/runs/' in report.run_link(stored(), "98.00")


def test_cells_are_frozen():
    with pytest.raises(AttributeError):
        cell(stored()).runs = ()
    assert isinstance(cell(stored()), Cell)


def test_apls_nlnl_is_the_papers_where_the_paper_took_it_over():
    theirs = report.apl_nlnl()
    same = [
        condition
        for condition, apl in theirs.items()
        if str(published(condition[0], "nlnl", *condition[1:])) == str(apl)
    ]
    assert len(theirs) == 27
    assert str(theirs["mnist", "symmetric", 0.6]) == "97.22 ± 0.06"
    cifar100 = {c for c in theirs if c[0] == "cifar100"}
    assert set(same) == cifar100 | {c for c in theirs if c[:2] == ("cifar10", "asymmetric")}


@pytest.mark.parametrize(
    ("confusion", "lost"),
    [
        (((9, 1), (0, 10)), []),
        (((10, 0), (10, 0)), [1]),
        (((100, 0), (96, 4)), [1]),  # some image is predicted as it, and yet
        (((100, 0), (95, 5)), []),
        (((0, 1), (1, 0)), [0, 1]),
    ],
)
def test_a_class_is_lost_below_five_percent_of_recall(confusion, lost):
    assert report.lost_classes(stored(confusion=confusion)) == lost


def test_tables_name_runs_with_sr_that_lost_a_class():
    lost = ((10, 0), (10, 0))
    one, other = stored(confusion=lost), stored(seed=2, confusion=((9, 1), (0, 10)))
    text = report.comparison([cell(one)])
    assert '/lost_classes.ipynb">lost: class 1</a>' in text
    assert "1 of 2 lost a class" in report.grid([cell(one, other)])
    neither = stored(seed=3, confusion=((0, 1), (1, 0)))
    assert "1 of 2 lost a class" in report.grid([cell(neither, other)])
    assert "lost: 2 classes" in report.grid([cell(stored(confusion=((0, 1), (1, 0))))])
    assert "lost" not in report.grid([cell(other)])
    assert "lost" not in report.grid([cell(stored("ce", confusion=lost))])  # no SR to blame


def test_a_reduced_size_is_named_in_images_and_pixels():
    lite = make_spec("cifar10", "ce", 0.6, profile="lite")
    assert report.size_of([lite]) == "20,000 images of 16 by 16 pixels"
    whole = make_spec("cifar10", "ce", 0.6)
    assert report.size_of([whole]) == "50,000 images"
    assert report.size_of([lite, whole]) == "20,000 to 50,000 images, some of 16 by 16 pixels"
    tails = [make_spec("cifar10", "ce", imbalance="step", imbalance_ratio=r) for r in (0.01, 0.1)]
    assert report.size_of(tails) == "25,250 to 27,500 images"


def test_webvisions_condition_is_not_called_clean():
    (first, *_) = report.cells_of("table3", [])
    assert (report.condition_of(first.wanted), first.name) == ("web", "WebVision, web")
