"""The paper's protocol as data."""

import csv
import hashlib
from pathlib import Path

import pytest

from lnlsr_lib import protocol
from lnlsr_lib.losses import LOSSES
from lnlsr_lib.noise import symmetric_transition
from lnlsr_lib.objective import build_criterion
from lnlsr_lib.protocol import METHODS, PROFILES, TRAINING, make_spec, method_name

ALL = [
    (dataset, method, profile) for dataset in TRAINING for method in METHODS for profile in PROFILES
]
CONDITIONS = [
    {},
    {"noise_rate": 0.2},
    {"noise_rate": 1.0},
    {"noise_rate": 0.4, "noise": "asymmetric"},
    {"noise_rate": 0.4, "noise": "asymmetric", "variant": "official"},
    {"imbalance": "long-tailed", "imbalance_ratio": 0.01},
    {"imbalance": "step", "imbalance_ratio": 0.1},
    {"noise": "human", "human_labels": "worse"},
    {"noise": "transition", "transition": symmetric_transition(10, 0.3).tolist()},
]


def refused(dataset, method, condition, profile):
    """What no run can be: five kinds, which the messages name."""
    real, noise = profile != "smoke", condition.get("noise")
    return (
        (dataset == "webvision" and real and (condition != {} or method == "nlnl"))
        or ("imbalance" in condition and dataset not in ("cifar10", "cifar100"))
        or (method == "co_teaching" and real and noise in ("human", "transition"))
        or (noise == "human" and real and dataset != "cifar10")  # CIFAR-100's are called "noisy"
        or (noise == "transition" and real and dataset == "cifar100")  # 10 rows for 100 classes
    )


def test_every_constant_stands_once_and_has_a_source():
    path = Path(protocol.__file__).with_name("protocol.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [(row["part"], row["dataset"], row["method"], row["parameter"]) for row in rows]
    assert len(names) == len(set(names)) > 100
    for row in rows:
        assert set(row["source"].split(", ")) <= {"P", "C", "A", "S", "M", "ours"}, row


@pytest.mark.parametrize(("dataset", "method", "profile"), ALL)
@pytest.mark.parametrize("condition", CONDITIONS, ids=repr)
def test_every_method_condition_and_profile_gives_a_run(dataset, method, profile, condition):
    if refused(dataset, method, condition, profile):
        with pytest.raises(
            ValueError,
            match=r"streamed as it|imbalance goes|noise has none|human_labels are|a row for each",
        ):
            make_spec(dataset, method, **condition, profile=profile)
        return
    spec = make_spec(dataset, method, **condition, profile=profile, seed=7)
    assert (spec.method, spec.profile, spec.seed) == (method, profile, 7)
    assert (spec.sr is not None) == method.endswith("_sr")
    assert (spec.forget_rate is not None) == (method == "co_teaching")
    assert spec.loss == ("ce" if method == "co_teaching" else method.removesuffix("_sr"))
    assert spec.dataset == ("digits" if profile == "smoke" else dataset)
    build_criterion(spec)


def test_a_transition_that_the_digits_have_no_classes_for_is_symmetric_noise_in_a_smoke_run():
    spec = make_spec(
        "cifar100",
        "ce",
        noise="transition",
        transition=symmetric_transition(100, 0.3).tolist(),
        profile="smoke",
    )
    assert (spec.dataset, spec.noise, spec.noise_rate) == ("digits", "symmetric", 0.4)


def test_all_ids_differ():
    arguments = [
        (dataset, method, profile, condition, seed)
        for dataset, method, profile in ALL
        for condition in CONDITIONS
        for seed in (1, 2)
        if profile != "smoke" and not refused(dataset, method, condition, profile)
    ]
    ids = {
        make_spec(dataset, method, **condition, profile=profile, seed=seed).id
        for dataset, method, profile, condition, seed in arguments
    }
    assert len(ids) == len(arguments)


@pytest.mark.parametrize(
    ("dataset", "profile", "expected"),
    [
        ("mnist", "paper", "982a5ea5"),
        ("mnist", "lite", "02305d29"),
        ("mnist", "smoke", "5943a899"),
        ("cifar10", "paper", "95d5cf27"),
        ("cifar10", "lite", "8b288362"),
        ("cifar10", "smoke", "28fb6e1e"),
        ("cifar100", "paper", "2cdcbbe1"),
        ("cifar100", "lite", "01d6fca2"),
        ("cifar100", "smoke", "d279a828"),
        ("webvision", "paper", "b5695962"),
        ("webvision", "lite", "16d20543"),
        ("webvision", "smoke", "fd77c0d3"),
    ],
)
def test_golden_ids_of_all_methods_and_conditions(dataset, profile, expected):
    """Every constant is in them: a change here orphans the results there are."""
    ids = [
        make_spec(dataset, method, **condition, profile=profile).id
        for method in dict.fromkeys([*METHODS, *LOSSES])
        for condition in CONDITIONS[:-1]  # but for one of floats that are computed
        if not refused(dataset, method, condition, profile)
    ]
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:8] == expected


