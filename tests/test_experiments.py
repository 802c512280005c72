"""Which runs a figure or table needs, and the best profile that is stored."""

import pytest

from lnlsr_lib.experiments import EXPERIMENTS, best_profile, experiment_specs
from lnlsr_lib.protocol import PROFILES
from lnlsr_lib.store import Store
from lnlsr_lib.trainer import HISTORY, RunResult


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig99",), "unknown experiment 'fig99'; there are: fig3"),
        (("fig3", "full"), "unknown profile 'full'"),
        (("fig3", "smoke", ()), "seeds must be one or more distinct integers"),
        (("fig3", "smoke", (1, 1)), r"distinct integers, got \[1, 1\]"),
        (("fig3", "smoke", (-1,)), "seed"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment_specs(*arguments)


def test_best_profile_is_the_largest_whose_runs_are_all_stored(tmp_path):
    store = Store(tmp_path)

    def put(spec):
        history = {name: [0.0] * spec.epochs for name in HISTORY}
        store.save(RunResult(spec, history, "cpu", "float32", 1, "made up", 0.8))

    assert best_profile("precision", store) is None
    for spec in experiment_specs("precision", "smoke"):
        put(spec)
    assert best_profile("precision", store) == "smoke"
    assert best_profile("precision", store, seeds=(1, 2)) is None
    first, *rest = experiment_specs("precision", "paper")
    put(first)
    assert best_profile("precision", store) == "smoke"
    for spec in rest:
        put(spec)
    assert best_profile("precision", store) == "paper"
