"""Margins and the labels they cast doubt on: against a loop, and on labels spoilt on purpose."""

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lnlsr_book.report import follows_protocol
from lnlsr_lib import SparseRegularization
from lnlsr_lib.label_issues import find_label_issues, margins
from lnlsr_lib.noise import corrupt_labels, symmetric_transition
from lnlsr_lib.store import Store


def by_hand(logits, labels):
    """The definition, one sample at a time, in Python's floats."""
    rows = logits.double().tolist()
    return [
        row[y] - max(z for k, z in enumerate(row) if k != y)
        for row, y in zip(rows, labels.tolist(), strict=True)
    ]


@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_margins_are_those_of_a_loop(classes, dtype):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(50, classes, generator=generator).to(dtype)
    labels = torch.randint(classes, (50,), generator=generator)
    margin = margins(logits, labels)
    assert margin.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert margin.tolist() == pytest.approx(by_hand(logits, labels), rel=1e-6)
    as_given = logits.float().argmax(dim=1) == labels
    untied = margin != 0
    assert ((margin > 0) == as_given)[untied].all()


def test_margins_carry_no_gradient_and_leave_the_logits_alone():
    logits = torch.randn(4, 3, requires_grad=True)
    before = logits.detach().clone()
    assert not margins(logits, torch.tensor([0, 1, 2, 0])).requires_grad
    assert torch.equal(logits.detach(), before)


def test_a_masked_class_is_never_the_rival():
    logits = torch.tensor([[1.0, -math.inf, 0.25], [1.0, -math.inf, 0.25]])
    assert margins(logits, torch.tensor([0, 1])).tolist() == [0.75, -math.inf]


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, r"labels must be in \[0, 2\]"),
        (torch.zeros(2, 3), torch.tensor([0]), ValueError, "as many as the samples"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError, "int64"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), TypeError, "floating"),
        (torch.zeros(6), torch.tensor([0, 1]), ValueError, r"\(N, K\)"),
    ],
)
def test_bad_logits_and_labels_are_refused(logits, labels, error, message):
    with pytest.raises(error, match=message):
        margins(logits, labels)


def test_issues_are_the_negative_margins_worst_first_and_ties_in_order():
    margin = torch.tensor([0.5, -1.0, 0.0, -3.0, -1.0, 2.0])
    assert find_label_issues(margin).tolist() == [3, 1, 4]
    assert find_label_issues(margin.abs()).tolist() == []
    assert find_label_issues(margin[:0]).tolist() == []


@pytest.mark.parametrize(
    ("margin", "error", "message"),
    [
        ([0.1], TypeError, "got list"),
        (torch.tensor([1, 2]), TypeError, "got torch.int64"),
        (torch.zeros(2, 2), ValueError, r"got shape \(2, 2\)"),
        (torch.tensor([0.0, math.nan]), ValueError, "not NaN"),
    ],
)
def test_bad_margins_are_refused(margin, error, message):
    with pytest.raises(error, match=message):
        find_label_issues(margin)


@pytest.fixture(scope="module")
def trained(digits):
    """Digits with 40% wrong labels, and their margins: CE and CE+SR, last epoch and mean."""
    images = digits.train_images.flatten(1) / 255
    transition = symmetric_transition(digits.num_classes, 0.4)
    labels = corrupt_labels(digits.train_labels, transition, torch.Generator().manual_seed(0))
    found = {}
    for name, criterion in {
        "ce": nn.CrossEntropyLoss(),
        "ce_sr": SparseRegularization(
            nn.CrossEntropyLoss(), temperature=0.5, p=0.1, weight=1.2, growth=1.03
        ),
    }.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        total = torch.zeros(len(labels))
        for _ in range(50):
            for index in torch.randperm(len(labels)).split(128):
                loss = criterion(model(images[index]), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if name == "ce_sr":
                criterion.step()
            last = margins(model(images), labels)
            total += last
        found[name] = {"last": last, "mean": total / 50}
    return labels != digits.train_labels, found


def quality(wrong, margin):
    flagged = find_label_issues(margin)
    hits = wrong[flagged].sum().item()
    return hits / len(flagged), hits / wrong.sum().item()


def test_a_robust_network_finds_most_wrong_labels_and_is_mostly_right(trained):
    wrong, found = trained
    for margin in found["ce_sr"].values():
        precision, recall = quality(wrong, margin)
        assert precision > 0.9
        assert recall > 0.9


def test_a_network_that_memorises_hides_them_in_its_last_epoch_but_not_in_the_mean(trained):
    wrong, found = trained
    _, last = quality(wrong, found["ce"]["last"])
    _, mean = quality(wrong, found["ce"]["mean"])
    _, robust = quality(wrong, found["ce_sr"]["last"])
    assert last < mean
    assert last < robust


def test_cleanlab_agrees_on_what_contradicts_a_prediction(trained):
    """Our criterion is its simplest one, "predicted_neq_given"; both rank by confidence."""
    cleanlab = pytest.importorskip("cleanlab.filter", reason="cleanlab is in the extra 'test'")
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (300,), generator=generator)
    theirs = cleanlab.find_label_issues(
        labels.numpy(), logits.softmax(dim=1).numpy(), filter_by="predicted_neq_given", n_jobs=1
    )
    ours = torch.zeros(300, dtype=torch.bool)
    ours[find_label_issues(margins(logits, labels))] = True
    assert ours.tolist() == theirs.tolist()


def test_the_stored_table_has_every_run_by_the_protocol_that_kept_its_margins():
    """`python benchmarks/label_issues.py --stored` after new runs with details."""
    results = Path(__file__).parent.parent / "results"
    with (results / "benchmarks" / "label_issues_stored.csv").open() as lines:
        listed = {row["run"] for row in csv.DictReader(lines)}
    mine = [run for run in Store(results).runs() if run.details and follows_protocol(run.spec)]
    wanted = {r.spec.id for r in mine if r.spec.noise != "clean" and r.spec.profile != "smoke"}
    assert listed == wanted