@pytest.mark.parametrize(
    ("dataset", "method"), [(d, m) for d in TRAINING for m in METHODS if m.endswith("_sr")]
)
def test_cross_entropy_keeps_fitting_at_the_start(dataset, method):
    """lambda p < 1: the fitting term's factor 1/u_y - lambda p u_y^(p-1) stays positive."""
    for condition in CONDITIONS:
        if refused(dataset, method, condition, "paper"):
            continue
        sr = make_spec(dataset, method, **condition).sr
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
        ("fl", {"gamma": 0.5, "detach": True}, None),
        ("gce", {"q": 0.7, "floor": 1e-7}, None),
        ("ce_sr", {}, (0.1, 0.1, 4, 2, 5, False, 0)),
        ("fl_sr", {"gamma": 0.5, "detach": True}, (0.1, 0.1, 4, 2, 5, False, 0)),
        ("gce_sr", {"q": 0.01, "floor": 1e-7}, (0.5, 0.1, 3, 2, 5, False, 0)),
    ],
)
def test_mnist_hyper_parameters_are_the_papers(method, params, sr):
    spec = make_spec("mnist", method, 0.8)
    assert spec.loss_params == params
    assert (None if spec.sr is None else tuple(spec.sr.model_dump().values())) == sr


@pytest.mark.parametrize(
    ("dataset", "epochs", "rate", "decay", "model", "augmentation"),
    [
        ("cifar10", 120, 0.01, 1e-4, "cnn8", (4, True, 0.0)),
        ("cifar100", 200, 0.1, 1e-5, "resnet34", (4, True, 20.0)),
    ],
)
def test_cifar_is_the_papers(dataset, epochs, rate, decay, model, augmentation):
    spec = make_spec(dataset, "ce", 0.6)
    assert (spec.epochs, spec.learning_rate, spec.weight_decay) == (epochs, rate, decay)
    assert (spec.model, spec.clip_norm, spec.decay) == (model, 5.0, None)
    assert (spec.padding, spec.flip, spec.degrees) == augmentation


@pytest.mark.parametrize(
    ("dataset", "method", "condition", "expected"),
    [
        ("cifar10", "ce_sr", {"noise_rate": 0.6}, (0.5, 0.1, 1.2, 1.03, 1, True, 0)),
        ("cifar10", "gce_sr", {"noise_rate": 0.6}, (0.5, 0.1, 1.2, 1.03, 1, True, 0)),
        ("cifar100", "fl_sr", {"noise_rate": 0.6}, (0.5, 0.01, 4, 1.02, 1, True, 0)),
        (
            *("cifar100", "fl_sr", {"noise_rate": 0.4, "noise": "asymmetric"}),
            (0.5, 0.01, 10, 1.02, 1, True, 0),
        ),
        (
            *("cifar10", "ce_sr", {"imbalance": "step", "imbalance_ratio": 0.1}),
            (0.5, 0.1, 1, 1.03, 1, False, 0),
        ),
        (
            *("cifar100", "ce_sr", {"imbalance": "step", "imbalance_ratio": 0.1}),
            (0.5, 0.01, 1, 1.02, 1, True, 0),
        ),
        ("webvision", "ce_sr", {}, (0.5, 0.01, 2, 1.02, 1, True, 0)),
        ("cifar10", "sce_sr", {"noise_rate": 0.6}, (0.5, 0.1, 1.2, 1.03, 1, True, 0)),
    ],
)
def test_sr_of_the_other_data_sets_and_conditions(dataset, method, condition, expected):
    assert tuple(make_spec(dataset, method, **condition).sr.model_dump().values()) == expected


def test_imbalance_has_its_own_training():
    plain = make_spec("cifar100", "ce").model_dump()
    other = make_spec("cifar100", "ce", imbalance="step", imbalance_ratio=0.1).model_dump()
    assert {k: v for k, v in other.items() if v != plain[k]} == {
        "imbalance": "step",
        "imbalance_ratio": 0.1,
        "clip_norm": None,
        "degrees": 0.0,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
    }


def test_webvision_is_the_papers():
    spec = make_spec("webvision", "sce")
    assert (spec.model, spec.epochs, spec.batch_size) == ("resnet50", 250, 512)
    assert spec.clip_norm == 5.0
    assert (spec.learning_rate, spec.decay, spec.momentum, spec.nesterov) == (0.4, 0.97, 0.9, True)
    assert (spec.weight_decay, spec.loss_params) == (3e-5, {"alpha": 10.0, "beta": 1.0})


