"""What runs would cost: counted, timed, and by a FLOP rate."""

import json
from types import SimpleNamespace

import pytest

from lnlsr_lib import cost
from lnlsr_lib.cost import (
    LARGEST_BATCH,
    LAUNCHES,
    SHAPES,
    UTILISATION,
    duration,
    estimate,
    images_of,
    made_up,
    step_flops,
)
from lnlsr_lib.data import load_dataset
from lnlsr_lib.protocol import TRAINING, make_spec

CPU = {"device": "cpu", "precision": "float32"}


def test_every_data_set_of_the_protocol_has_its_shape():
    assert set(SHAPES) == {*TRAINING, "digits"}


def test_the_shape_of_digits_is_its_own():
    data = load_dataset("digits")
    n, _, *shape = data.train_images.shape[0], None, *data.train_images.shape[1:3]
    assert SHAPES["digits"] == (n, len(data.test_labels), *shape, data.num_classes)


@pytest.mark.parametrize(
    ("dataset", "more", "expected"),
    [
        ("mnist", {}, 60_000),
        ("mnist", {"profile": "lite"}, 10_000),
        ("cifar10", {"imbalance": "step", "imbalance_ratio": 0.1}, 27_500),
        ("cifar100", {"imbalance": "step", "imbalance_ratio": 0.01}, 25_250),
        ("cifar10", {"profile": "smoke"}, 1_437),
    ],
)
def test_images_of_an_epoch(dataset, more, expected):
    assert images_of(make_spec(dataset, "ce", **more)) == expected


def test_flops_are_those_of_the_layers():
    """CNN-4: two convolutions and two linear layers, forward, and twice that backward; the first
    layer needs no gradient of its input."""
    conv1, conv2 = 28 * 28 * 9 * 32, 14 * 14 * 9 * 32 * 64
    rest = conv2 + 3136 * 128 + 128 * 10
    expected = 2 * 128 * (2 * conv1 + 3 * rest)
    assert step_flops(make_spec("mnist", "ce", 0.8)) == pytest.approx(expected, rel=1e-6)
    assert step_flops(make_spec("mnist", "co_teaching", 0.8)) == pytest.approx(2 * expected)


def test_smaller_images_take_fewer_flops():
    whole = make_spec("cifar10", "ce", 0.6)
    half = whole.model_copy(update={"side": 16})
    assert step_flops(half) == pytest.approx(step_flops(whole) / 4, rel=0.02)


def test_runs_of_one_kind_are_timed_once_and_counted():
    smoke = {"profile": "smoke"}
    specs = [
        *(make_spec("mnist", method, 0.8, **smoke) for method in ("ce", "ce_sr", "gce")),
        make_spec("mnist", "co_teaching", 0.8, **smoke),
    ]
    costs = estimate(specs, **CPU)
    assert [cost.runs for cost in costs] == [3, 1]
    assert all(cost.seconds > 0 for cost in costs)
    assert costs[0].total == 3 * costs[0].seconds


def test_a_part_of_the_data_set_is_timed_as_well(small_spec):
    (made,) = estimate([small_spec("ce", batch_size=16, train_size=100)], **CPU, kept=False)
    assert made.seconds > 0


def test_the_second_epoch_is_timed_and_stands_for_whole_batches(monkeypatch):
    """Labels that people gave are not fetched for it, and no image is left out."""
    monkeypatch.setattr(cost, "LARGEST_BATCH", 32 * 3 * 32 * 32)  # a quarter of the batch
    now, steps = [0.0], cost.TIMED_STEPS
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def train(spec, data, *, device, precision, on_batch):
        assert (spec.noise, spec.batch_size, spec.epochs, device) == ("clean", 32, 2, "cpu")
        assert (spec.imbalance, spec.train_size, precision) == (None, None, "bf16")
        assert (len(data.train_labels), len(data.test_labels)) == (32 * steps, 32)
        for seconds in [9.0] * steps + [0.5] * steps:
            now[0] += seconds
            on_batch()
        return SimpleNamespace(history={"seconds": [99.0, 0.5 * steps + 32 * 0.25]})

    monkeypatch.setattr(cost, "train", train)
    people = make_spec("cifar10", "ce", noise="human", human_labels="worse", profile="lite")
    people = people.model_copy(update={"imbalance": "step", "imbalance_ratio": 0.1})
    assert cost._measure(people, "cpu", "bf16") == [4 * 0.5, 0.25]


def test_another_device_by_its_rate():
    spec = make_spec("cifar100", "ce", 0.6)
    slow, fast = (estimate([spec], tflops=tflops)[0].seconds for tflops in (1.0, 10.0))
    assert fast < slow < 10 * fast  # launches do not get faster
    step = step_flops(spec) / (UTILISATION * 1e12) + LAUNCHES
    tests = 10_000 / 128 / 3  # forward alone
    assert slow == pytest.approx(200 * (391 + tests) * step)


def test_nothing_missing_costs_nothing():
    assert estimate([]) == []


def test_an_unknown_device_is_refused_though_nothing_is_missing():
    with pytest.raises(ValueError, match="device 'abacus' cannot be used here"):
        estimate([], device="abacus")


