"""What is counted while training, and from the test outputs."""

import pytest
import torch

from lnlsr_lib.feed import Batch
from lnlsr_lib.measure import Tally, accuracy_figures, confusion_matrix


def logits_of(predictions, classes=3):
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def test_a_tally_counts_by_hand():
    tally = Tally(5, torch.device("cpu"))
    labels, truth = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 0, 1, 2, 1])
    batch = Batch(torch.empty(5), labels, truth, torch.arange(5))
    tally.add(batch, [logits_of([0, 1, 1, 0, 1])], torch.tensor(2.0), [torch.tensor(True)])
    figures = tally.figures()
    assert figures == {
        "train_loss": 2.0,
        "clipped": 1.0,
        "memorised": 0.5,  # of two wrong labels, the first is predicted as given
        "corrected": 0.5,  # and the second as it truly is
        "fitted": 2 / 3,
    }
    assert tally.margins.tolist() == [5, 5, -5, -5, 5]
    tally.start_epoch()
    nobody_knows = batch._replace(truth=None)
    tally.add(nobody_knows, [logits_of([0, 1, 1, 0, 1])], torch.tensor(1.0), [])
    figures = tally.figures()
    assert (figures["memorised"], figures["corrected"], figures["fitted"]) == (None, None, None)
    assert (figures["train_loss"], figures["clipped"]) == (1.0, 0.0)


def test_steps_add_up_by_their_samples():
    tally = Tally(6, torch.device("cpu"))
    labels, truth = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1, 1, 1, 1, 1])
    batch = Batch(torch.empty(5), labels, truth, torch.tensor([4, 0, 5, 2, 1]))
    tally.add(batch, [logits_of([0, 1, 1, 2, 1])], torch.tensor(1.0), [torch.tensor(True)])
    one = Batch(torch.empty(1), torch.tensor([2]), torch.tensor([2]), torch.tensor([3]))
    tally.add(one, [logits_of([0])], torch.tensor(4.0), [torch.tensor(False)])
    assert tally.figures() == {
        "train_loss": 1.5,  # (5 x 1 + 1 x 4) / 6
        "clipped": 0.5,
        "memorised": 0.25,  # of four wrong labels one is predicted as given,
        "corrected": 0.5,  # two as they truly are, and one as neither
        "fitted": 0.5,
    }
    assert tally.margins.tolist() == [-5, 5, -5, -5, 5, -5]


def test_two_networks_count_by_half():
    tally = Tally(2, torch.device("cpu"))
    labels = torch.tensor([0, 1])
    batch = Batch(torch.empty(2), labels, torch.tensor([0, 0]), torch.arange(2))
    both = [logits_of([0, 1]), logits_of([1, 0])]
    tally.add(batch, both, torch.tensor(1.0), [torch.tensor(True), torch.tensor(False)])
    figures = tally.figures(networks=2)
    assert (figures["clipped"], figures["memorised"]) == (0.5, 0.5)
    assert (figures["corrected"], figures["fitted"]) == (0.5, 0.5)
    assert tally.margins.tolist() == [0, 0]
    tally.add(batch, 2 * both[:1], torch.tensor(1.0), [])
    assert tally.margins.tolist() == [5, 5]  # the mean of the two


def test_accuracy_figures_of_a_lost_class():
    logits, labels = logits_of([0, 0, 0, 2]), torch.tensor([0, 0, 1, 2])
    assert confusion_matrix(logits, labels).tolist() == [[2, 0, 0], [1, 0, 0], [0, 0, 1]]
    figures = accuracy_figures(logits, labels)
    assert figures["test_accuracy"] == 75
    assert figures["lowest_recall"] == 0
    assert figures["classes_predicted"] == 2
    assert figures["sparse_rate"] == pytest.approx(1)
    assert figures["zero_rate"] == pytest.approx(2 / 3)
    never_right = accuracy_figures(logits_of([0, 1, 1]), torch.tensor([0, 2, 2]))
    assert never_right["classes_predicted"] == 2


def test_a_class_without_test_samples_has_no_recall():
    figures = accuracy_figures(logits_of([0, 1]), torch.tensor([0, 1]))
    assert figures["lowest_recall"] == 100
    figures = accuracy_figures(logits_of([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1]))
    assert figures["lowest_recall"] == 0
    figures = accuracy_figures(logits_of([0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1]))
    assert figures["lowest_recall"] == 50
