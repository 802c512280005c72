"""RunSpec: whole, frozen, validated, and with an id that never changes by accident."""

import contextlib
import copy
import hashlib
import json
import math
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lnlsr_lib.cost import images_of
from lnlsr_lib.data import DATASETS, SHAPES
from lnlsr_lib.losses import LOSSES
from lnlsr_lib.models import MODELS, build_model
from lnlsr_lib.objective import build_criterion
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import CHANNELS, RunSpec, SparseSpec

SPEC = make_spec("mnist", "fl_sr", 0.8)
FIELDS = SPEC.model_dump()

OTHER = {
    "dataset": "digits",
    "train_size": 1000,
    "model": "resnet34",
    "method": "fl",
    "side": 16,
    "loss": "ce",
    "loss_params": {"gamma": 0.25},
    "sr": None,
    "noise": "clean",
    "noise_rate": 0.80001,
    "noise_variant": "official",
    "human_labels": "worse",
    "transition": torch.eye(10).tolist(),
    "imbalance": "step",
    "imbalance_ratio": 0.1,
    "epochs": 49,
    "paper_epochs": 51,
    "batch_size": 127,
    "learning_rate": 0.02,
    "momentum": 0.8,
    "weight_decay": 0.0,
    "nesterov": True,
    "decay": 0.97,
    "final_learning_rate": 0.001,
    "clip_norm": None,
    "padding": 4,
    "flip": True,
    "degrees": 20.0,
    "mean": [0.5],
    "std": [0.25],
    "forget_rate": 0.5,
    "forget_epochs": 5,
    "profile": "lite",
    "seed": 2,
    "protocol": 3,
}
OTHER_SPARSE = {
    "temperature": 0.2,
    "p": 0.2,
    "weight": 3.0,
    "growth": 1.5,
    "every": 4,
    "unit_logits": True,
    "warmup": 1,
}
CIFAR = {"dataset": "cifar10", "model": "cnn8"}
WEBVISION = {"dataset": "webvision", "model": "resnet50", "noise": "clean", "noise_rate": 0.0}
ALSO = {  # what has to go with it
    "loss": {"loss_params": {}},
    "noise": {"noise_rate": 0.0},
    "human_labels": {"noise": "human", "noise_rate": 0.0, **CIFAR},
    "model": CIFAR,
    "side": CIFAR,
    "transition": {"noise": "transition", "noise_rate": 0.0},
    "imbalance": {"imbalance_ratio": 0.5},
    "imbalance_ratio": {"imbalance": "long-tailed"},
    "mean": {"std": [0.3]},
    "std": {"mean": [0.4]},
    "forget_rate": {"sr": None},
}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ce", "mnist-sym0.8-ce-seed1-05d34680"),
        ("ce_sr", "mnist-sym0.8-ce_sr-seed1-10f101d5"),
    ],
)
def test_golden_ids(method, expected):
    """Results are stored under these: a change here orphans every result there is."""
    assert make_spec("mnist", method, 0.8, profile="paper", seed=1).id == expected


def test_readable_part_of_the_id():
    assert make_spec("mnist", "ce", 0.0, seed=3).id.startswith("mnist-clean-ce-seed3-")
    assert make_spec("mnist", "gce", 0.2).id.startswith("mnist-sym0.2-gce-seed1-")
    assert make_spec("cifar10", "ce", 0.4, noise="asymmetric", variant="official").id.startswith(
        "cifar10-asym0.4-official-ce-seed1-"
    )
    assert make_spec("cifar10", "ce", imbalance="long-tailed", imbalance_ratio=0.01).id.startswith(
        "cifar10-clean-lt0.01-ce-seed1-"
    )
    assert make_spec("cifar10", "ce_sr", noise="human", human_labels="worse").id.startswith(
        "cifar10-human-worse-ce_sr-seed1-"
    )
    assert SPEC.id.endswith(SPEC.digest[:8])


@pytest.mark.parametrize("method", ["ce", "fl", "gce_sr"])
@pytest.mark.parametrize("profile", ["paper", "lite", "smoke"])
def test_json_round_trip_keeps_everything(method, profile):
    spec = make_spec("mnist", method, 0.2, profile=profile)
    for again in (
        RunSpec.model_validate_json(spec.model_dump_json()),
        RunSpec(**json.loads(json.dumps(spec.model_dump(mode="json")))),
        pickle.loads(pickle.dumps(spec)),
        copy.deepcopy(spec),
    ):
        assert again == spec
        assert (again.id, again.digest, hash(again)) == (spec.id, spec.digest, hash(spec))


def test_whole_and_floating_numbers_that_are_equal_give_one_digest():
    assert RunSpec(**FIELDS | {"clip_norm": 5}).digest == SPEC.digest
    params = SPEC.loss_params | {"gamma": 1}
    whole, floating = (
        RunSpec(**FIELDS | {"loss_params": params | g}) for g in ({}, {"gamma": 1.0})
    )
    assert whole.digest == floating.digest
    assert floating.loss_params["detach"] is True