def test_made_up_images_are_few_where_they_are_large():
    data = made_up(make_spec("webvision", "ce"), 2)
    assert data.train_images.shape == (2, 3, 224, 224)
    assert len(data.test_images) == LARGEST_BATCH // (3 * 224 * 224)


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """What is timed, in place of timing it, with a cache of the test's own."""
    specs = []
    monkeypatch.setattr(cost, "timings_file", lambda: tmp_path / "cache" / "timings.json")

    def measure(spec, device, precision):
        specs.append(spec)
        return 0.5, 0.001

    monkeypatch.setattr(cost, "_measure", measure)
    return specs


def test_timings_are_kept_by_device_precision_version_threads_and_kind(timed, monkeypatch):
    mnist, cifar = make_spec("mnist", "ce", 0.8), make_spec("cifar10", "ce", 0.8)
    first = estimate([mnist, cifar], **CPU)
    assert timed == [mnist, cifar]
    assert estimate([cifar, make_spec("mnist", "gce", 0.2, profile="lite")], **CPU)[0] == first[1]
    assert len(timed) == 2
    estimate([mnist], device="cpu", precision="bf16")
    assert timed[2:] == [mnist]
    monkeypatch.setattr(cost, "device_name", lambda device: "another")
    estimate([mnist], **CPU)
    assert timed[3:] == [mnist]
    monkeypatch.setattr("torch.__version__", "9.0")
    estimate([mnist], **CPU)
    assert timed[4:] == [mnist]
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    estimate([mnist], **CPU)
    assert timed[5:] == [mnist]
    monkeypatch.setattr(cost, "_measure", lambda *_: timed.append("again") or (2.0, 0.001))
    again = estimate([mnist], **CPU, again=True)
    assert timed[6:] == ["again"]
    assert estimate([mnist], **CPU) == again  # it is what is kept now
    assert again[0].seconds > 3 * first[0].seconds


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "cifar100"},
        {"model": "resnet34"},
        {"side": 16},
        {"batch_size": 64},
        {"forget_rate": 0.5},
    ],
    ids=repr,
)
def test_what_a_step_takes_is_timed_by_itself(timed, changes):
    specs = [make_spec("cifar10", "ce", 0.8), make_spec("cifar10", "gce", 0.4)]
    specs.append(specs[0].model_copy(update=changes))
    assert [made.runs for made in estimate(specs, **CPU)] == [2, 1]
    assert timed == [specs[0], specs[2]]


def test_a_run_costs_its_epochs_steps_and_tests(timed):
    """Of images as many as it trains on; the last step of an epoch may be a short one."""
    whole, part = make_spec("mnist", "ce", 0.8), make_spec("mnist", "ce", 0.8, profile="lite")
    part = part.model_copy(update={"epochs": whole.epochs})
    assert [made.seconds for made in estimate([whole, part], **CPU)] == pytest.approx(
        [50 * (469 * 0.5 + 10), 50 * (79 * 0.5 + 10)]
    )
    assert timed == [whole]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"a": 1}', "null", "inf", "short", "negative", "negative test", "text"],
)
def test_kept_timings_that_cannot_be_are_timed_anew(timed, content):
    spec = make_spec("mnist", "ce", 0.8)
    (whole,) = estimate([spec], **CPU)
    path = cost.timings_file()
    kept = path.read_text()
    (key,) = json.loads(kept)
    bad = {"inf": [float("inf"), 0], "short": [1.0], "negative": [-1.0, 0.0], "text": ["a", "b"]}
    bad |= {"negative test": [1.0, -1.0]}
    path.write_text(json.dumps({key: bad[content]}) if content in bad else content)
    assert estimate([spec], **CPU) == [whole]
    assert len(timed) == 2
    assert json.loads(path.read_text()) == json.loads(kept)
    assert [p.name for p in path.parent.iterdir()] == ["timings.json"]


def test_where_timings_cannot_be_kept_they_are_made_each_time(timed, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    spec = make_spec("mnist", "ce", 0.8)
    assert estimate([spec], **CPU) == estimate([spec], **CPU)
    assert len(timed) == 2


def test_timings_are_not_kept_nor_taken_on_request(timed, tmp_path):
    spec = make_spec("mnist", "ce", 0.8)
    estimate([spec], **CPU, kept=False)
    assert not cost.timings_file().exists()
    estimate([spec], **CPU)
    estimate([spec], **CPU, kept=False)
    assert len(timed) == 3


def test_a_cost_lists_its_runs(timed):
    specs = [make_spec(d, m, 0.8) for d in ("mnist", "cifar10") for m in ("ce", "gce")]
    assert [c.specs for c in estimate(specs, **CPU)] == [tuple(specs[:2]), tuple(specs[2:])]


def test_a_bar_shows_the_kinds_while_they_are_timed(timed, capsys):
    specs = [make_spec("mnist", "ce", 0.8), make_spec("cifar10", "ce", 0.8)]
    estimate(specs, **CPU, progress=True)
    shown = capsys.readouterr()
    assert "timing: 100%" in shown.err
    assert "2/2" in shown.err
    estimate(specs, **CPU, progress=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("tflops", [0.0, -1.0, float("nan"), 1e-320, 1e300])
def test_bad_rates_are_refused(tflops):
    with pytest.raises(ValueError, match=r"tflops must be in \[0.001, 1e\+06\]"):
        estimate([make_spec("mnist", "ce", 0.8)], tflops=tflops)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7199, "120 min"), (7200, "2.0 h")),
        *((9000, "2.5 h"), (172_000, "47.8 h"), (172_800, "2 days"), (864_000, "10 days")),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
