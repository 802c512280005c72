"""What runs would cost: counted, timed, and by a FLOP rate."""

import pytest

from lnlsr_lib.cost import SHAPES, UTILISATION, duration, estimate, images_of, step_flops
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


def test_the_budget_scales_the_cost():
    paper = make_spec("mnist", "ce", 0.8)
    specs = [paper, paper.model_copy(update={"epochs": 25})]
    whole, half = estimate(specs, **CPU)
    assert whole.seconds == pytest.approx(2 * half.seconds)


def test_another_device_by_its_rate():
    spec = make_spec("cifar100", "ce", 0.6)
    slow, fast = (estimate([spec], tflops=tflops)[0].seconds for tflops in (1.0, 10.0))
    assert fast < slow < 10 * fast  # launches do not get faster
    steps = 200 * 391
    assert slow > steps * step_flops(spec) / (UTILISATION * 1e12)


def test_nothing_missing_costs_nothing():
    assert estimate([]) == []


@pytest.mark.parametrize("tflops", [0.0, -1.0, float("nan")])
def test_bad_rates_are_refused(tflops):
    with pytest.raises(ValueError, match=r"tflops must be in \(0, inf\)"):
        estimate([make_spec("mnist", "ce", 0.8)], tflops=tflops)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (9000, "2.5 h"), (864_000, "10 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
