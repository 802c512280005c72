"""SR against equations 7, 9 and 10 in float64, its bounds, and the path of lambda."""

import io
import math
import warnings
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lnlsr_lib import regularization
from lnlsr_lib.losses import build_loss, cross_entropy
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.regularization import (
    SparseRegularization,
    critical_weight,
    lp_norm,
    sharpen,
    sparse_rates,
)

BASES = {
    "ce": lambda u: -torch.log(u),
    "fl": lambda u: -((1 - u) ** 0.5) * torch.log(u),
    "gce": lambda u: (1 - u**0.7) / 0.7,
}


def draw(n=12, k=10, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(k, (n,), generator=generator)


def value_and_slope(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def sharpened(logits, temperature, unit_logits):
    """sigma_tau(z), as in equation 7."""
    if unit_logits:
        logits = logits / logits.square().sum(dim=1, keepdim=True).sqrt()
    exponentials = (logits / temperature).exp()
    return exponentials / exponentials.sum(dim=1, keepdim=True)


# --- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("unit_logits", [False, True])
@pytest.mark.parametrize(
    ("temperature", "p", "weight"), [(0.1, 0.1, 4.0), (0.5, 0.01, 1.2), (1.0, 0.5, 20.0), (2, 1, 0)]
)
@pytest.mark.parametrize("base", BASES)
def test_values_and_gradients_equal_equation_9(
    base, temperature, p, weight, unit_logits, reduction
):
    logits, labels = draw(scale=0.3)
    exact = logits.detach().clone().requires_grad_()
    u = sharpened(exact, temperature, unit_logits)
    each = BASES[base](u[torch.arange(len(labels)), labels])
    each = each + weight * u.clamp(1e-7, 1).pow(p).sum(dim=1)
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    criterion = SparseRegularization(
        build_loss(base, reduction=reduction), temperature, p, weight, unit_logits=unit_logits
    )
    loss = criterion(logits, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-11)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad, exact.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_wraps_pytorchs_cross_entropy_with_each_reduction(reduction):
    logits, labels = draw()
    ours = SparseRegularization(build_loss("ce", reduction=reduction), 0.5, 0.1, 1.2)
    theirs = SparseRegularization(nn.CrossEntropyLoss(reduction=reduction), 0.5, 0.1, 1.2)
    value, other = ours(logits, labels), theirs(logits, labels)
    assert other.shape == ((len(labels),) if reduction == "none" else ())
    torch.testing.assert_close(other, value)


def test_wraps_any_module_that_is_a_mean():
    class Brier(nn.Module):
        def forward(self, logits, labels):
            onehot = nn.functional.one_hot(labels, logits.shape[1])
            return (logits.softmax(dim=1) - onehot).square().sum(dim=1).mean()

    logits, labels = draw(scale=0.3)
    u = sharpened(logits, 0.5, False)
    expected = Brier()(logits / 0.5, labels) + 1.2 * u.pow(0.1).sum(dim=1).mean()
    torch.testing.assert_close(SparseRegularization(Brier())(logits, labels), expected)


@pytest.mark.parametrize("unit_logits", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_gradcheck(base, unit_logits):
    logits, labels = draw(n=4, k=5, scale=0.3)
    criterion = SparseRegularization(
        build_loss(base, reduction="none"), 0.5, 0.1, 1.2, unit_logits=unit_logits
    )
    assert torch.autograd.gradcheck(lambda z: criterion(z, labels), logits)


def test_gradient_is_the_fitting_and_the_complementary_term():
    """-(1/u_y - lambda p u_y^(p-1)) grad u_y + lambda p sum_{i != y} u_i^(p-1) grad u_i."""
    temperature, p, weight = 0.5, 0.1, 1.2
    logits, labels = draw(n=6, k=5, scale=0.5)
    SparseRegularization(nn.CrossEntropyLoss(reduction="sum"), temperature, p, weight)(
        logits, labels
    ).backward()
    for row, label in enumerate(labels.tolist()):
        u = sharpened(logits.detach()[row : row + 1], temperature, False)[0]
        jacobian = (u.diag() - u[:, None] * u) / temperature  # equation 10
        expected = -(1 / u[label] - weight * p * u[label] ** (p - 1)) * jacobian[label]
        for i in set(range(5)) - {label}:
            expected = expected + weight * p * u[i] ** (p - 1) * jacobian[i]
        torch.testing.assert_close(logits.grad[row], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("k", [10, 1000])
@pytest.mark.parametrize("unit_logits", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_finite_at_certainty(base, unit_logits, k, dtype):
    logits = torch.zeros(3, k, dtype=dtype)
    logits[:2, 0] = 4096.0
    logits = logits.requires_grad_()
    criterion = SparseRegularization(build_loss(base), 0.1, 0.1, 4.0, unit_logits=unit_logits)
    loss = criterion(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


# --- its parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
def test_jacobian_of_the_sharpened_output_is_equation_10(temperature):
    z = torch.tensor([0.3, -0.2, 0.1, 0.05], dtype=torch.float64)
    u = (z / temperature).softmax(dim=0)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: sharpen(z[None], temperature).softmax(dim=1)[0], z
    )
    for i in range(4):
        for j in range(4):
            expected = u[i] * (float(i == j) - u[j]) / temperature
            assert jacobian[i, j].item() == pytest.approx(expected.item(), rel=1e-10)


def test_sharpening_keeps_the_order_of_the_classes_and_temperature_1_keeps_all():
    logits, _ = draw()
    assert torch.equal(sharpen(logits, 1.0), logits)
    for unit_logits in (False, True):
        ranks = sharpen(logits, 0.1, unit_logits).argsort(dim=1)
        assert torch.equal(ranks, logits.argsort(dim=1))


def test_unit_logits_ignore_the_length_of_the_logits():
    logits, _ = draw()
    torch.testing.assert_close(sharpen(7 * logits, 0.5, True), sharpen(logits, 0.5, True))
    lengths = (0.5 * sharpen(logits, 0.5, True)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_unit_logits_of_pixels_are_scaled_pixel_by_pixel():
    pixels = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = pixels.permute(0, 2, 3, 1).reshape(-1, 5)
    expected = sharpen(rows, 0.5, True).view(2, 3, 4, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(sharpen(pixels, 0.5, True), expected)


@pytest.mark.parametrize(("k", "bound"), [(10, 0.478), (100, 0.070)])
def test_unit_logits_bound_the_largest_probability(k, bound):
    """Largest z_1 - z_i over the sphere: all others equal, z_1 = sqrt((K-1)/K), so that the gap is
    sqrt(K/(K-1)) and max u = 1 / (1 + (K-1) exp(-gap / tau))."""
    gap = (k / (k - 1)) ** 0.5
    largest = 1 / (1 + (k - 1) * torch.exp(torch.tensor(-gap / 0.5, dtype=torch.float64)))
    assert round(largest.item(), 3) == bound
    best = -torch.ones(1, k, dtype=torch.float64)
    best[0, 0] = k - 1  # one-hot less its mean, any length
    assert sharpen(best, 0.5, True).softmax(dim=1).max().item() == pytest.approx(largest.item())
    onehot = torch.eye(k, dtype=torch.float64)[:1]
    assert sharpen(onehot, 0.5, True).softmax(dim=1).max() < largest
    nearby = best + 0.3 * torch.randn(500, k, generator=torch.Generator().manual_seed(0))
    assert (sharpen(nearby, 0.5, True).softmax(dim=1) < largest + 1e-12).all()


@given(
    weights=st.lists(st.floats(0, 1), min_size=2, max_size=20).filter(lambda w: sum(w) > 1e-3),
    p=st.floats(0.001, 1),
)
def test_norm_lies_between_one_hot_and_uniform(weights, p):
    u = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    k = len(weights)
    clamped = (k - 1) * 1e-7**p  # what the clamp adds at most
    assert 1 - 1e-9 <= lp_norm(u, p).item() <= k ** (1 - p) + clamped + 1e-9
    assert lp_norm(torch.full((1, k), 1 / k), p).item() == pytest.approx(k ** (1 - p), rel=1e-5)
    assert lp_norm(torch.eye(k), p).tolist() == pytest.approx([1 + clamped] * k, rel=1e-5)


def test_norm_with_p_1_is_constant_and_pulls_nowhere():
    logits, labels = draw(scale=0.3)
    torch.testing.assert_close(
        lp_norm(logits.softmax(dim=1), 1.0), torch.ones(len(labels), dtype=torch.float64)
    )
    slopes = []
    for weight in (0.0, 100.0):
        criterion = SparseRegularization(build_loss("ce"), 0.5, 1.0, weight)
        slopes += torch.autograd.grad(criterion(logits, labels), logits)
    torch.testing.assert_close(slopes[1], slopes[0])


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_sparser_output_has_the_smaller_norm(p):
    peaks = torch.linspace(0.1, 0.999, 50, dtype=torch.float64)
    u = ((1 - peaks) / 9)[:, None].repeat(1, 10)
    u[:, 0] = peaks
    assert (lp_norm(u, p).diff() < 0).all()


def test_norm_clamps_at_1e_minus_7_and_has_no_slope_below():
    u = torch.tensor([[1.0, 0.0, 1e-9, 1e-7]], dtype=torch.float64, requires_grad=True)
    norm = lp_norm(u, 0.1)
    assert norm.item() == pytest.approx(1 + 3 * 1e-7**0.1)
    norm.sum().backward()
    assert u.grad[0, 1:3].tolist() == [0.0, 0.0]
    assert u.grad.isfinite().all()


def test_sparse_rates_count_certain_samples_and_vanishing_entries():
    logits = torch.zeros(4, 10)
    logits[0, 0] = 1.0  # z / tau = 10: max u = 0.9996, others 4.5e-5
    logits[1, 0] = 2.0  # max u = 1 - 2e-8, nine others 2e-9
    logits[2, 0] = 0.6  # max u = 0.978
    certain, vanishing = sparse_rates(logits, 0.1)
    assert certain.item() == pytest.approx(2 / 4)
    assert vanishing.item() == pytest.approx(9 / 40)
    assert [rate.item() for rate in sparse_rates(logits)] == [certain.item(), vanishing.item()]
    assert sparse_rates(logits, 10.0)[0].item() == 0.0


def test_sparse_rates_have_the_thresholds_that_they_say():
    largest = torch.tensor([0.9895, 0.9905])
    u = torch.stack(
        [largest, 1 - largest - 1.3e-6, *torch.tensor([[0.9e-6], [0.4e-6]]).expand(2, 2)]
    )
    certain, vanishing = sparse_rates(0.1 * u.double().T.log(), 0.1)
    assert (certain.item(), vanishing.item()) == (0.5, 0.5)
    u[2] = 1.1e-6
    assert sparse_rates(0.1 * u.double().T.log(), 0.1)[1].item() == 0.25


def test_sparse_rates_need_no_gradient():
    logits, _ = draw()
    assert not any(rate.requires_grad for rate in sparse_rates(logits))


# --- lambda --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "growth", "every"), [(4.0, 2.0, 5), (1.2, 1.03, 1), (1.0, 1.0, 1), (0.0, 2.0, 1)]
)
def test_lambda_grows_every_r_epochs(weight, growth, every):
    criterion = SparseRegularization(
        nn.CrossEntropyLoss(), weight=weight, growth=growth, every=every
    )
    for epoch in range(30):
        assert criterion.weight == pytest.approx(weight * growth ** (epoch // every))
        criterion.step()


def test_lambda_is_constant_unless_it_is_asked_to_grow():
    criterion = SparseRegularization(nn.CrossEntropyLoss())
    criterion.step()
    named = ("temperature", "p", "weight", "growth", "every", "unit_logits", "warmup")
    assert [getattr(criterion, name) for name in named] == [0.5, 0.1, 1.2, 1, 1, False, 0]


def test_grown_lambda_is_the_one_in_the_loss():
    logits, labels = draw()
    criterion = SparseRegularization(build_loss("ce"), 0.5, 0.1, weight=1.5, growth=2.0, every=1)
    for _ in range(3):
        criterion.step()
    expected = SparseRegularization(build_loss("ce"), 0.5, 0.1, weight=12.0)(logits, labels)
    torch.testing.assert_close(criterion(logits, labels), expected)


@given(paper_epochs=st.integers(1, 250), epochs=st.integers(1, 250), every=st.integers(1, 20))
def test_stretched_lambda_follows_the_same_path_over_the_share_of_training(
    paper_epochs, epochs, every
):
    """floor(t T_paper / T / r) steps after t of T epochs, in whole numbers: no rounding."""
    criterion = SparseRegularization(
        nn.CrossEntropyLoss(), weight=1.0, growth=2.0, every=Fraction(every * epochs, paper_epochs)
    )
    for done in {0, 1, epochs // 3, epochs // 2, epochs - 1, epochs}:
        criterion.epochs_done.fill_(done)
        assert criterion.weight == 2.0 ** (done * paper_epochs // (epochs * every))


def test_stretched_lambda_is_exact_where_floats_are_not():
    """2 epochs for the paper's 50, r = 5: after one of them lambda has grown 5 times, not 4."""
    assert 1 // (5 * 2 / 50) == 4  # what a float would do
    criterion = SparseRegularization(
        nn.CrossEntropyLoss(), weight=1.0, growth=2.0, every=Fraction(5 * 2, 50)
    )
    criterion.step()
    assert criterion.weight == 32.0


def test_a_step_that_was_a_float_is_the_fraction_that_it_meant():
    criterion = SparseRegularization(nn.CrossEntropyLoss(), growth=1.001, every=Fraction(0.1))
    assert criterion.every == Fraction(1, 10)
    criterion.epochs_done.fill_(300)
    known, traced = criterion.weight, torch.compile(criterion, backend="eager")
    logits, labels = draw()
    torch.testing.assert_close(traced(logits, labels), criterion(logits, labels))
    assert known == pytest.approx(1.2 * 1.001**3000)
    with pytest.raises(ValueError, match="every must be an int or Fraction > 0"):
        SparseRegularization(nn.CrossEntropyLoss(), every=Fraction(1, 10**9))


def test_state_dict_carries_the_epochs_done():
    def fresh():
        return nn.ModuleDict(
            {"criterion": SparseRegularization(nn.CrossEntropyLoss(), weight=1.0, growth=2.0)}
        )

    first, second = fresh(), fresh()
    for _ in range(3):
        first["criterion"].step()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second["criterion"].epochs_done == 3
    assert second["criterion"].weight == first["criterion"].weight == 8.0


def test_the_epochs_done_are_a_buffer_as_batchnorms_count_is():
    criterion = SparseRegularization(build_loss("ce"), weight=1.0, growth=2.0)
    criterion.step()
    state = criterion.state_dict()
    assert list(state) == ["epochs_done"]
    assert state["epochs_done"].dtype == torch.int64
    assert state["epochs_done"].shape == ()
    assert criterion.half().epochs_done.dtype == torch.int64
    criterion.load_state_dict({name: tensor.half() for name, tensor in state.items()})
    assert criterion.weight == 2.0
    assert not list(criterion.parameters())


@pytest.mark.parametrize("prefix", ["", "criterion."])
def test_states_that_hold_the_epochs_as_a_number_still_load(prefix):
    criterion = SparseRegularization(build_loss("ce"), weight=1.0, growth=2.0)
    module = nn.ModuleDict({"criterion": criterion}) if prefix else criterion
    module.load_state_dict({f"{prefix}_extra_state": 3})
    assert criterion.weight == 8.0
    with pytest.raises(RuntimeError, match="epochs_done"):
        module.load_state_dict({})


SCHEDULES = [
    {},
    {"growth": 1.03, "every": 2},
    {"growth": 1.03, "every": Fraction(3, 2)},
    {"growth": 2.0, "warmup": 3},
    {"growth": 1.03, "every": Fraction(2, 5), "warmup": 1},
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_compile_serves_all_epochs_and_gives_the_same(schedule):
    """The graph that is captured is run as it is, so that nothing but lambda can differ.

    A lambda that is a number is multiplied and added in one rounding, a tensor in two.
    """
    torch.compiler.reset()
    counter = CompileCounter()
    logits, labels = (t.detach() for t in draw())
    logits = logits.float()
    criterion = SparseRegularization(build_loss("ce"), weight=1.2, unit_logits=True, **schedule)
    compiled = torch.compile(criterion, backend=counter, fullgraph=True)
    for _ in range(12):
        (value, slope), (expected, wanted) = (
            value_and_slope(lambda z, f=f: f(z, labels), logits) for f in (compiled, criterion)
        )
        torch.testing.assert_close(value, expected, rtol=2e-7, atol=0)
        torch.testing.assert_close(slope, wanted)
        criterion.step()
    assert counter.frame_count == 1


def test_lambda_is_rounded_to_the_norm_as_a_python_number_is():
    logits, labels = (t.detach() for t in draw())
    logits = logits.float()
    criterion = SparseRegularization(build_loss("ce"), weight=0.7, growth=1.03)
    for _ in range(5):
        z = logits / 0.5
        expected = (
            cross_entropy(z, labels).mean()
            + criterion.weight * lp_norm(z.softmax(dim=1), 0.1).mean()
        )
        value = criterion(logits, labels)
        torch.testing.assert_close(value, expected, rtol=2e-7, atol=0)
        criterion.step()


def test_repr_names_the_parameters():
    text = repr(SparseRegularization(nn.CrossEntropyLoss(), weight=3.5, every=Fraction(1, 2)))
    assert "weight=3.5" in text
    assert "every=1/2" in text


# --- what PyTorch's criteria take and give --------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [-100, 255, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ours", [False, True], ids=["pytorch", "ours"])
def test_ignored_positions_stay_out_of_loss_and_norm(ours, reduction, ignore_index):
    """Of token logits, (N, K, T): the loss is that on the kept rows alone."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (4, 6), generator=generator)
    labels[:, 1:5] = ignore_index
    make = (lambda **kw: build_loss("ce", **kw)) if ours else nn.CrossEntropyLoss
    criterion = SparseRegularization(make(ignore_index=ignore_index, reduction=reduction))
    rows, flat = logits.movedim(1, -1).reshape(-1, 5), labels.flatten()
    kept = flat != ignore_index
    value, slope = value_and_slope(lambda z: criterion(z, labels), logits)
    expected, wanted = value_and_slope(
        lambda z: SparseRegularization(nn.CrossEntropyLoss(reduction=reduction))(z, flat[kept]),
        rows[kept],
    )
    if reduction == "none":
        assert (value.flatten()[~kept] == 0).all()
        value = value.flatten()[kept]
    torch.testing.assert_close(value, expected)
    slope = slope.movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(slope[kept], wanted)
    assert (slope[~kept] == 0).all()


def test_pixels_and_class_weights():
    """Class weights are the loss's; the norm is the mean over all pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(3, (2, 4, 5), generator=generator)
    base = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    expected = base(logits / 0.5, labels) + 1.2 * lp_norm((logits / 0.5).softmax(dim=1), 0.1).mean()
    torch.testing.assert_close(SparseRegularization(base)(logits, labels), expected)


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, partial(build_loss, "gce")])
def test_reduction_passes_through(make):
    base = make()
    logits, labels = draw()
    criterion = SparseRegularization(base)
    for reduction in ("none", "sum", "mean"):
        criterion.reduction = reduction
        assert criterion.reduction == base.reduction == reduction
        value = criterion(logits, labels)
        assert value.shape == ((len(labels),) if reduction == "none" else ())
    criterion.reduction = "none"
    torch.testing.assert_close(criterion(logits, labels).mean(), value)
    for bad in (None, "batchmean", "Mean"):
        with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got"):
            criterion.reduction = bad
        base.reduction = bad
        with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got"):
            SparseRegularization(base)
        with pytest.raises(ValueError, match="reduction"):  # PyTorch's words, or ours
            criterion(logits, labels)
    with pytest.raises(ValueError, match="Identity has no reduction that could be set"):
        SparseRegularization(nn.Identity()).reduction = "sum"


class Own(nn.Module):
    """A loss that says nothing of its reduction."""

    def __init__(self, reduce):
        super().__init__()
        self.reduce = reduce

    def forward(self, logits, labels):
        return self.reduce(cross_entropy(logits, labels))


def test_losses_that_do_not_say_how_they_reduce():
    logits, labels = draw()
    for reduce in (torch.mean, lambda each: each):
        wanted = nn.CrossEntropyLoss(reduction="mean" if reduce is torch.mean else "none")
        torch.testing.assert_close(
            SparseRegularization(Own(reduce))(logits, labels),
            SparseRegularization(wanted)(logits, labels),
        )
    with pytest.raises(ValueError, match="no mean over the batch: it must say so"):
        SparseRegularization(Own(torch.sum))(logits, labels)
    summed = Own(torch.sum)
    summed.reduction = "sum"
    torch.testing.assert_close(
        SparseRegularization(summed)(logits, labels),
        SparseRegularization(nn.CrossEntropyLoss(reduction="sum"))(logits, labels),
    )


@pytest.mark.parametrize(
    "loss", [nn.NLLLoss(), nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss(), nn.KLDivLoss()]
)
def test_losses_of_other_arguments_are_refused(loss):
    with pytest.raises(ValueError, match="loss must be of logits and one label each, got"):
        SparseRegularization(loss)


@pytest.mark.parametrize("name", ["ce", "gce", "nfl_rce"])
def test_transforms(name):
    """In the warm-up and behind it; every loss alone has these tests beside it."""
    logits, labels = draw(n=5, k=4)
    logits = logits.detach()
    criterion = SparseRegularization(build_loss(name), weight=0.5, growth=1.1, warmup=1)
    for _ in range(2):
        expected = criterion(logits, labels)
        torch.compiler.reset()
        compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(logits, labels), expected)
        exported = torch.export.export(criterion, (logits, labels)).module()
        torch.testing.assert_close(exported(logits, labels), expected)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert criterion(mode.from_tensor(logits), mode.from_tensor(labels)).shape == ()
        each = torch.func.vmap(torch.func.grad(lambda z, y: criterion(z[None], y[None])))
        _, slope = value_and_slope(lambda z: criterion(z, labels), logits)
        torch.testing.assert_close(each(logits, labels) / 5, slope)
        criterion.step()


def test_an_ensemble_of_criteria_by_vmap_has_a_lambda_each():
    logits, labels = (t.detach() for t in draw())
    criteria = [SparseRegularization(build_loss("ce"), growth=2.0) for _ in range(3)]
    for epochs, criterion in enumerate(criteria):
        criterion.epochs_done.fill_(epochs)
    _, buffers = torch.func.stack_module_state(criteria)
    values = torch.func.vmap(
        lambda held: torch.func.functional_call(criteria[0], held, (logits, labels))
    )(buffers)
    torch.testing.assert_close(values, torch.stack([each(logits, labels) for each in criteria]))


def test_a_zero_row_has_a_bounded_gradient_with_unit_logits():
    labels = torch.tensor([0, 1])
    _, slope = value_and_slope(
        lambda z: SparseRegularization(nn.CrossEntropyLoss(), unit_logits=True)(z, labels),
        torch.zeros(2, 10),
    )
    # (u - onehot) / tau / 2 samples, over the shortest length
    assert 0 < slope.abs().max() <= 0.9 / 0.5 / 2 / 0.01 + 1e-3
    longer = torch.full((1, 10), 0.01)  # of length 0.03
    torch.testing.assert_close(0.5 * sharpen(longer, 0.5, True).norm(), torch.tensor(1.0))


def test_a_head_that_starts_at_zero_trains_with_unit_logits():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 5, generator=generator)
    labels = inputs.argmax(dim=1)
    head = torch.zeros(5, 5, requires_grad=True)
    criterion = SparseRegularization(nn.CrossEntropyLoss(), unit_logits=True)
    optimizer = torch.optim.SGD([head], lr=0.1, momentum=0.9)
    for _ in range(50):
        optimizer.zero_grad()
        criterion(inputs @ head, labels).backward()
        optimizer.step()
    assert head.abs().max() < 100
    assert ((inputs @ head).argmax(dim=1) == labels).float().mean() > 0.9


def test_a_masked_class_is_told_from_nan():
    logits, labels = draw(n=4, k=5)
    logits = logits.detach()
    logits[:, 4], labels = -float("inf"), labels.clamp_max(3)
    value, slope = value_and_slope(
        lambda z: SparseRegularization(nn.CrossEntropyLoss())(z, labels), logits
    )
    expected, wanted = value_and_slope(
        lambda z: SparseRegularization(nn.CrossEntropyLoss())(z, labels), logits[:, :4]
    )
    torch.testing.assert_close(value, expected + 1.2 * 1e-7**0.1)  # the clamp
    torch.testing.assert_close(slope[:, :4], wanted)
    with pytest.raises(ValueError, match="must be finite with unit_logits; 4 of 4 do not"):
        SparseRegularization(nn.CrossEntropyLoss(), unit_logits=True)(logits, labels)
    logits[0, 0] = float("nan")
    with pytest.raises(ValueError, match="logits must not be NaN; 1 of 4 rows hold NaN"):
        SparseRegularization(nn.CrossEntropyLoss(), unit_logits=True)(logits, labels)


def test_parameters_of_numpy_and_a_weight_that_is_set():
    logits, labels = draw()
    criterion = SparseRegularization(
        nn.CrossEntropyLoss(),
        temperature=np.float64(0.5),
        p=np.float32(0.5),
        weight=np.int64(2),
        growth=np.float64(2),
        every=np.int64(3),
    )
    plain = SparseRegularization(nn.CrossEntropyLoss(), 0.5, 0.5, 2, 2.0, 3)
    for _ in range(4):
        assert torch.equal(criterion(logits, labels), plain(logits, labels))
        criterion.step()
        plain.step()
    criterion.weight = 3.0
    assert criterion.weight == 3.0
    assert criterion.initial_weight == 1.5
    with pytest.raises(ValueError, match=r"lambda\) must be in \[0, inf\), got -1"):
        criterion.weight = -1.0


def test_a_step_after_every_batch_is_warned_of_and_its_overflow_named():
    logits, labels = draw()
    criterion = SparseRegularization(nn.CrossEntropyLoss(), growth=1.03)
    for batch in range(1, 201):
        criterion(logits, labels)
        if batch == 100:  # once
            with pytest.warns(UserWarning, match="step.. came after each of the last 100 batches"):
                criterion.step()
        else:
            criterion.step()
    warming = SparseRegularization(nn.CrossEntropyLoss(), warmup=300)  # over after 300 batches
    for _ in range(99):
        warming(logits, labels)
        warming.step()
    warming(logits, labels)
    with pytest.warns(UserWarning, match="after each of the last 100 batches"):
        warming.step()
    criterion.epochs_done.fill_(24013)
    with pytest.raises(OverflowError, match=r"24013 calls of step\(\): it is called once an epoch"):
        criterion(logits, labels)


def of_a_rank(rank, folder):
    """What one of two processes has after a resume on the first, and a step on its own sample."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    network = nn.Linear(3, 2)
    network.sparse = SparseRegularization(build_loss("nlnl", phases=3), growth=2.0)
    network.sparse.loss.attach(torch.tensor([0, 1]), 2)
    network.sparse.loss.start_epoch(0, 3, 0)
    network.forward = lambda x, y, index: network.sparse(nn.Linear.forward(network, x), y, index)
    if rank == 0:
        network.sparse.epochs_done.fill_(3)
    parallel = nn.parallel.DistributedDataParallel(network)
    index = torch.tensor([rank])
    for _ in range(2):
        parallel(torch.ones(1, 3), index, index).backward()
    confidence = network.sparse.loss.confidence[0]
    torch.save((network.sparse.weight, confidence), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_on_lambda_and_keep_their_own_samples(tmp_path):
    torch.multiprocessing.spawn(of_a_rank, (str(tmp_path),), nprocs=2)
    (first, one), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second == 1.2 * 2.0**3
    assert [one[0] > 0, one[1] == 0, other[0] == 0, other[1] > 0] == [True] * 4


# --- the critical weight --------------------------------------------------------------------------

CURVATURE = {  # kappa, by hand
    ("ce", ()): lambda k: 1.0,
    ("gce", (("q", 0.7),)): lambda k: k**-0.7 * 0.3,
    ("gce", (("q", 0.1),)): lambda k: k**-0.1 * 0.9,
    ("sce", (("alpha", 0.1), ("beta", 1.0))): lambda k: 0.1,
    ("phuber_ce", (("t", 200.0),)): lambda k: 1.0,
    ("phuber_ce", (("t", 1.5),)): lambda k: 0.0,
    ("phuber_ce", (("t", 10.0),)): lambda k: {2: 1.0, 10: 0.1, 100: 0.0}[k],  # a kink at 10
    ("fl", (("gamma", 2.0), ("detach", True))): lambda k: (1 - 1 / k) ** 2 + 2 / k * (1 - 1 / k),
    ("fl", (("gamma", 2.0),)): lambda k: (
        (1 - 1 / k) ** 2 + 4 / k * (1 - 1 / k) + 2 / k**2 * math.log(k)
    ),
    ("mae", ()): lambda k: 0.0,
    ("rce", ()): lambda k: 0.0,
    ("nce", ()): lambda k: 0.0,
    ("nfl", ()): lambda k: 0.0,
    ("apl", ()): lambda k: 0.0,
    ("nce_rce", ()): lambda k: 0.0,
    ("nfl_rce", ()): lambda k: 0.0,
}


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("k", [2, 10, 100])
@pytest.mark.parametrize("case", CURVATURE, ids=lambda case: case[0])
def test_critical_weight_is_the_closed_form(case, k, p):
    (name, params), kappa = case, CURVATURE[case](k)
    expected = kappa / (p * (1 - p) * k ** (1 - p))
    loss = build_loss(name, **dict(params))
    assert critical_weight(loss, k, p) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_critical_weight_of_pytorchs_loss_with_each_reduction(reduction):
    loss = nn.CrossEntropyLoss(reduction=reduction).half()
    assert critical_weight(loss, 10, 0.1) == pytest.approx(1 / (0.09 * 10**0.9))
    assert critical_weight(loss, np.int64(10), 1) == math.inf
    with pytest.raises(ValueError, match="num_classes must be an int >= 2"):
        critical_weight(loss, 1, 0.1)
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\]"):
        critical_weight(loss, 10, 0.0)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("name", ["ce", "gce", "fl", "sce", "mae", "apl"])
def test_the_whole_hessian_turns_negative_at_the_critical_weight(name, temperature):
    """Of the objective along logits that all samples share, whatever the temperature."""
    loss = build_loss(name)
    critical = critical_weight(loss, 6, 0.1)
    labels = torch.arange(6)
    lowest = []
    for weight in (0.99 * critical - 1e-6, 1.01 * critical + 1e-6):
        criterion = SparseRegularization(loss, temperature, 0.1, max(weight, 0.0))
        slope = torch.func.grad(lambda z, c=criterion: c(z.expand(6, -1), labels))
        hessian = torch.func.jacrev(slope)(torch.zeros(6, dtype=torch.float64))
        lowest.append(torch.linalg.eigvalsh(hessian)[[0, 1]])
    if critical:
        assert lowest[0][0] > -1e-9  # a shift of all logits changes nothing
    assert lowest[1][0] < -1e-9


@pytest.mark.filterwarnings("error")
class TestWarnings:
    """Once, when it first sees K."""

    def test_a_weight_far_above_the_critical_one(self):
        logits, labels = draw()
        criterion = SparseRegularization(build_loss("gce", q=0.7))
        critical = critical_weight(build_loss("gce", q=0.7), 10, 0.1)
        message = rf"= 1\.2 is far above critical_weight = {critical:.3g} of this loss with 10"
        with pytest.warns(UserWarning, match=message) as seen:
            criterion(logits, labels)
        assert seen[0].filename == __file__
        criterion(logits, labels)

    def test_far_is_five_times_the_critical_weight(self):
        critical = critical_weight(nn.CrossEntropyLoss(), 10, 0.1)
        SparseRegularization(nn.CrossEntropyLoss(), weight=4.9 * critical)(*draw())
        with pytest.warns(UserWarning, match="far above critical_weight"):
            SparseRegularization(nn.CrossEntropyLoss(), weight=5.1 * critical)(*draw())
        unit = SparseRegularization(nn.CrossEntropyLoss(), weight=20 * critical, unit_logits=True)
        unit(*draw())  # no output is uniform for long there

    @pytest.mark.parametrize("name", ["mae", "rce", "nce", "nfl", "apl"])
    def test_any_weight_where_the_critical_one_is_zero(self, name):
        logits, labels = draw()
        with pytest.warns(UserWarning, match="far above critical_weight = 0 of this loss with 10"):
            SparseRegularization(build_loss(name))(logits, labels)
        SparseRegularization(build_loss(name), weight=0.0)(logits, labels)

    @pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100"])
    @pytest.mark.parametrize("base", ["ce", "fl", "gce"])
    def test_none_of_the_papers_runs(self, base, dataset):
        spec = make_spec(dataset, f"{base}_sr", 0.4)
        logits, labels = draw(k=100 if dataset == "cifar100" else 10)
        loss = build_loss(base, **spec.loss_params)
        SparseRegularization(loss, **spec.sr.model_dump())(logits, labels)

    def test_a_batch_that_has_collapsed_to_one_class(self):
        _, labels = draw(n=64)
        criterion = SparseRegularization(build_loss("ce"))
        collapsed = torch.zeros(64, 10)
        collapsed[:, 3] = 9.0
        alive = collapsed.clone()
        alive[0] = 0.0
        for batch in range(1, 1025):  # asked at 32, 64, 128, 256, ...: twice in a row is enough
            if batch == 256:
                with pytest.warns(UserWarning, match="SR has collapsed: all outputs"):
                    criterion(collapsed, labels)
            else:
                criterion(alive if batch == 64 else collapsed, labels)

    @pytest.mark.parametrize(
        ("rows", "weight", "training", "warned"),
        [
            (16, 1.2, True, True),
            (15, 1.2, True, False),  # so few may be of one class by chance
            (16, 0.0, True, False),  # not SR's doing
            (16, 1.2, False, False),
        ],
    )
    def test_a_collapse_is_looked_for_where_it_can_be_told(self, rows, weight, training, warned):
        outputs, labels = torch.zeros(rows, 10), torch.arange(rows) % 10
        outputs[:, 3] = 9.0
        criterion = SparseRegularization(nn.CrossEntropyLoss(), weight=weight).train(training)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(130):
                criterion(outputs, labels)
        assert bool(seen) == warned

    def test_a_collapse_is_judged_by_the_labels_that_count(self):
        _, labels = draw(n=64)
        outputs = torch.zeros(64, 10)
        outputs[:, 3] = 9.0
        ignored = torch.full((64,), -100)
        ignored[:20] = 3  # all that count are of one class, and predicted as such
        criterion = SparseRegularization(nn.CrossEntropyLoss())
        for _ in range(130):
            criterion(outputs, ignored)
        labels[0] = -100
        outputs[0] = torch.arange(10.0)  # predicted otherwise, and ignored
        criterion = SparseRegularization(nn.CrossEntropyLoss())
        for _ in range(63):
            criterion(outputs, labels)
        with pytest.warns(UserWarning, match="SR has collapsed"):
            criterion(outputs, labels)

    def test_a_collapse_is_told_of_labels_that_are_probabilities(self):
        outputs = torch.zeros(64, 10)
        outputs[:, 3] = 9.0
        few = SparseRegularization(nn.CrossEntropyLoss())
        one = SparseRegularization(nn.CrossEntropyLoss())
        several = SparseRegularization(nn.CrossEntropyLoss())
        for batch in range(1, 65):
            few(outputs[:2], torch.eye(10)[:2])
            one(outputs, torch.eye(10)[3].expand(64, 10))  # of this class they all are
            if batch == 64:
                with pytest.warns(UserWarning, match="SR has collapsed"):
                    several(outputs, torch.eye(10)[torch.arange(64) % 10])
            else:
                several(outputs, torch.eye(10)[torch.arange(64) % 10])

    def test_a_warm_up_is_not_srs_collapse(self):
        _, labels = draw(n=64)
        outputs = torch.zeros(64, 10)
        outputs[:, 3] = 9.0
        criterion = SparseRegularization(nn.CrossEntropyLoss(), warmup=1)
        for _ in range(300):
            criterion(outputs, labels)

    @pytest.mark.parametrize("warmup", [0, 5])
    def test_a_weight_far_above_the_critical_one_of_any_labels_in_any_epoch(self, warmup):
        logits, labels = draw()
        soft = torch.eye(10, dtype=torch.float64)[labels]
        for target in (labels, soft):
            criterion = SparseRegularization(nn.CrossEntropyLoss(), weight=50.0, warmup=warmup)
            with pytest.warns(UserWarning, match="far above critical_weight") as seen:
                criterion(logits, target)
            assert seen[0].filename == __file__

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_weight_far_above_the_critical_one_on_any_device(self, device):
        logits, labels = (tensor.to(device) for tensor in draw())
        with pytest.warns(UserWarning, match="far above critical_weight = 0 of this loss"):
            SparseRegularization(build_loss("mae"))(logits, labels)

    def test_many_classes_cost_no_square(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            regularization, "critical_weight", lambda loss, k, p: asked.append(k) or math.inf
        )
        for k in (1024, 1025, 20_000):  # K x K would be 3 GB
            logits, labels = torch.zeros(2, k), torch.zeros(2, dtype=torch.int64)
            SparseRegularization(build_loss("mae"))(logits, labels)
        assert asked == [1024]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("temperature", 0.0, ValueError, r"temperature must be in \(0, inf\)"),
        ("temperature", -0.5, ValueError, r"temperature must be in \(0, inf\)"),
        ("temperature", float("inf"), ValueError, r"temperature must be in \(0, inf\)"),
        ("temperature", "0.5", TypeError, "temperature must be a number"),
        ("p", 0.0, ValueError, r"p must be in \(0, 1\]"),
        ("p", 1.1, ValueError, r"p must be in \(0, 1\]"),
        ("p", float("nan"), ValueError, r"p must be in \(0, 1\]"),
        ("weight", -1.0, ValueError, r"lambda\) must be in \[0, inf\)"),
        ("growth", 0.0, ValueError, r"growth must be in \(0, inf\)"),
        ("every", 0, ValueError, "every must be an int or Fraction > 0"),
        ("every", -1, ValueError, "every must be an int or Fraction > 0"),
        ("every", 2.5, ValueError, "every must be an int or Fraction > 0"),
        ("every", True, ValueError, "every must be an int or Fraction > 0"),
        ("loss", nn.functional.cross_entropy, TypeError, r"loss must be a torch\.nn\.Module"),
        ("unit_logits", "no", TypeError, "unit_logits must be a bool, got 'no'"),
        ("unit_logits", 1, TypeError, "unit_logits must be a bool, got 1"),
        ("temperature", 1e-320, ValueError, r"temperature must be 0, or of a size in"),
        ("weight", 1e308, ValueError, r"lambda\) must be 0, or of a size in"),
        ("loss", SparseRegularization(nn.CrossEntropyLoss()), ValueError, "SR in it already"),
        (
            "loss",
            nn.Sequential(SparseRegularization(build_loss("gce"))),
            ValueError,
            "its norm would count twice",
        ),
    ],
)
def test_bad_parameters_are_refused(argument, value, error, message):
    with pytest.raises(error, match=message):
        SparseRegularization(**{"loss": nn.CrossEntropyLoss()} | {argument: value})


@pytest.mark.parametrize("base", [nn.CrossEntropyLoss(), build_loss("gce"), None])
def test_batches_that_cannot_be_are_refused(base):
    """Around PyTorch's loss, around ours, and ours alone."""
    criterion = build_loss("ce") if base is None else SparseRegularization(base)
    logits, labels = draw()
    with pytest.raises(ValueError, match="one sample at least: the mean over none is no number"):
        criterion(logits[:0], labels[:0])
    with pytest.raises(ValueError, match="labels must be on the logits' cpu, and are on meta"):
        criterion(logits, labels.to("meta"))


@pytest.mark.parametrize("base", [nn.CrossEntropyLoss(), build_loss("gce"), None])
def test_the_output_of_a_softmax_is_warned_of_once(base):
    criterion = build_loss("ce") if base is None else SparseRegularization(base)
    logits, labels = draw()
    with pytest.warns(UserWarning, match="logits look like the output of a softmax") as caught:
        criterion(logits.softmax(dim=1), labels)
    assert sum("softmax" in str(warning.message) for warning in caught) == 1
    criterion(logits.softmax(dim=1), labels)  # a second warning would be an error
    usual = build_loss("ce") if base is None else SparseRegularization(base)
    usual(logits, labels)


def test_bad_parameters_of_the_parts_are_refused():
    logits, _ = draw()
    with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\)"):
        sharpen(logits, 0.0)
    with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\)"):
        sparse_rates(logits, -1.0)
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\]"):
        lp_norm(logits.softmax(dim=1), 0.0)


# --- what others do to it ------------------------------------------------------------------------


class Mine(nn.Module):
    """A loss of someone's own, without a reduction."""

    def __init__(self, function):
        super().__init__()
        self.function, self.inner = function, nn.CrossEntropyLoss(ignore_index=-100)

    def forward(self, z, labels):
        return self.function(self, z, labels)


def test_a_loss_inside_the_loss_ignores_labels_too():
    logits, labels = draw(n=20)
    labels[1:] = -100
    mine = SparseRegularization(Mine(lambda self, z, y: self.inner(z, y)))
    kept = SparseRegularization(nn.CrossEntropyLoss())(logits[:1], labels[:1])
    torch.testing.assert_close(mine(logits, labels), kept)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, z, y: self.inner(nn.functional.dropout(z, 0.5), y),
        lambda self, z, y: self.inner(z, torch.full_like(y, -100)),
        lambda self, z, y: setattr(self, "last", z) or self.inner(z, y),
    ],
    ids=["draws at random", "NaN at first", "keeps its input"],
)
def test_a_mean_is_taken_whatever_else_it_does(function):
    logits, labels = draw(n=20)
    criterion = SparseRegularization(Mine(function))
    for _ in range(2):
        criterion((2 * logits).requires_grad_() * 1.0, labels)


def test_a_sum_that_does_not_say_so_is_refused():
    criterion = SparseRegularization(Mine(lambda self, z, y: self.inner(z, y) * len(y)))
    with pytest.raises(ValueError, match="loss is no mean over the batch"):
        criterion(*draw(n=20))
    criterion = SparseRegularization(criterion.loss, warmup=5)  # nor in the fifth epoch
    with pytest.raises(ValueError, match="loss is no mean over the batch"):
        criterion(*draw(n=20))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda each: each[:, None], ValueError, r"\(12,\), or be one number, got .* \(12, 1\)"),
        (
            lambda each: each.mean()[None],
            ValueError,
            r"\(12,\), or be one number, got .* \(1,\)",
        ),
        (lambda each: each[:4], ValueError, r"\(12,\), or be one number, got .* \(4,\)"),
        (lambda each: (each.mean(), each), TypeError, "loss must give a torch.Tensor, got tuple"),
    ],
)
def test_a_loss_of_another_shape_is_refused(function, error, message):
    with pytest.raises(error, match=message):
        SparseRegularization(Own(function))(*draw())
    if error is ValueError:
        wide = Own(function)
        wide.reduction = "none"
        with pytest.raises(error, match="loss must have shape"):
            SparseRegularization(wide)(*draw())


