"""Bad arguments: every one of them is named, with what is allowed."""

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from lnlsr_lib import checks
from lnlsr_lib.checks import (
    check_generator,
    check_labels,
    check_logits,
    check_parameter,
    check_range,
    check_reduction,
    check_rows,
    check_whole,
    kept_rows,
    look,
)
from lnlsr_lib.losses import build_loss
from lnlsr_lib.noise import symmetric_transition
from lnlsr_lib.regularization import SparseRegularization


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 0, 1])
def test_check_range_accepts_the_closed_interval(value):
    check_range("x", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [-1e-12, 1 + 1e-12, float("nan"), float("inf"), -float("inf")])
def test_check_range_refuses_what_is_outside(value):
    with pytest.raises(ValueError, match=r"^x must be in \[0, 1\], got "):
        check_range("x", value, 0.0, 1.0)


def test_check_range_open_low_end():
    check_range("x", 5e-324, 0.0, open_low=True)
    with pytest.raises(ValueError, match=r"^x must be in \(0, inf\), got 0"):
        check_range("x", 0.0, 0.0, open_low=True)


@pytest.mark.parametrize("value", [1e-320, 5e-324, 1e308, -1e-31, 1.1e30])
def test_parameters_are_of_a_size_that_float32_can_compute_with(value):
    with pytest.raises(ValueError, match=r"x must be 0, or of a size in \[1e-30, 1e30\], got"):
        check_parameter("x", value)
    assert check_parameter("x", 0.0) == 0
    assert check_parameter("x", 1e-30, 0.0, open_low=True) == 1e-30
    assert check_parameter("x", 1e30) == 1e30
    assert check_parameter("x", -2.0) == -2  # the size counts, not the sign
    for value, interval in ((2.0, (0.0, 1.0)), (0.0, (0.5, 1.0))):
        with pytest.raises(ValueError, match=r"^x must be in \[0(.5)?, 1\], got"):
            check_parameter("x", value, *interval)
    with pytest.raises(ValueError, match=r"^x must be in \(0, inf\), got 0"):
        check_parameter("x", 0.0, 0.0, open_low=True)


def test_check_range_without_bounds_still_wants_a_finite_number():
    check_range("x", -1e300)
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=r"x must be in .*inf, inf"):
            check_range("x", value)


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], torch.tensor(0.5)])
def test_check_range_refuses_what_is_no_number(value):
    with pytest.raises(TypeError, match="x must be a number, got"):
        check_range("x", value, 0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_check_logits_lifts_half_precision_and_keeps_the_rest(given, returned):
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=given)
    checked = check_logits(logits)
    assert checked.dtype == returned
    assert torch.equal(checked.to(given), logits)


NAN_ROW = torch.zeros(3, 4)
NAN_ROW[1, 2] = float("nan")

BAD_LOGITS = {
    "list": ([[0.0, 1.0]], TypeError, r"logits must be a torch\.Tensor, got list"),
    "integers": (torch.zeros(2, 3, dtype=torch.int64), TypeError, "floating dtype.*int64"),
    "rank 1": (torch.zeros(3), ValueError, r"\(N, K\) with K >= 2, got shape \(3,\)"),
    "one class": (torch.zeros(2, 1), ValueError, r"K >= 2, got shape \(2, 1\)"),
}
NAN = (NAN_ROW, ValueError, "must not be NaN; 1 of 3 rows")

BAD_LABELS = {
    "list": ([0, 1], TypeError, r"labels must be a torch\.Tensor, got list"),
    "int32": (torch.zeros(2, dtype=torch.int32), TypeError, "int64 class indices.*int32"),
    "float": (torch.zeros(2), TypeError, "int64 class indices.*float32"),
    "bool": (torch.zeros(2, dtype=torch.bool), TypeError, r"int64 class indices.*bool"),
    "one-hot": (torch.zeros(2, 3, dtype=torch.int64), ValueError, r"\(N,\), got shape \(2, 3\)"),
    "scalar": (torch.tensor(0), ValueError, r"\(N,\), got shape \(\)"),
    "too many": (torch.zeros(3, dtype=torch.int64), ValueError, "as many as the samples, 2, got 3"),
    "negative": (torch.tensor([0, -1]), ValueError, r"in \[0, 2\], got -1 to 0"),
    "too large": (torch.tensor([3, 1]), ValueError, r"in \[0, 2\], got 1 to 3"),
}


@pytest.mark.parametrize("case", BAD_LOGITS)
def test_bad_logits_are_refused(case):
    logits, error, message = BAD_LOGITS[case]
    with pytest.raises(error, match=message):
        check_logits(logits)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_refused(case):
    labels, error, message = BAD_LABELS[case]
    with pytest.raises(error, match=message):
        check_labels(labels, 3, 2)


@pytest.mark.parametrize("name", ["ce", "fl", "gce"])
@pytest.mark.parametrize("sparse", [False, True], ids=["plain", "sr"])
def test_every_criterion_refuses_bad_logits_and_labels(name, sparse):
    criterion = build_loss(name)
    if sparse:
        criterion = SparseRegularization(criterion)
    for logits, error, message in [*BAD_LOGITS.values(), NAN]:
        with pytest.raises(error, match=message):
            criterion(logits, torch.zeros(len(logits), dtype=torch.int64))
    for labels, error, message in BAD_LABELS.values():
        with pytest.raises(error, match=message):
            criterion(torch.zeros(2, 3), labels)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_noise_rate_outside_the_unit_interval_is_refused(rate):
    with pytest.raises(ValueError, match=r"noise_rate must be in \[0, 1\]"):
        symmetric_transition(10, rate)


