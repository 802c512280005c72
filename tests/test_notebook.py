import base64
from math import isnan

import numpy as np
import pytest

from lnlsr_book import notebook
from lnlsr_book.report import Claim
from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.paper import published
from lnlsr_lib.regularization import lp_norm, sparse_rates
from lnlsr_lib.store import Store
from lnlsr_lib.trainer import HISTORY, RunResult

PARAMETERS = """\
profile: str = "auto"  # budget
seeds: object = "auto"  # which
device: str = "cpu"  # where
precision: str = "auto"  # how
rate: float = 0.5  # of noise
loud: bool = False  # or not
weights: list[float] = [0.0]  # several
"""
SHARES = ("sparse_rate", "zero_rate", "memorised", "corrected", "fitted", "clipped")
KINDS = {"profile": str, "seeds": object, "device": str, "precision": str}
KINDS |= {"rate": float, "loud": bool, "weights": list[float]}
VALUES = {"profile": "auto", "seeds": "auto", "device": "cpu", "precision": "auto"}
VALUES |= {"rate": 0.5, "loud": False, "weights": [0.0]}


def namespace(*cells, **injected):
    """A notebook's globals behind its parameters, and behind what papermill puts there."""
    sources = ["", *cells, "%matplotlib inline", PARAMETERS]
    if injected:
        lines = [f"{name} = {value!r}" for name, value in injected.items()]
        sources.append("\n".join(["# Parameters", *lines]))
    sources.append("from lnlsr_book import notebook")
    return {"In": sources, "__annotations__": KINDS, "Store": Store, **VALUES, **injected}


def test_declared_parameters_of_the_right_type_pass():
    assert notebook.check_parameters(namespace()) == VALUES
    assert notebook.check_parameters(namespace(rate=1, seeds=[1, 2]))["seeds"] == [1, 2]
    without_history = namespace() | {"In": [""]}  # as nbval's kernels are
    assert notebook.check_parameters(without_history) == VALUES