@pytest.mark.parametrize("name", RunSpec.model_fields)
def test_every_field_is_in_the_digest(name):
    """A new field needs a line in OTHER: then its digest is tested as well."""
    changed = RunSpec(**FIELDS | {name: OTHER[name]} | ALSO.get(name, {}))
    assert changed.digest != SPEC.digest
    assert changed != SPEC


@pytest.mark.parametrize("name", SparseSpec.model_fields)
def test_every_field_of_sr_is_in_the_digest(name):
    changed = RunSpec(**FIELDS | {"sr": FIELDS["sr"] | {name: OTHER_SPARSE[name]}})
    assert changed.digest != SPEC.digest


def test_all_those_digests_differ_from_one_another():
    digests = {
        RunSpec(**FIELDS | {name: value} | ALSO.get(name, {})).digest
        for name, value in OTHER.items()
    }
    assert len(digests) == len(RunSpec.model_fields)


@pytest.mark.parametrize("name", ["seed", "sr"])
def test_specs_are_frozen(name):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(SPEC, name, None)
    with pytest.raises(ValidationError, match="frozen"):
        SPEC.sr.weight = 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"temprature": 0.5},
        {"noise_rate": -0.1},
        {"noise_rate": 1.1},
        {"noise_rate": float("nan")},
        {"noise_rate": "much"},
        {"noise": "clean"},
        {"noise_rate": 0.0},
        {"noise": "pair"},
        {"epochs": 0},
        {"epochs": 2.5},
        {"epochs": True},
        {"paper_epochs": 0},
        {"train_size": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": float("nan")},
        {"weight_decay": -1e-3},
        {"clip_norm": 0.0},
        {"noise": "human"},
        {"noise": "human", "noise_rate": 0.0},
        {"human_labels": "worse"},
        {"human_labels": "worse", "noise": "human", "noise_rate": 0.0},
        {"human_labels": "../worse", "noise": "human", "noise_rate": 0.0, **CIFAR},
        {"dataset": "x"},
        {"dataset": "../mnist"},
        {"method": "../../../x"},
        {"method": "ce\n"},
        {"method": ""},
        {"method": "x" * 300},
        {"model": "resnet"},
        {"model": "cnn8"},
        {"model": "cnn4", "dataset": "cifar10"},
        {"train_size": 60_010},
        {"train_size": 1_001},
        {"side": 14},
        {"side": 24, "dataset": "cifar10", "model": "cnn8"},
        {"padding": 29},
        {"seed": 2**63},
        {"mean": [], "std": []},
        {"mean": [0.5] * 3, "std": [0.5] * 3},
        {"mean": [float("nan")], "std": [0.5]},
        {"std": [float("inf")], "mean": [0.5]},
        {"sr": FIELDS["sr"] | {"growth": 1e308}},
        {"sr": FIELDS["sr"] | {"growth": 1e5}},
        {"sr": FIELDS["sr"] | {"weight": 1e31, "growth": 1.0}},
        {"transition": [[1.0, 0.0], [0.0, 1.0]]},
        {"transition": torch.eye(10).tolist()},
        {"noise": "transition", "noise_rate": 0.0},
        {"noise_variant": "ours"},
        {"noise": "clean", "noise_rate": 0.0, "noise_variant": "official"},
        *(
            {"transition": rows, "noise": "transition", "noise_rate": 0.0}
            for rows in (
                [[1.0]],
                torch.eye(9).tolist(),
                [[0.2] * 10] * 10,
                [[0.5, 0.5]] * 10,
                [[float("nan")] * 10] * 10,
                [[0.5, 0.4], [0.0, 1.0]],
                [[1.0, 0.0]],
                [[2.0, -1.0], [0.0, 1.0]],
            )
        ),
        {"std": [0.0], "mean": [0.5]},
        {"std": [0.5], "mean": [0.5, 0.5]},
        {"imbalance": "step"},
        {"imbalance": "steep", "imbalance_ratio": 0.1},
        {"imbalance_ratio": 0.1},
        {"imbalance_ratio": 0.0},
        {"imbalance_ratio": 1.5, "imbalance": "step"},
        {"final_learning_rate": -0.1},
        {"clip_norm": float("inf")},
        {"nesterov": True, "momentum": 0.0},
        {"decay": 0.0},
        {"decay": 1.1},
        {"padding": -1},
        {"padding": 1.5},
        {"degrees": 181.0},
        {"mean": [0.5]},
        {"std": [0.5]},
        {"forget_rate": 0.5},
        {"forget_rate": 1.5, "sr": None},
        {"forget_rate": -0.5, "sr": None},
        {"forget_rate": 0.5, "sr": None, "loss": "nlnl", "loss_params": {}},
        {"forget_epochs": 0},
        {"dataset": "webvision", "model": "resnet50"},
        {"train_size": 1000} | WEBVISION,
        {"side": 112} | WEBVISION,
        {"imbalance": "step", "imbalance_ratio": 0.1} | WEBVISION,
        {"profile": "full"},
        {"seed": -1},
        {"seed": "1"},
        {"loss": "mse"},
        {"loss_params": {"q": 0.7}},
        {"loss_params": {"gamma": -1.0}},
        {"loss_params": {"gamma": float("nan")}},
        {"sr": {}},
    ],
    ids=repr,
)
def test_bad_fields_are_refused(changes):
    name = next(iter(changes))
    with pytest.raises(
        ValueError,
        match=f"{name}|noise_rate|gamma|mse|does not take|human|lambda|growth|mean and std",
    ) as caught:
        RunSpec(**FIELDS | changes)
    assert isinstance(caught.value, ValidationError)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"p": 0.0},
        {"p": 1.1},
        {"p": float("nan")},
        {"weight": -1.0},
        {"weight": float("inf")},
        {"growth": 0.0},
        {"every": 0},
        {"every": 1.5},
        {"growth": float("inf")},
        {"temperature": float("inf")},
        {"warmup": -1},
        {"clamp": 1e-7},
    ],
    ids=repr,
)
def test_bad_fields_of_sr_are_refused(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        SparseSpec(**FIELDS["sr"] | changes)


def test_three_phases_of_nlnl_do_not_go_with_unit_logits():
    fields = FIELDS | {"loss": "nlnl", "sr": FIELDS["sr"] | {"unit_logits": True}}
    RunSpec(**fields | {"loss_params": {"phases": 1}})
    with pytest.raises(ValidationError, match="nlnl cannot trust outputs"):
        RunSpec(**fields | {"loss_params": {"phases": 3}})


def test_every_network_is_listed_with_the_channels_that_it_takes():
    assert set(CHANNELS) == set(MODELS)
    for name, channels in CHANNELS.items():
        weights = next(build_model(name, 10, 0).parameters())  # of the first convolution
        assert weights.shape[1] == channels


def test_every_data_set_is_one_that_can_be_loaded_or_streamed():
    assert {*DATASETS, "webvision"} == set(SHAPES)


SPECS = [
    make_spec(dataset, method, 0.4, noise=noise, profile=profile)
    for dataset in ("mnist", "cifar10", "cifar100")
    for method in ("ce", "gce_sr", "co_teaching", "nlnl")
    for noise in ("symmetric", "asymmetric")
    for profile in ("paper", "lite", "smoke")
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**63, 10**40, 10**5000, -(2**70)]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [*SHAPES, *MODELS, *LOSSES, "human", "clean", "step", "worse", "../x", "x" * 300]
    ),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(st.floats(), max_size=4),
    st.lists(st.lists(st.floats(0, 1), max_size=10), max_size=10),
    st.dictionaries(st.sampled_from([*SparseSpec.model_fields, "q", "alpha"]), SCALARS, max_size=8),
)