@pytest.mark.parametrize(
    ("dataset", "method", "params"),
    [
        ("mnist", "apl", {"alpha": 1.0, "beta": 100.0}),
        ("mnist", "nce_rce", {"alpha": 1.0, "beta": 100.0}),
        ("mnist", "phuber_ce", {"t": 10.0}),
        ("cifar100", "nce_rce", {"alpha": 10.0, "beta": 0.1}),
        ("cifar100", "nfl_rce", {"alpha": 10.0, "beta": 0.1, "detach": True}),
        ("cifar100", "nfl_rce_sr", {"alpha": 10.0, "beta": 0.1, "detach": True}),
        ("webvision", "apl", {"alpha": 50.0, "beta": 1.0}),
        ("webvision", "nfl_rce", {"alpha": 50.0, "beta": 0.1, "detach": True}),
        ("mnist", "nfl", {"gamma": 0.5, "detach": True}),
    ],
)
def test_parameters_of_the_other_losses(dataset, method, params):
    assert make_spec(dataset, method).loss_params == params


@pytest.mark.parametrize(
    ("dataset", "epochs", "draws", "rates"),
    [
        ("mnist", 720, 1, (0.01, 0.001)),
        ("cifar10", 1000, 1, (0.01, 0.0)),
        ("cifar100", 2000, 110, (0.1, 0.0)),
    ],
)
def test_nlnl_has_a_budget_of_its_own_by_name(dataset, epochs, draws, rates):
    spec, usual = (make_spec(dataset, "nlnl", 0.6, budget=b) for b in ("nlnl", "paper"))
    assert (spec.epochs, spec.paper_epochs) == (epochs, epochs)
    assert (spec.learning_rate, spec.final_learning_rate) == rates
    assert spec.loss_params.get("complementary", 1) == draws
    assert usual.loss_params == spec.loss_params
    assert usual.epochs == make_spec(dataset, "ce").epochs
    assert spec.id != usual.id


def test_clean_labels_are_the_same_in_every_variant():
    assert make_spec("mnist", "ce", variant="official") == make_spec("mnist", "ce")


def test_parameters_can_be_swept():
    spec = make_spec("mnist", "gce_sr", 0.8, sr={"weight": 1.0}, loss_params={"floor": 0.0})
    assert (spec.sr.weight, spec.sr.p, spec.loss_params) == (1.0, 0.1, {"q": 0.01, "floor": 0.0})


@pytest.mark.parametrize(
    ("method", "name"),
    [("ce_sr", "CE+SR"), ("phuber_ce", "PHuber-CE"), ("nce_rce", "NCE+RCE"), ("mae_sr", "MAE+SR")],
)
def test_names_of_methods(method, name):
    assert method_name(method) == name


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
    small = make_spec("cifar100", "sce", 0.8, profile="smoke")
    assert (small.dataset, small.model, small.epochs) == ("digits", "cnn4", 3)
    assert small.loss_params == {"alpha": 6.0, "beta": 0.1}
    assert (small.padding, small.flip, small.degrees) == (4, True, 20.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "svhn"}, "unknown data set 'svhn'; there are: mnist"),
        ({"method": "ce+sr"}, "unknown method 'ce[+]sr'; there are: ce, fl, gce, sce"),
        ({"profile": "full"}, "unknown profile 'full'; there are: paper, lite, smoke"),
        ({"noise": "pair"}, "unknown noise 'pair'"),
        ({"noise": "pair", "noise_rate": 0}, "unknown noise 'pair'"),
        (
            {"noise": "clean"},
            "and 0 for clean labels and the other kinds; got noise='clean', noise_rate=0.8",
        ),
        ({"sr": {"weight": 1.0}}, "method 'ce' has no SR whose parameters could be changed"),
        ({"method": "ce_sr", "sr": {"lambda": 1.0}}, "lambda"),
        ({"loss_params": {"q": 0.7}}, "loss 'ce' does not take"),
        ({"method": "mse"}, "unknown method 'mse'; there are: ce, fl, gce, sce, nlnl"),
        ({"variant": "ours"}, "variant"),
        ({"noise_rate": -0.1}, "noise_rate"),
        ({"noise_rate": 1.5}, "noise_rate"),
        ({"noise_rate": float("nan")}, "noise_rate"),
        ({"seed": -1}, "seed"),
        ({"budget": "nlnl"}, "budget 'nlnl' goes with method 'nlnl' on mnist"),
        (
            {"budget": "nlnl", "method": "nlnl", "dataset": "webvision", "noise_rate": 0.0},
            "budget 'nlnl' goes with method 'nlnl' on mnist, cifar10, cifar100",
        ),
        ({"budget": "more"}, "unknown budget 'more'; there are: paper, nlnl"),
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
    assert make_spec("mnist", "fl", 0.8).loss_params["gamma"] == 0.5