@pytest.mark.parametrize("value", [1, "smoke", [1], None, {"a": 1}])
def test_an_unknown_parameter_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"unknown parameter 'profil'; there are: profile, seeds"):
        notebook.check_parameters(namespace(profil=value))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("profile", 3, "valid string .*input_value=3"),
        ("rate", "0.5", "valid number .*input_value='0.5'"),
        ("rate", True, "valid number .*input_type=bool"),
        ("loud", 1, "valid boolean .*input_value=1"),
        ("weights", [0.5, "1"], "valid number .*input_value='1'"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused(name, value, wanted):
    with pytest.raises(ValueError, match=rf"(?s){name}.*{wanted}"):
        notebook.check_parameters(namespace(**{name: value}))


def test_a_notebook_may_be_executed_twice_in_one_kernel_and_with_a_users_own_names():
    """What earlier cells, a start-up file or another notebook left there is no parameter."""
    mine = namespace("mine = 1\ntotal: int = 0\nprint(mine)", "# Parameters\nprofil = 1")
    assert notebook.check_parameters(mine | {"mine": 1, "table": [1]}) == VALUES
    twice = namespace(PARAMETERS, "# Parameters\nold = 1", "old = 1")
    assert notebook.check_parameters(twice | {"old": 1}) == VALUES


CONFUSION = [[1, 0], [0, 1]]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("LNLSR_RESULTS", str(tmp_path))
    monkeypatch.setattr(notebook, "estimate", lambda specs, **_: [])
    return Store()


def put(store, specs, precision="float32", accuracy=50.0):
    for spec in specs:
        rising = [accuracy / 2] * (spec.epochs - 2)  # then the best epoch, then the last
        history = {name: [*rising, accuracy + 1, accuracy] for name in HISTORY}
        history |= {name: [1.0] * spec.epochs for name in SHARES}
        store.save(RunResult(spec, history, "cpu", precision, 1, "made up", 0.8, CONFUSION))


def refuse(*_, **__):
    raise AssertionError("nothing may be trained")


@pytest.fixture
def idle(monkeypatch):
    """Trains nothing."""
    monkeypatch.setattr(notebook, "run_all", lambda specs, *_, **__: [] if not specs else refuse())


@pytest.mark.usefixtures("idle")
def test_auto_takes_the_profile_of_which_most_is_stored(store, capsys):
    put(store, experiment_specs("fig3", "lite"))
    page = notebook.open_page("fig3", namespace())
    assert (page.profile, len(page.runs), len(page.missing)) == ("lite", 6, 6)
    put(store, experiment_specs("fig3", "paper")[:5])
    page = notebook.open_page("fig3", namespace())
    assert (page.profile, len(page.runs), len(page.missing)) == ("lite", 6, 1)
    assert [cell.spec.profile for cell in page.best] == [*["paper"] * 5, "lite"]
    assert "<code>-p profile paper</code> trains what is missing" in page.note()
    put(store, experiment_specs("fig3", "paper")[5:])
    page = notebook.open_page("fig3", namespace())
    assert (page.profile, len(page.runs), page.note()) == ("paper", 6, "")
    assert "6 of 6 cells are stored; at the paper's budget 0 are missing" in capsys.readouterr().out


@pytest.mark.usefixtures("idle")
def test_all_seeds_are_shown_or_those_that_are_asked_for(store, capsys):
    put(store, experiment_specs("fig3", "paper", [1]))
    put(store, experiment_specs("fig3", "paper", [3])[:2])
    page = notebook.open_page("fig3", namespace())
    assert [[run.spec.seed for run in cell.runs] for cell in page.cells[:3]] == [
        [1, 3],
        [1, 3],
        [1],
    ]
    page = notebook.open_page("fig3", namespace(seeds="1,2"))
    assert {run.spec.seed for run in page.runs} == {1}
    assert page.profile == "paper"
    printed = capsys.readouterr().out
    for spec in experiment_specs("fig3", "paper", [2]):
        assert spec.id in printed


@pytest.mark.usefixtures("idle")
def test_a_precision_can_be_asked_for_and_float32_comes_first(store):
    specs = experiment_specs("fig3", "paper")
    put(store, specs[:2], "bf16", accuracy=10.0)
    put(store, specs[:1], "float32", accuracy=20.0)
    page = notebook.open_page("fig3", namespace())
    assert [cell.ours for cell in page.cells[:2]] == [20.0, 10.0]
    page = notebook.open_page("fig3", namespace(precision="bf16"))
    assert [cell.ours for cell in page.cells[:2]] == [10.0, 10.0]


def test_a_named_profile_trains_what_is_missing_and_smoke_no_more_than_a_few_cells(
    store, monkeypatch
):
    trained = []

    def run_all(specs, *_, **__):
        trained.extend(specs)
        put(store, specs)

    monkeypatch.setattr(notebook, "run_all", run_all)
    put(store, experiment_specs("precision", "lite")[:1])
    page = notebook.open_page("precision", namespace(profile="lite", seeds=[1, 2]))
    assert {(spec.profile, spec.seed) for spec in trained} == {("lite", 1), ("lite", 2)}
    assert (len(trained), len(page.runs)) == (3, 4)
    shown = page.beside("Every accuracy of CE and of CE+SR.")
    said = "symmetric 0.8, reduced (profile lite: 10,000 images, 20 epochs).</b>"
    assert f"<b>bf16 beside float32, MNIST, {said}" in shown
    trained.clear()
    page = notebook.open_page("fig8", namespace())
    assert page.profile == "smoke"
    assert len(trained) == len(page.runs) == notebook.SMOKE_CELLS
    seen = {"caption": "Every accuracy of ours.", "alt": "Nothing is drawn here."}
    shown = page.figure(lambda axes, key: None, {"a": 1}, **seen)
    assert (
        "rehearsed on scikit-learn's digits (profile smoke).</b> What the real one shows" in shown
    )
    assert not any(cell.runs for cell in page.best)  # digits never stand beside the paper's
    assert "<b>Figure 8.</b>" in page.beside("Every accuracy of the paper and of ours.")
    trained.clear()
    assert notebook.open_page("table3", namespace()).profile == "smoke"
    assert not trained
    notebook.open_page("table3", namespace(profile="smoke"))
    assert len(trained) == notebook.SMOKE_CELLS


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fig3", {"profile": "full"}, "profile must be auto, paper, lite, smoke, got 'full'"),
        ("fig99", {}, "unknown experiment 'fig99'"),
        ("fig3", {"seeds": "all"}, "seeds must be auto"),
        ("fig3", {"precision": "fp32"}, "precision must be auto, float32 or bf16, got 'fp32'"),
        ("fig3", {"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
)
def test_bad_parameters_are_refused(store, name, changes, message):
    with pytest.raises(ValueError, match=message):
        notebook.open_page(name, namespace(**changes))


@pytest.fixture
def page(store, idle):
    for i, spec in enumerate(experiment_specs("table1")[:9]):  # MNIST, clean: every method
        put(store, [spec], accuracy=90.0 + i)
    return notebook.open_page("table1", namespace())


def test_cells_are_selected_by_what_the_paper_varies(page):
    assert len(page.select(dataset="mnist", noise="clean")) == 9
    assert len(page.select(method=["ce", "ce_sr"], noise_rate=0.8)) == 6
    assert page.mean(dataset="mnist", method="ce", noise="clean") == 90.0
    assert isnan(page.mean(dataset="cifar10", method="ce"))


def test_gains_are_by_condition_and_leave_out_what_is_not_run(page):
    names = [cell.spec.method for cell in page.select(dataset="mnist", noise="clean")]
    ahead = names.index("ce_sr") - names.index("ce")
    clean = {"dataset": "mnist", "noise": "clean"}
    (gain,) = page.gains("ce_sr", "ce", **clean).values()
    assert (gain.ours, gain.budget) == (ahead, "paper")
    assert gain.paper == published("mnist", "ce_sr", "clean", 0).mean - 99.15
    assert page.gains("gce_sr", ["ce", "fl_sr"])["MNIST, clean"].ours == 1
    assert page.gains(["ce_sr", "gce_sr"], ["ce", "fl_sr"])["MNIST, clean"].ours == 1
    noisy = page.gains("ce_sr", "ce", noise="symmetric")
    assert len(noisy) == 12
    assert all(isnan(gain.ours) and not isnan(gain.paper) for gain in noisy.values())


def test_gains_are_over_the_seeds_that_all_methods_have(store, idle):
    ce, sr = experiment_specs("precision", "paper", [1])[:2]
    more = experiment_specs("precision", "paper", [2])[1]
    for spec, accuracy in ((ce, 20.0), (sr, 90.0), (more, 99.0)):
        put(store, [spec], accuracy=accuracy)
    page = notebook.open_page("precision", namespace())
    assert page.gains("ce_sr", "ce")["MNIST, sym0.8"].ours == 70
    assert page.select(method="ce_sr")[0].ours == 94.5
    assert page.mean(method="ce") == 20  # in the last epoch
    assert page.mean(of=max, method="ce") == 21


def test_gains_are_of_the_best_budget_that_has_both_methods(store, idle):
    paper, lite = (experiment_specs("precision", profile) for profile in ("paper", "lite"))
    put(store, lite[:1], accuracy=50.0)
    put(store, lite[1:2], accuracy=60.0)
    put(store, paper[:1], accuracy=90.0)  # CE alone
    page = notebook.open_page("precision", namespace())
    assert page.gains("ce_sr", "ce")["MNIST, sym0.8"][::2] == (10, "lite")
    assert page.gain("a", ("ce_sr", "ce")).budget == "lite"
    assert "holds, at lite budget" in page.claims(page.gain("a", ("ce_sr", "ce")))
    put(store, paper[1:2], accuracy=95.0)
    page = notebook.open_page("precision", namespace())
    assert page.gains("ce_sr", "ce")["MNIST, sym0.8"][::2] == (5, "paper")
    claim = page.gain("a", ("ce_sr", "ce"))
    assert (claim.value, claim.budget) == (5, "paper")
    assert ">holds</span>" in page.claims(claim)


def test_a_claim_on_gains_says_in_how_many_conditions_it_is_measured(page):
    pairs = ("ce_sr", "ce"), ("gce_sr", ("ce", "fl_sr"))
    claim = page.gain("SR helps", *pairs, threshold=0.5, dataset="mnist")
    assert (claim.value, claim.of, claim.holds) == (1, (2, 10), True)
    assert "CE+SR less CE, GCE+SR less the best of CE, FL+SR, last epoch" in claim.measured
    assert "smallest of 10" in claim.measured
    gains = [gain.ours for pair in pairs for gain in page.gains(*pair).values()]
    largest = max(gain for gain in gains if not isnan(gain))
    assert page.gain("SR harms", *pairs, sign="<").value == largest
    assert "holds so far (2 of 10)" in page.claims(claim)
    reverse = page.gain("CE is better", ("ce", "ce_sr"), dataset="mnist").paper
    assert reverse[1] < reverse[0] < 0  # that of the condition which is run is not the least
    assert isnan(page.gain("SR helps", pairs[0], noise="symmetric").value)


def test_a_claim_on_gains_says_what_the_papers_own_numbers_give(page):
    claim = page.gain("SR helps", ("ce_sr", "ce"), dataset="mnist")
    gaps = [
        published("mnist", "ce_sr", *where).mean - published("mnist", "ce", *where).mean
        for where in [("clean", 0.0), *(("symmetric", rate) for rate in (0.2, 0.4, 0.6, 0.8))]
    ]
    assert claim.paper == (gaps[0], min(gaps))  # in the one condition that is run, and in all
    assert claim.value == 6
    assert f"<td>{gaps[0]:.2f} ({min(gaps):.2f} of all)</td>" in page.claims(claim)
    unrun = page.gain("SR helps", ("ce_sr", "ce"), dataset="mnist", noise_rate=0.8)
    assert f"<td>{gaps[-1]:.2f}</td>" in page.claims(unrun)
    rates = (0.2, 0.4, 0.6, 0.8)
    ahead = [
        min(published("mnist", m, "symmetric", x).mean for m in notebook.WITH_SR)
        > max(published("mnist", m, "symmetric", x).mean for m in notebook.WITHOUT)
        for x in rates
    ]
    _, share = page.top_three(noise="symmetric", dataset="mnist").paper
    assert share == sum(ahead) / len(rates)


def test_a_claim_on_each_cell_is_held_against_the_worst(page):
    claim = page.each("All learn", "last epoch", lambda h: h[-1], threshold=89, dataset="mnist")
    assert (claim.value, claim.of, claim.holds) == (90.0, (9, 45), True)
    assert claim.measured == "last epoch, smallest of 45"
    assert page.each("a", "b", lambda h: h[-1], sign="<", noise="clean").value == 98.0
    assert isnan(page.each("a", "b", lambda h: h[-1], noise="symmetric").value)


def test_a_claim_on_each_cell_has_the_budget_of_the_cells_it_is_from(store, idle):
    lite, paper = (experiment_specs("fig4", profile) for profile in ("lite", "paper"))
    put(store, lite[1:4])
    put(store, paper[:1])
    page = notebook.open_page("fig4", namespace())
    assert page.profile == "lite"  # of which most is stored
    for spec, budget in ((lite[1], "lite"), (paper[0], "paper")):
        own = {"p": spec.sr.p, "temperature": spec.sr.temperature}
        assert page.each("a", "b", max, **own).budget == budget


def test_the_best_three_are_those_in_more_than_half_and_nlnl_is_none_of_the_others(page):
    assert page.top_three().threshold == 0.5
    assert set(notebook.WITHOUT) == {"ce", "fl", "gce", "sce", "apl"}


def test_a_page_that_wants_details_trains_what_is_stored_without(store, monkeypatch):
    specs, asked = experiment_specs("fig1"), []
    put(store, specs)
    monkeypatch.setattr(
        notebook, "run_all", lambda todo, store, **options: asked.append((todo, options))
    )
    notebook.open_page("fig1", namespace(profile="paper", precision="float32"))
    (todo, options), *_ = asked
    assert todo == specs
    assert options == {"device": "cpu", "precision": "float32", "details": True}
    asked.clear()
    put(store, experiment_specs("table1"))
    notebook.open_page("table1", namespace(profile="paper"))
    assert asked[0][0] == []


def test_a_page_by_epoch_has_a_panel_a_condition(store, idle, monkeypatch):
    put(store, experiment_specs("fig7")[:2])
    page, limits = notebook.open_page("fig7", namespace()), []
    drawn = []
    monkeypatch.setattr(
        "lnlsr_book.plots.draw_curves",
        lambda axes, lines: limits.append(axes.get_ylim()) or drawn.append(lines),
    )
    shown = page.by_epoch("Every accuracy by epoch.")
    lowest = min(min(run.history["test_accuracy"]) for run in page.runs)
    assert lowest > 10
    assert sorted(limits) == [(0, 100)] * 16 + [(lowest // 10 * 10, 100)] * 2  # whole, and alone
    assert "begins at the multiple of ten" in shown
    for cell in page.cells[:2]:
        assert drawn[0][cell.spec.method] == [run.history["test_accuracy"] for run in cell.runs]
    assert shown.count("<svg") == 9
    assert "clean: One line a method, by epoch." in shown
    assert "asymmetric 0.4: One line" in shown


def test_a_wide_grid_is_parted_by_the_kind_of_noise(store, idle):
    put(store, experiment_specs("fig7")[:1])
    shown = notebook.open_page("fig7", namespace()).grids()
    parts = shown.split("<h3>")[1:]
    assert [part.partition("</h3>")[0] for part in parts] == ["MNIST", "MNIST, asymmetric noise"]
    assert [part.count('scope="col"') for part in parts] == [6, 5]
    for name in ("table4", "table5"):
        assert notebook.open_page(name, namespace()).grids().count("<h3>") == 2


def test_whether_those_with_sr_are_the_best_three_asks_for_whole_conditions(page):
    assert (page.top_three().value, page.top_three().of) == (1, (1, 15))
    assert isnan(page.top_three(noise="symmetric").value)
    both = page.gains(["ce_sr", "gce_sr"], "ce", of=min), page.gains("ce_sr", "ce")
    assert len({gains["MNIST, clean"].ours for gains in both}) == 1


def test_a_page_says_what_missing_runs_cost_and_times_nothing(page, monkeypatch):
    monkeypatch.setattr("lnlsr_lib.cost.train", refuse)
    assert "on an A100-class GPU" in page.note()
    assert "lnlsr estimate table1 --profile paper" in page.note()


def test_a_page_names_what_is_missing_and_leads_to_its_files_and_functions(page, store):
    assert "126 of 135 runs at the paper's budget are missing" in page.note()
    shown = page.beside("Every accuracy of the table and ours.")
    assert shown.count("<svg") == 15
    assert "<b>Table 1.</b>" in shown
    files = {path.name for path in (store.folder / "table1").iterdir()}
    assert files == {f"table1.{ending}" for ending in ("png", "svg", "pdf", "csv")}
    footer = page.footer(lp_norm, sparse_rates)  # the second one is decorated
    assert "table1.csv" in footer
    assert "lnlsr_lib/regularization.py#lp_norm" in footer
    assert "lnlsr_lib/regularization.py#sparse_rates" in footer
    assert "lnlsr run table1 --profile paper" in footer
    assert page.grids().count("<h3>") == 3
    assert "not tested" in page.claims(Claim("a", "b", float("nan"), ">", 0))
    assert page.comparison().count("<tr>") == 136


@pytest.mark.usefixtures("idle")
def test_features_are_compared_with_sr_and_without(store):
    for spec in experiment_specs("fig1", "paper")[:2]:
        history = {name: [1.0] * spec.epochs for name in HISTORY}
        features = {"knn_accuracy": 90.0 + 5 * bool(spec.sr), "silhouette": 0.5}
        result = RunResult(spec, history, "cpu", "float32", 1, "made up", 0.8, CONFUSION)
        store.save(result, features)
    page = notebook.open_page("fig1", namespace())
    text = page.separation({"FL": {"method": "fl"}, "GCE": {"method": "gce"}})
    assert text.count("<td>5.000</td>") == 1
    assert text.count(">not tested<") == 2
    shown = page.embeddings({"FL": {"method": "fl"}}, "The test images of MNIST by features.")
    assert ">run without features<" in shown
    shown = page.embeddings({"GCE": {"method": "gce"}}, "The test images of MNIST by features.")
    assert ">not run<" in shown


@pytest.mark.usefixtures("idle")
def test_without_the_labels_that_colour_features_the_stored_picture_is_shown(store, monkeypatch):
    spec = experiment_specs("fig1", "paper")[0]
    history = {name: [1.0] * spec.epochs for name in HISTORY}
    result = RunResult(spec, history, "cpu", "float32", 1, "made up", 0.8, CONFUSION)
    embedding = np.zeros((sum(map(sum, CONFUSION)), 2))
    store.save(result, {"knn_accuracy": 90.0, "silhouette": 0.5}, {"embedding": embedding})
    monkeypatch.setattr(notebook, "_test_labels", lambda dataset: [])
    page = notebook.open_page("fig1", namespace())
    for stored in (b"", b"a picture"):
        if stored:
            (store.folder / "fig1").mkdir()
            (store.folder / "fig1" / "fig1.png").write_bytes(stored)
        shown = page.embeddings({"FL": {"method": "fl"}}, "The test images of MNIST by features.")
        assert "As stored: the test labels that colour it are not at hand." in shown
        assert base64.b64encode(stored).decode() in shown
        assert "not run" not in shown
    assert [path.read_bytes() for path in (store.folder / "fig1").iterdir()] == [stored]