@given(
    base=st.sampled_from(SPECS),
    changes=st.dictionaries(st.sampled_from([*RunSpec.model_fields, "extra"]), VALUES, max_size=4),
)
def test_whatever_the_fields_a_spec_is_whole_or_refused(base, changes):
    """What is accepted has a harmless file name, survives JSON, and can be built and counted."""
    try:
        spec = RunSpec(**base.model_dump() | changes)
    except ValidationError:
        return
    assert re.fullmatch(r"[a-z0-9._+-]{1,180}", spec.id)
    again = RunSpec(**json.loads(json.dumps(spec.model_dump(mode="json"), allow_nan=False)))
    assert (again, again.id) == (spec, spec.id)
    assert 0 < images_of(spec) <= SHAPES[spec.dataset][0]
    criterion = build_criterion(spec)
    if spec.sr is not None:
        criterion.epochs_done += spec.epochs - 1
        assert math.isfinite(criterion.weight)


@pytest.mark.parametrize("name", RunSpec.model_fields)
@settings(max_examples=25)
@given(value=VALUES)
def test_no_value_of_any_one_field_raises_anything_but_a_validation_error(name, value):
    with contextlib.suppress(ValidationError):
        RunSpec(**FIELDS | {name: value})


def test_missing_fields_are_refused():
    fields = {name: value for name, value in FIELDS.items() if name != "learning_rate"}
    with pytest.raises(ValidationError, match="learning_rate"):
        RunSpec(**fields)


def test_draws_depend_on_seed_and_purpose_alone():
    """So methods compared at one seed share their noisy labels, weights and batches."""
    other_method = make_spec("mnist", "ce", 0.2, seed=SPEC.seed)
    other_seed = make_spec("mnist", "fl_sr", 0.8, seed=2)
    assert SPEC.draw_seed("noise") == other_method.draw_seed("noise")
    assert SPEC.draw_seed("noise") != other_seed.draw_seed("noise")
    purposes = ["noise", "weights", "subset", *(f"order/{epoch}" for epoch in range(200))]
    seeds = {SPEC.draw_seed(purpose) for purpose in purposes}
    assert len(seeds) == len(purposes)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generator_is_seeded_with_the_draw_seed():
    expected = torch.rand(3, generator=torch.Generator().manual_seed(SPEC.draw_seed("noise")))
    assert torch.equal(torch.rand(3, generator=SPEC.generator("noise")), expected)


def test_golden_draw_seed():
    """The noisy labels, weights and batches of every stored result hang on it."""
    text = b"lnlsr/1/noise"
    assert SPEC.draw_seed("noise") == int.from_bytes(hashlib.sha256(text).digest()[:8], "big") // 2
