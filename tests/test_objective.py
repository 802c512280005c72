"""What a step asks for, by method."""

import pytest
import torch

from lnlsr_lib.objective import CoTeaching, Negative, Objective, build_objective

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("ce", Objective),
        ("ce_sr", Objective),
        ("nlnl", Negative),
        ("nlnl_sr", Negative),
        ("co_teaching", CoTeaching),
    ],
)
def test_each_method_has_its_objective(small_spec, method, kind):
    objective = build_objective(small_spec(method), LABELS, 10)
    assert type(objective) is kind
    assert objective.networks == (2 if method == "co_teaching" else 1)
    objective.start_epoch(0)
    logits = [torch.zeros(10, 10, requires_grad=True) for _ in range(objective.networks)]
    objective(logits, LABELS, torch.arange(10)).backward()
    assert all(z.grad is not None for z in logits)


def test_complementary_labels_are_drawn_anew_from_the_specs_seed_in_every_epoch(small_spec):
    spec = small_spec("nlnl")
    objective, shifts = build_objective(spec, LABELS, 10), []
    for epoch in range(2):
        objective.start_epoch(epoch)
        shifts.append(objective.base.shifts)
        drawn = torch.randint(1, 10, (10, 1), generator=spec.generator(f"complementary/{epoch}"))
        assert torch.equal(shifts[-1], drawn)
    assert not torch.equal(*shifts)


def test_the_phases_of_nlnl_are_thirds_of_the_budget_that_is_trained(small_spec):
    spec = small_spec("nlnl", epochs=3, paper_epochs=50, loss_params={"phases": 3})
    objective = build_objective(spec, LABELS, 10)
    phases = []
    for epoch in range(3):
        objective.start_epoch(epoch)
        phases.append(objective.base.phase)
    assert phases == [1, 2, 3]


def test_lambda_grows_at_the_end_of_an_epoch_and_is_state(small_spec):
    spec = small_spec("ce_sr", epochs=4, paper_epochs=20)  # r = 5 of 20 epochs: every epoch here
    objective = build_objective(spec, LABELS, 10)
    weights = []
    for _ in range(4):
        weights.append(objective.weight)
        objective.end_epoch()
    assert weights == [4.0, 8.0, 16.0, 32.0]
    again = build_objective(spec, LABELS, 10)
    again.criterion.load_state_dict(objective.criterion.state_dict())
    assert again.weight == 64.0
    assert build_objective(small_spec("ce"), LABELS, 10).weight == 0


def test_a_warm_up_has_no_norm(small_spec):
    spec = small_spec("ce_sr", epochs=4, paper_epochs=4)
    spec = spec.model_copy(update={"sr": spec.sr.model_copy(update={"warmup": 1})})
    warm, plain = (build_objective(s, LABELS, 10) for s in (spec, small_spec("ce")))
    logits = [torch.randn(10, 10, generator=torch.Generator().manual_seed(0))]
    assert warm(logits, LABELS, torch.arange(10)) == plain(logits, LABELS, torch.arange(10))
    assert warm.weight == 0
    warm.end_epoch()
    assert warm.weight == 4
    assert warm(logits, LABELS, torch.arange(10)) > plain(logits, LABELS, torch.arange(10))


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(50, [1 - 0.04 * min(t, 10) for t in range(1, 51)]), (5, [0.6] * 5), (10, [0.8] + [0.6] * 9)],
)
def test_co_teachings_keep_rate_falls_linearly_over_ten_of_the_papers_epochs(
    small_spec, epochs, expected
):
    spec = small_spec("co_teaching", epochs=epochs, paper_epochs=50)
    assert spec.forget_rate == 0.4
    objective = build_objective(spec, LABELS, 10)
    rates = []
    for epoch in range(epochs):
        objective.start_epoch(epoch)
        rates.append(objective.keep_rate)
    assert rates == pytest.approx(expected)