def test_labels_of_each_place_have_the_shape_of_the_logits():
    places = torch.zeros(2, 4, 5, dtype=torch.int64)
    check_labels(places, 3, (2, 4, 5))
    for shape in ((2,), (2, 5, 4), (2, 4), (2, 4, 5, 1)):
        with pytest.raises(ValueError, match=r"labels must be \(N, 4, 5\), got shape"):
            check_labels(torch.zeros(shape, dtype=torch.int64), 3, (2, 4, 5))
    with pytest.raises(ValueError, match="as many as the samples, 3, got 2"):
        check_labels(places, 3, (3, 4, 5))


def test_labels_whose_number_is_not_known():
    check_labels(torch.tensor([0, 2, 1]), 3)
    with pytest.raises(ValueError, match=r"mine must be in \[0, 2\], got 0 to 3"):
        check_labels(torch.tensor([0, 3]), 3, name="mine")


INF = float("inf")


@pytest.mark.parametrize(
    ("unit_logits", "rows", "message"),
    [
        (False, [[0.0, float("nan")], [0.0, 0.0]], "must not be NaN; 1 of 2 rows"),
        (False, [[-INF, -INF], [0.0, 0.0]], "have a finite largest entry; 1 of 2 do not"),
        (False, [[INF, 0.0], [-INF, 0.0]], "have a finite largest entry; 1 of 2 do not"),
        (True, [[-INF, 0.0], [0.0, 0.0]], "be finite with unit_logits; 1 of 2 do not"),
        (True, [[INF, 0.0], [-INF, 0.0]], "be finite with unit_logits; 2 of 2 do not"),
    ],
)
def test_rows_without_a_softmax_are_counted(unit_logits, rows, message):
    logits = torch.tensor(rows)
    with pytest.raises(ValueError, match=message):
        check_rows(torch.tensor(float("nan")), logits, unit_logits)
    check_rows(torch.tensor(0.0), logits, unit_logits)  # the sum says that all is well


def test_nan_that_is_not_the_logits_is_left_alone():
    check_rows(torch.tensor(float("nan")), torch.tensor([[-INF, 0.0]]))


def test_empty_labels_are_labels():
    check_labels(torch.zeros(0, dtype=torch.int64), 3, 0)


# --- numbers of other libraries ------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1), np.uint8(1)])
def test_numpys_numbers_become_pythons(number):
    checked = check_range("x", number, 0.0, 1.0)
    assert type(checked) in (int, float)
    assert checked == number


@pytest.mark.parametrize("value", [np.bool_(True), np.array([0.5]), np.complex64(1)])
def test_what_numpy_has_beside_real_numbers_is_refused(value):
    with pytest.raises(TypeError, match="x must be a number, got"):
        check_range("x", value, 0.0, 1.0)


def test_whole_numbers():
    assert check_whole("n", np.int32(3), 2) == 3
    assert type(check_whole("n", np.int32(3), 2)) is int
    assert check_whole("n", 2, 2) == 2
    for value in (1, 2.0, "3", None):
        with pytest.raises(ValueError, match="n must be an int >= 2, got"):
            check_whole("n", value, 2)
    for value in (True, False, np.bool_(True)):
        with pytest.raises(ValueError, match="n must be an int >= 0, got"):
            check_whole("n", value, 0)


@pytest.mark.parametrize("seed", [7, np.int64(7)])
def test_a_seed_is_a_generator(seed):
    drawn = torch.rand(3, generator=check_generator(seed))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    mine = torch.Generator()
    assert check_generator(mine) is mine


@pytest.mark.parametrize(
    "generator", [None, True, 0.5, np.random.default_rng(0), np.random.RandomState(0)]
)
def test_other_generators_are_refused(generator):
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator of the CPU"):
        check_generator(generator)


def test_a_generator_of_another_device_is_refused():
    class Elsewhere(torch.Generator):
        device = torch.device("cuda")

    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator of the CPU"):
        check_generator(Elsewhere())


@pytest.mark.parametrize("reduction", [None, "batchmean", "Mean", 0])
def test_other_reductions_are_refused(reduction):
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got"):
        check_reduction(reduction)
    loss = build_loss("ce")
    loss.reduction = reduction
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got"):
        loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


def test_a_byte_that_wraps_to_ignore_index_is_kept(monkeypatch):
    labels = torch.tensor([156, 3, 255], dtype=torch.uint8)
    assert kept_rows(labels, -100) is None
    monkeypatch.setattr(checks, "look", lambda tensor: None)  # as on a GPU
    assert kept_rows(labels, -100).tolist() == [True, True, True]
    assert kept_rows(labels, 255).tolist() == [True, True, False]


def test_nobody_looks_where_there_are_no_values():
    assert look(torch.tensor(2)) == 2
    assert look(torch.zeros((), device="meta")) is None
    seen = []
    torch.func.vmap(lambda x: seen.append(look(x)) or x)(torch.zeros(2))
    with FakeTensorMode():
        seen.append(look(torch.zeros(())))
    assert seen == [None, None]


@pytest.mark.filterwarnings(r"ignore:.torch\.jit\.trace. is:FutureWarning")
def test_nobody_looks_while_a_graph_is_traced():
    seen = []
    torch.jit.trace(lambda x: seen.append(look(x)) or x + 1, torch.zeros(()))
    assert seen[0] is None
