import pytest

from lnlsr_lib import report
from lnlsr_lib.paper import Published
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.store import StoredRun


def stored(method="ce_sr", accuracy=98.0, seed=1, profile="paper", **provenance):
    spec = make_spec("mnist", method, 0.8, profile=profile, seed=seed)
    facts = {
        "precision": "float32",
        "device": "cpu (some processor)",
        "threads": 2,
        "seconds": 600.0,
        "commit": "0123456789abcdef",
        "modified": False,
        "data": "MNIST",
        "torch": "2.0",
    }
    return StoredRun(spec, {"test_accuracy": [99.0, accuracy]}, facts | provenance)


@pytest.mark.parametrize(
    ("ours", "mean", "std", "said"),
    [
        (98.06, 98.06, 0.86, "agrees"),
        (96.35, 98.06, 0.86, "agrees"),  # within two deviations
        (96.30, 98.06, 0.86, "near"),
        (99.45, 99.0, 0.02, "agrees"),  # within half a point
        (99.55, 99.0, 0.02, "near"),
        (95.9, 99.0, 0.02, "differs"),
        (64.5, 64.16, None, "agrees"),
        (60.0, 64.16, None, "differs"),
    ],
)
def test_verdict(ours, mean, std, said):
    assert report.verdict(ours, Published(1, mean, std)) == said


def test_comparison_shows_last_and_best_epoch_beside_the_paper():
    row = report.comparison([stored(accuracy=98.5)]).loc["CE+SR"]
    assert row["ours, last epoch"] == "98.50"
    assert row["ours, best epoch"] == "99.00"
    assert row["paper"] == "98.06 ± 0.86"
    assert row["verdict"] == "agrees"
    assert row["seeds"] == 1


def test_comparison_averages_over_seeds_alone():
    runs = [stored(accuracy=98.0), stored(accuracy=99.0, seed=2), stored("ce", 22.0)]
    table = report.comparison(runs)
    assert list(table.index) == ["CE+SR", "CE"]
    assert table.loc["CE+SR", "ours, last epoch"] == "98.50 ± 0.71"
    assert table.loc["CE+SR", "seeds"] == 2


def with_spec(run, **changes):
    return StoredRun(run.spec.model_copy(update=changes), run.history, run.provenance)


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
def test_a_run_by_another_protocol_gets_no_verdict(changes):
    table = report.comparison([with_spec(stored(), **changes)])
    assert table.loc["CE+SR", "verdict"] == "not the paper's protocol"
    assert table.loc["CE+SR", "paper"] == ""


def test_a_verdict_on_a_copy_of_the_data_says_so():
    table = report.comparison([stored(data="MNIST (JPEG copy)")])
    assert table.loc["CE+SR", "verdict"] == "agrees, on a copy of the data"


def test_conditions_are_named_where_they_differ():
    other = make_spec("mnist", "ce_sr", 0.6)
    runs = [stored(), StoredRun(other, stored().history, stored().provenance)]
    assert list(report.comparison(runs)["condition"]) == ["sym0.8", "sym0.6"]
    assert "condition" not in report.comparison([stored()])


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


def test_a_reduced_run_gets_no_verdict():
    table = report.comparison([stored(profile="lite")])
    assert table.loc["CE+SR", "verdict"] == "reduced run: no verdict"
    smoke = report.comparison([stored(profile="smoke")])
    assert smoke.loc["CE+SR", "verdict"] == "reduced run: no verdict"


def test_profiles_are_never_mixed_in_one_table():
    with pytest.raises(ValueError, match="one profile"):
        report.comparison([stored(), stored(profile="lite")])
    with pytest.raises(ValueError, match="none"):
        report.comparison([])


def test_badge_names_everything_that_stands_behind_a_figure():
    text = report.badge([stored(), stored("ce", 22.0, modified=True)])
    for part in (
        "Profile paper",
        "all training images",
        "50 epochs",
        "seed 1",
        "cpu (some processor), 2 thread(s), float32",
        "2 runs in 20 min",
        "01234567, 01234567+",
        "protocol 1",
    ):
        assert part in text
    with pytest.raises(ValueError, match="one or more"):
        report.badge([])


@pytest.mark.parametrize(("seconds", "said"), [(59.6, "60 s"), (600, "10 min"), (9000, "2.5 h")])
def test_badge_gives_the_time_in_a_readable_unit(seconds, said):
    assert f"1 runs in {said}" in report.badge([stored(seconds=seconds)])


def test_claims_say_what_holds_and_name_a_reduced_profile():
    text = report.claims([("the sky is up", True), ("water is dry", False)], "lite")
    assert "- holds: the sky is up" in text
    assert "- **does not hold**: water is dry" in text
    assert "not the paper's budget" in text
    assert "not the paper's budget" not in report.claims([("a", True)], "paper")


def test_downloads_link_to_every_format(tmp_path):
    text = report.downloads(tmp_path / "fig3" / "fig3-lite", "fig3.ipynb")
    for ending in ("png", "svg", "pdf", "csv"):
        assert f"(../results/fig3/fig3-lite.{ending})" in text
    assert "[notebook](fig3.ipynb)" in text


def test_precisions_side_by_side():
    runs = {"float32": [stored(accuracy=98.0)], "bf16": [stored(accuracy=98.2, seconds=60.0)]}
    row = report.precisions(runs).loc["CE+SR"]
    assert row["float32, last epoch"] == "98.00"
    assert row["bf16, last epoch"] == "98.20"
    assert row["bf16, time"] == "60 s"


def test_precisions_refuses_different_specs():
    with pytest.raises(ValueError, match="same specs"):
        report.precisions({"float32": [stored()], "bf16": [stored(seed=2)]})