@pytest.mark.parametrize("base", ["ce", "gce"])
def test_the_first_look_goes_with_activation_checkpointing(base):
    """Which counts what is saved for the backward pass, and the second call saves no more."""
    logits, labels = draw()
    head = nn.Linear(10, 10).double()
    wanted = torch.autograd.grad(
        SparseRegularization(build_loss(base))(head(logits), labels), head.weight
    )[0]
    criterion = SparseRegularization(build_loss(base))
    checkpoint(lambda z: criterion(head(z), labels), logits, use_reentrant=False).backward()
    torch.testing.assert_close(head.weight.grad, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_owner_in_half_precision_keeps_its_class_weights_wide(dtype):
    logits, labels = draw(n=20)
    logits = logits.to(dtype)
    criterion = SparseRegularization(nn.CrossEntropyLoss(weight=torch.full((10,), 0.5)))
    wanted = criterion(logits, labels)
    torch.testing.assert_close(nn.Sequential(criterion).to(dtype)[0](logits, labels), wanted)


def test_lambda_overflows_with_a_message_before_float32_does():
    logits, labels = (tensor.float() if tensor.is_floating_point() else tensor for tensor in draw())
    criterion = SparseRegularization(nn.CrossEntropyLoss(), growth=1.03)
    criterion.epochs_done.fill_(3000)
    with pytest.raises(OverflowError, match=r"overflows after 3000 calls of step\(\)"):
        criterion(logits, labels)


@pytest.mark.parametrize("base", [nn.CrossEntropyLoss(), build_loss("ce")])
def test_unit_logits_say_what_is_wrong_with_a_masked_class(base):
    logits, labels = draw(n=20)
    logits = logits.masked_fill(torch.arange(10) == 9, -torch.inf)
    with pytest.raises(ValueError, match="rows of logits must be finite with unit_logits"):
        SparseRegularization(base, unit_logits=True)(logits, labels.clamp(max=8))


def test_the_critical_weight_counts_every_class_and_refuses_sr():
    whole = critical_weight(nn.CrossEntropyLoss(), 10, 0.1)
    for reduction in ("mean", "sum", "none"):
        loss = nn.CrossEntropyLoss(ignore_index=3, reduction=reduction)
        assert critical_weight(loss, 10, 0.1) == pytest.approx(whole)
    with pytest.raises(TypeError, match="the module that SR is put around"):
        critical_weight(SparseRegularization(nn.CrossEntropyLoss()), 10, 0.1)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, lambda: build_loss("ce")])
