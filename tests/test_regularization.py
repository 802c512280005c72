"""SR against equations 7, 9 and 10 in float64, its bounds, and the path of lambda."""

import io
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from lnlsr_lib.losses import build_loss, cross_entropy
from lnlsr_lib.regularization import SparseRegularization, lp_norm, sharpen, sparse_rates

# Formulas are tried far from where anyone would train.
pytestmark = pytest.mark.filterwarnings("ignore:weight .lambda. = .* is far above")

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
def test_one_compile_serves_all_epochs_and_gives_the_same_bits(schedule):
    """The graph that is captured is run as it is, so that nothing but lambda can differ."""
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
        assert torch.equal(value, expected)
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
        assert torch.equal(criterion(logits, labels), expected)
        criterion.step()


def test_repr_names_the_parameters():
    text = repr(SparseRegularization(nn.CrossEntropyLoss(), weight=3.5, every=Fraction(1, 2)))
    assert "weight=3.5" in text
    assert "every=1/2" in text


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
    ],
)
def test_bad_parameters_are_refused(argument, value, error, message):
    with pytest.raises(error, match=message):
        SparseRegularization(**{"loss": nn.CrossEntropyLoss()} | {argument: value})


def test_bad_parameters_of_the_parts_are_refused():
    logits, _ = draw()
    with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\)"):
        sharpen(logits, 0.0)
    with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\)"):
        sparse_rates(logits, -1.0)
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\]"):
        lp_norm(logits.softmax(dim=1), 0.0)
