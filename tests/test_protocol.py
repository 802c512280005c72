"""The paper's protocol as data."""

import pytest

from lnlsr_lib.protocol import METHODS, PROFILES, SPARSE, TRAINING, make_spec
from lnlsr_lib.trainer import build_criterion

ALL = [
    (dataset, method, profile) for dataset in TRAINING for method in METHODS for profile in PROFILES
]


@pytest.mark.parametrize(("dataset", "method", "profile"), ALL)
@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_every_method_and_profile_gives_a_run(dataset, method, profile, rate):
    spec = make_spec(dataset, method, rate, profile=profile, seed=7)
    assert (spec.method, spec.profile, spec.seed) == (method, profile, 7)
    assert (spec.noise, spec.noise_rate) == ("symmetric" if rate else "clean", rate)
    assert (spec.sr is not None) == method.endswith("_sr")
    assert spec.loss == method.split("_")[0]
    build_criterion(spec)


def test_all_ids_differ():
    ids = {
        make_spec(dataset, method, rate, profile=profile, seed=seed).id
        for dataset, method, profile in ALL
        for rate in (0.0, 0.2, 0.8)
        for seed in (1, 2)
    }
    assert len(ids) == len(ALL) * 3 * 2


@pytest.mark.parametrize(("dataset", "method"), [(d, m) for d in SPARSE for m in SPARSE[d]])
def test_cross_entropy_keeps_fitting_at_the_start(dataset, method):
    """lambda p < 1: the fitting term's factor 1/u_y - lambda p u_y^(p-1) stays positive."""
    sr = SPARSE[dataset][method]
    assert sr.weight * sr.p < 1


def test_mnist_is_the_papers():
    spec = make_spec("mnist", "ce_sr", 0.8)
    assert (spec.model, spec.train_size, spec.epochs, spec.paper_epochs) == ("cnn4", None, 50, 50)
    assert (spec.batch_size, spec.learning_rate, spec.momentum) == (128, 0.01, 0.9)
    assert (spec.weight_decay, spec.clip_norm) == (1e-3, 5.0)


@pytest.mark.parametrize(
    ("method", "params", "sr"),
    [
        ("ce", {}, None),
        ("fl", {"gamma": 0.5}, None),
        ("gce", {"q": 0.7, "floor": 1e-7}, None),
        ("ce_sr", {}, (0.1, 0.1, 4, 2, 5, False)),
        ("fl_sr", {"gamma": 0.5}, (0.1, 0.1, 4, 2, 5, False)),
        ("gce_sr", {"q": 0.01, "floor": 1e-7}, (0.5, 0.1, 3, 2, 5, False)),
    ],
)
def test_mnist_hyper_parameters_are_the_papers(method, params, sr):
    spec = make_spec("mnist", method, 0.8)
    assert spec.loss_params == params
    assert (None if spec.sr is None else tuple(spec.sr.model_dump().values())) == sr


def test_reduced_profiles_change_the_budget_and_nothing_else():
    paper, lite, smoke = (
        make_spec("mnist", "ce_sr", 0.8, profile=profile).model_dump() for profile in PROFILES
    )
    assert {k: v for k, v in lite.items() if v != paper[k]} == {
        "train_size": 10_000,
        "epochs": 20,
        "profile": "lite",
    }
    assert {k: v for k, v in smoke.items() if v != paper[k]} == {
        "dataset": "digits",
        "epochs": 3,
        "profile": "smoke",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "svhn"}, "unknown data set 'svhn'; there are: mnist"),
        ({"method": "ce+sr"}, "unknown method 'ce[+]sr'; there are: ce, fl, gce, ce_sr"),
        ({"profile": "full"}, "unknown profile 'full'; there are: paper, lite, smoke"),
        ({"noise": "pair"}, "unknown noise 'pair'"),
        ({"noise": "pair", "noise_rate": 0}, "unknown noise 'pair'"),
        ({"noise": "clean"}, "noise_rate must be 0 for clean labels"),
        ({"noise_rate": -0.1}, "noise_rate"),
        ({"noise_rate": 1.5}, "noise_rate"),
        ({"noise_rate": float("nan")}, "noise_rate"),
        ({"seed": -1}, "seed"),
    ],
    ids=repr,
)
def test_unknown_names_and_bad_values_are_refused(changes, message):
    arguments = {"dataset": "mnist", "method": "ce", "noise_rate": 0.8} | changes
    with pytest.raises(ValueError, match=message):
        make_spec(**arguments)


def test_specs_do_not_share_their_parameters():
    """A changed dict in one run must not reach the protocol, and so every other run."""
    make_spec("mnist", "fl", 0.8).loss_params["gamma"] = 9.0
    assert make_spec("mnist", "fl", 0.8).loss_params == {"gamma": 0.5}