def test_many_batches_without_values_to_look_at(loss):
    criterion, logits = SparseRegularization(loss()), torch.randn(4, 10, 6, 6)
    labels = torch.randint(10, (4, 6, 6))
    each = torch.func.vmap(torch.func.grad(lambda z, y: criterion(z[None], y[None])))
    for _ in range(regularization.FIRST_CHECK + 1):  # that at which a collapse is first looked for
        each(logits, labels)
    criterion = SparseRegularization(loss())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for _ in range(regularization.FIRST_CHECK + 1):
            criterion(mode.from_tensor(logits), mode.from_tensor(labels))
    criterion = SparseRegularization(nn.CrossEntropyLoss())
    for _ in range(regularization.FIRST_CHECK + 1):
        criterion(logits.to("meta"), labels.to("meta"))


def test_a_first_batch_in_inference_mode_warns_as_any_other():
    logits, labels = draw()
    loss = build_loss("gce", q=0.7)
    with torch.inference_mode():
        with pytest.warns(UserWarning, match="far above critical_weight"):
            SparseRegularization(loss, weight=30.0)(logits.detach(), labels)
        assert critical_weight(loss, 10, 0.1) == pytest.approx(0.08373, rel=1e-3)


class Drawing(nn.Module):
    """A loss that draws, and does not say how it reduces."""

    def forward(self, logits, labels):
        noise = torch.randn_like(logits)
        return nn.functional.cross_entropy(logits + 0.01 * noise, labels)


