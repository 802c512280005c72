"""Label noise: rates within sampling error, impossible flips never drawn, seeds that matter."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lnlsr_lib.noise import corrupt_labels, realised_transition, symmetric_transition


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def balanced(k, per_class):
    return torch.arange(k).repeat_interleave(per_class)


@pytest.mark.parametrize("k", [2, 10, 100])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.8, 1.0])
def test_symmetric_transition_is_the_papers(k, rate):
    transition = symmetric_transition(k, rate)
    assert transition.dtype == torch.float64
    torch.testing.assert_close(transition.sum(dim=1), torch.ones(k, dtype=torch.float64))
    for i in range(k):
        for j in {0, 1, k - 1}:
            expected = 1 - rate if i == j else rate / (k - 1)
            assert transition[i, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8])
def test_realised_rates_are_within_sampling_error(rate, seed):
    k, per_class = 10, 4000
    labels = balanced(k, per_class)
    transition = symmetric_transition(k, rate)
    noisy = corrupt_labels(labels, transition, generator(seed))
    overall = (noisy != labels).double().mean().item()
    assert abs(overall - rate) < 4 * (rate * (1 - rate) / len(labels)) ** 0.5
    realised = realised_transition(labels, noisy, k)
    spread = (transition * (1 - transition) / per_class).sqrt()
    assert ((realised - transition).abs() < 5 * spread).all()  # 100 cells at once


def test_an_asymmetric_transition_goes_from_row_to_column():
    transition = torch.eye(4)
    transition[1] = torch.tensor([0.0, 0.25, 0.0, 0.75])
    labels = balanced(4, 10_000)
    realised = realised_transition(labels, corrupt_labels(labels, transition, generator()), 4)
    assert realised[0].tolist() == [1, 0, 0, 0]
    assert realised[1].tolist() == pytest.approx([0, 0.25, 0, 0.75], abs=5 * 0.0044)
    assert realised[1, 0] == realised[1, 2] == 0


def test_rate_0_changes_nothing_and_rate_1_everything():
    labels = balanced(10, 100)
    assert torch.equal(corrupt_labels(labels, symmetric_transition(10, 0.0), generator()), labels)
    noisy = corrupt_labels(labels, symmetric_transition(10, 1.0), generator())
    assert (noisy != labels).all()


def test_clean_labels_are_left_as_they_were():
    labels = balanced(10, 100)
    before = labels.clone()
    noisy = corrupt_labels(labels, symmetric_transition(10, 0.5), generator())
    assert torch.equal(labels, before)
    assert noisy.data_ptr() != labels.data_ptr()
    assert noisy.dtype == torch.int64
    assert noisy.shape == labels.shape


def test_seeds_matter_and_nothing_else_does():
    labels, transition = balanced(10, 100), symmetric_transition(10, 0.5)
    first = corrupt_labels(labels, transition, generator(1))
    torch.manual_seed(99)
    assert torch.equal(corrupt_labels(labels, transition, generator(1)), first)
    assert not torch.equal(corrupt_labels(labels, transition, generator(2)), first)


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    corrupt_labels(balanced(10, 10), symmetric_transition(10, 0.5), generator())
    assert torch.equal(torch.get_rng_state(), before)


@st.composite
def sparse_transitions(draw):
    """Square, row-stochastic, with exact zeros anywhere, in float32 or float64."""
    k = draw(st.integers(2, 8))
    entry = st.one_of(st.just(0.0), st.floats(1e-12, 1.0))
    row = st.lists(entry, min_size=k, max_size=k).filter(lambda values: sum(values) > 0)
    rows = torch.tensor([draw(row) for _ in range(k)], dtype=torch.float64)
    rows = rows / rows.sum(dim=1, keepdim=True)
    return rows.to(draw(st.sampled_from([torch.float32, torch.float64])))


@given(transition=sparse_transitions(), seed=st.integers(0, 2**32))
def test_exact_zeros_are_never_drawn(transition, seed):
    labels = balanced(len(transition), 50)
    noisy = corrupt_labels(labels, transition, generator(seed))
    assert (transition[labels, noisy] > 0).all()


@given(transition=sparse_transitions())
def test_exact_zeros_are_never_drawn_however_unlucky_the_draw(transition):
    """The smallest and the largest draw, and those that hit a boundary between classes."""
    edges = transition.double().cumsum(dim=1)
    edges = (edges / edges[:, -1:]).flatten()
    draws = torch.cat([torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), edges[edges < 1]])
    labels = torch.arange(len(transition)).repeat_interleave(len(draws))
    unlucky = draws.repeat(len(transition))[:, None]
    with mock.patch.object(torch, "rand", return_value=unlucky):
        noisy = corrupt_labels(labels, transition, generator())
    assert (transition[labels, noisy] > 0).all()


def test_realised_transition_counts_and_leaves_absent_classes_at_zero():
    labels = torch.tensor([0, 0, 0, 0, 2])
    noisy = torch.tensor([0, 0, 0, 1, 1])
    expected = torch.tensor([[0.75, 0.25, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    assert torch.equal(realised_transition(labels, noisy, 3), expected)


BAD_TRANSITIONS = {
    "no tensor": ([[1.0, 0.0], [0.0, 1.0]], r"must be a \(K, K\) tensor"),
    "rank 1": (torch.ones(2), r"must be a \(K, K\) tensor"),
    "not square": (torch.full((2, 3), 1 / 3), r"must be \(K, K\), K >= 2"),
    "one class": (torch.ones(1, 1), r"must be \(K, K\), K >= 2"),
    "integers": (torch.eye(2, dtype=torch.int64), "floating"),
    "column-stochastic": (torch.tensor([[0.9, 0.2], [0.1, 0.8]]), "row-stochastic"),
    "negative": (torch.tensor([[1.1, -0.1], [0.0, 1.0]]), "row-stochastic"),
    "nan": (torch.tensor([[float("nan"), 0.5], [0.0, 1.0]]), "row-stochastic"),
    "row of zeros": (torch.tensor([[0.0, 0.0], [0.0, 1.0]]), "row-stochastic"),
}


@pytest.mark.parametrize("case", BAD_TRANSITIONS)
def test_bad_transitions_are_refused(case):
    transition, message = BAD_TRANSITIONS[case]
    with pytest.raises(ValueError, match=message):
        corrupt_labels(torch.tensor([0]), transition, generator())


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (torch.tensor([0, 2]), ValueError),
        (torch.tensor([-1]), ValueError),
        (torch.tensor([0.0]), TypeError),
    ],
)
def test_bad_labels_are_refused(labels, error):
    with pytest.raises(error, match="labels must be"):
        corrupt_labels(labels, torch.eye(2), generator())
    with pytest.raises(error, match="labels must be"):
        realised_transition(labels, torch.zeros(len(labels), dtype=torch.int64), 2)


@pytest.mark.parametrize("k", [1, 0, 2.0, True])
def test_bad_number_of_classes_is_refused(k):
    with pytest.raises(ValueError, match="num_classes must be an int >= 2"):
        symmetric_transition(k, 0.2)
