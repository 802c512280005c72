"""Which runs a figure or table needs, and the best profile that is stored."""

import pytest

from lnlsr_book.report import paper_condition
from lnlsr_lib.experiments import EXPERIMENTS, experiment_specs, read_seeds
from lnlsr_lib.losses import LOSSES
from lnlsr_lib.paper import tables
from lnlsr_lib.protocol import METHODS, PROFILES


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_experiment_lists_distinct_runs_of_its_profile_and_seeds(name, profile):
    specs = experiment_specs(name, profile, seeds=(1, 2, 3))
    assert len(specs) == 3 * len(experiment_specs(name, profile))
    assert len({spec.id for spec in specs}) == len(specs)
    assert {spec.profile for spec in specs} == {profile}
    assert [spec.seed for spec in specs] == sorted(spec.seed for spec in specs)
    assert {spec.seed for spec in specs} == {1, 2, 3}


def test_fig3_is_each_loss_with_and_without_sr_on_mnist_at_0_8():
    specs = experiment_specs("fig3")
    assert [spec.method for spec in specs] == ["ce", "ce_sr", "fl", "fl_sr", "gce", "gce_sr"]
    assert {(spec.dataset, spec.noise, spec.noise_rate) for spec in specs} == {
        ("mnist", "symmetric", 0.8)
    }
    assert experiment_specs("fig1") == specs[2:]  # there figure 5 has CE


def test_every_table_of_the_paper_has_a_run_for_each_of_its_cells():
    """By the paper's own numbers: data set, method, noise and rate."""
    for number in range(1, 7):
        cells = tables()[lambda table, number=number: table.table == number]
        wanted = {
            (row.dataset, row.method, row.noise, 0.0 if row.noise == "web" else row.noise_rate)
            for row in cells.itertuples()
        }
        specs = experiment_specs(f"table{number}")
        assert {(spec.dataset, spec.method, *paper_condition(spec)) for spec in specs} == wanted
        assert len(specs) == len(wanted)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        *(("fig1", 4), ("fig2", 14), ("fig4", 10), ("fig5", 8), ("fig6", 24)),
        *(("fig7", 81), ("fig8", 81), ("fig9", 81), ("fig10", 8), ("fig11", 8), ("fig12", 8)),
    ],
)
def test_how_many_runs_a_figure_has(name, runs):
    """Figure 4's two sweeps meet in one run."""
    assert len(experiment_specs(name)) == runs


def test_sweeps_change_what_they_say():
    assert {spec.sr.weight for spec in experiment_specs("fig2")} == {0, 1, 2, 5, 10, 20, 30}
    assert {spec.sr.growth for spec in experiment_specs("fig2")} == {1.0}
    fig4 = {(spec.sr.p, spec.sr.temperature) for spec in experiment_specs("fig4")}
    assert {p for p, tau in fig4 if tau == 0.5} == {0.01, 0.1, 0.3, 0.5, 0.7, 1.0}
    assert {tau for p, tau in fig4 if p == 0.1} == {0.1, 0.3, 0.5, 0.7, 1.0}
    fig6 = {(spec.sr.temperature, spec.sr.weight) for spec in experiment_specs("fig6")}
    assert {tau for tau, _ in fig6} == {1.0, 0.9, 0.8, 0.7, 0.6, 0.5}
    assert {weight for _, weight in fig6} == {0, 2, 5, 20}
    swept = [
        (spec.sr.weight, spec.sr.p, spec.sr.temperature) for spec in experiment_specs("sweeps")
    ]
    weights = {weight for weight, *others in swept if others == [0.1, 0.1]}
    assert weights == {0, 1, 2, 4, 6, 8, 10, 30, 100}
    assert [spec.sr.warmup for spec in experiment_specs("warmup")] == [0, 1]
    assert [spec.epochs for spec in experiment_specs("nlnl")] == [720]
    assert {spec.human_labels for spec in experiment_specs("people")} == {"worse"}
    assert {spec.method for spec in experiment_specs("methods")} == {*METHODS, *LOSSES, "nlnl_sr"}
    assert [spec.loss_params["detach"] for spec in experiment_specs("focal")] == [True, False] * 2
    floors = [spec.loss_params["floor"] for spec in experiment_specs("gce_floor")]
    assert floors == [0.0, 1e-7]