class Counting(nn.Module):
    """A loss that counts its calls, and does not say how it reduces."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("scale", torch.ones(()))

    def forward(self, logits, labels):
        self.calls += 1
        return self.scale * nn.functional.cross_entropy(logits, labels)


def test_the_first_look_leaves_the_loss_as_it_was():
    loss = Counting()
    SparseRegularization(loss)(*draw())
    assert loss.calls == 1
    assert loss.scale.dtype == torch.float32
    critical_weight(loss, 10, 0.1)
    assert (loss.calls, loss.scale.dtype) == (1, torch.float32)


def test_the_first_look_draws_nothing():
    logits, labels = draw()
    after = []
    for criterion in (Drawing(), SparseRegularization(Drawing())):
        torch.manual_seed(0)
        criterion(logits, labels)
        after.append(torch.rand(3))
    assert torch.equal(*after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_class_weights_in_half_precision_are_taken_as_they_are_given(dtype):
    logits, labels = draw()
    weight = torch.linspace(0.5, 1.5, 10).to(dtype)
    given = SparseRegularization(nn.CrossEntropyLoss(weight=weight))
    wide = SparseRegularization(nn.CrossEntropyLoss(weight=weight.float()))
    half = logits.detach().to(dtype)
    torch.testing.assert_close(given(half, labels), wide(half, labels))


def test_parameters_that_are_set_later_are_checked():
    criterion = SparseRegularization(nn.CrossEntropyLoss(), growth=0.5)
    criterion.temperature = 0.3
    assert criterion.temperature == 0.3
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be in"):
            criterion.temperature = wrong
    criterion.epochs_done.fill_(1200)
    with pytest.raises(ValueError, match="lambda has shrunk to 0 after 1200 calls"):
        criterion.weight = 2.0
    with pytest.raises(TypeError, match=r"probabilities must be a torch\.Tensor, got list"):
        lp_norm([0.5, 0.5], 0.1)