def test_figures_of_features_have_details_and_so_has_figure_3():
    of_features = {name for name, each in EXPERIMENTS.items() if "features" in each.title}
    assert {name for name, each in EXPERIMENTS.items() if each.details} == {*of_features, "fig3"}


@pytest.mark.parametrize(
    ("name", "dataset", "conditions"),
    [
        ("fig5", "mnist", {("symmetric", rate) for rate in (0.2, 0.4, 0.6, 0.8)}),
        ("fig10", "mnist", {("asymmetric", 0.4), ("asymmetric", 0.2)}),
        ("fig11", "cifar10", {("symmetric", 0.4), ("symmetric", 0.2)}),
        ("fig12", "cifar10", {("asymmetric", 0.4), ("asymmetric", 0.2)}),
        ("fig2", "cifar10", {("symmetric", 0.6)}),
        ("fig4", "cifar10", {("symmetric", 0.6)}),
        ("fig6", "cifar10", {("symmetric", 0.6)}),
        ("sweeps", "mnist", {("symmetric", 0.8)}),
        ("warmup", "mnist", {("symmetric", 0.8)}),
        ("nlnl", "mnist", {("symmetric", 0.6)}),
        ("focal", "mnist", {("symmetric", 0.8)}),
        ("people", "cifar10", {("human", 0.0)}),
        ("methods", "mnist", {("symmetric", 0.6)}),
        ("memorising", "cifar10", {("symmetric", 0.6)}),
        ("precision", "mnist", {("symmetric", 0.8)}),
        ("gce_floor", "mnist", {("symmetric", 0.8)}),
    ],
)
def test_an_experiment_has_the_condition_in_its_title(name, dataset, conditions):
    specs = experiment_specs(name)
    assert {spec.dataset for spec in specs} == {dataset}
    assert {(spec.noise, spec.noise_rate) for spec in specs} == conditions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig99",), "unknown experiment 'fig99'; there are: fig1, fig2, fig3"),
        (("fig3", "full"), "unknown profile 'full'"),
        (("fig3", "smoke", ()), "seeds must be one or more distinct integers"),
        (("fig3", "smoke", (1, 1)), r"distinct integers, got \[1, 1\]"),
        (("fig3", "smoke", (-1,)), "seed"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment_specs(*arguments)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_the_same_cells_in_every_profile(name):
    """Pages put a cell's profiles side by side."""
    assert len({len(experiment_specs(name, profile)) for profile in PROFILES}) == 1


@pytest.mark.parametrize(
    ("value", "seeds"),
    [
        *(("auto", None), (1, [1]), ("1", [1]), ("1,3", [1, 3]), ("1-3", [1, 2, 3])),
        ("1-1000", [*range(1, 1001)]),
        ([2, 1], [2, 1]),
        ("[1,2]", [1, 2]),
    ],
)
def test_seeds_are_read(value, seeds):
    assert read_seeds(value) == seeds


@pytest.mark.parametrize(
    "value",
    [
        "all",
        "3-1",
        "1,1",
        [],
        [1, 1],
        [-1],
        ["1"],
        [True],
        1.5,
        None,
        "1-",
        "1-1001",
        "1_3",
        "[1",
        "1]]",
        "\uff11",
        "9" * 20,
        "1-" + "9" * 18,
    ],
)
def test_other_seeds_are_refused_and_the_right_form_is_named(value):
    with pytest.raises(ValueError, match="seeds must be auto, 1, 1,2 or 1-3"):
        read_seeds(value)
