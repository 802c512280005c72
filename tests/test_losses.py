"""Losses against their formulas in float64, their limits, and the paper's theory on them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lnlsr_lib.losses import (
    LOSSES,
    CrossEntropy,
    FocalLoss,
    GeneralizedCrossEntropy,
    build_loss,
    cross_entropy,
    focal_loss,
    generalized_cross_entropy,
)
from lnlsr_lib.noise import symmetric_transition

# L as a function of u_y, written out from the papers.
FORMULAS = {
    "ce": lambda u: -torch.log(u),
    "fl": lambda u, gamma=0.5: -((1 - u) ** gamma) * torch.log(u),
    "gce": lambda u, q=0.7: (1 - u**q) / q,
}
CASES = [
    ("ce", {}),
    ("fl", {"gamma": 0.5}),
    ("fl", {"gamma": 1.0}),
    ("fl", {"gamma": 2.0}),
    ("gce", {"q": 0.7}),
    ("gce", {"q": 0.01}),
    ("gce", {"q": 1.0}),
]


def test_every_loss_has_its_formula_here():
    assert set(FORMULAS) == set(LOSSES) == {name for name, _ in CASES}


def draw(n=16, k=10, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    labels = torch.randint(k, (n,), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def directly(name, logits, labels, params):
    """The formula on u = exp(z) / sum(exp(z)), in float64."""
    exponentials = logits.double().exp()
    u = exponentials / exponentials.sum(dim=1, keepdim=True)
    return FORMULAS[name](u[torch.arange(len(labels)), labels], **params)


@pytest.mark.parametrize("k", [2, 10, 100])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize(("name", "params"), CASES)
def test_values_and_gradients_equal_the_formula(name, params, dtype, rtol, k):
    logits, labels = draw(k=k, dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    loss = build_loss(name, reduction="none", **params)(logits, labels)
    expected = directly(name, exact, labels, params)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=min(rtol, 2e-5), atol=rtol * 1e-2)
    loss.sum().backward()
    expected.sum().backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rtol, atol=rtol * 1e-1)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_gradcheck(name, params):
    logits, labels = draw(n=5, k=4)
    loss = build_loss(name, reduction="none", **params)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_equals_pytorch(reduction, dtype):
    logits, labels = draw(dtype=dtype)
    other = logits.detach().clone().requires_grad_()
    loss = CrossEntropy(reduction)(logits, labels)
    expected = F.cross_entropy(other, labels, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad, other.grad)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_reductions(name, params):
    logits, labels = draw(n=7)
    each, mean, total = (
        build_loss(name, reduction=reduction, **params)(logits, labels)
        for reduction in ("none", "mean", "sum")
    )
    assert each.shape == (7,)
    torch.testing.assert_close(mean, each.mean())
    torch.testing.assert_close(total, each.sum())
    assert build_loss(name, **params).reduction == "mean"


def value_and_gradient(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("limit", "target", "rtol"),
    [
        (lambda z, y: focal_loss(z, y, 0.0), cross_entropy, 0.0),
        (lambda z, y: focal_loss(z, y, 1e-7), cross_entropy, 1e-5),
        (lambda z, y: generalized_cross_entropy(z, y, 1e-7), cross_entropy, 1e-5),
        (
            lambda z, y: generalized_cross_entropy(z, y, 1.0),
            lambda z, y: 1 - z.softmax(dim=1)[torch.arange(len(y)), y],
            1e-5,
        ),
    ],
    ids=["FL gamma=0 is CE", "FL gamma->0 is CE", "GCE q->0 is CE", "GCE q=1 is 1-u_y"],
)
def test_limits_with_their_gradients(limit, target, rtol, dtype):
    logits, labels = draw(n=64, dtype=dtype)
    value, gradient = value_and_gradient(lambda z: limit(z, labels), logits)
    expected, expected_gradient = value_and_gradient(lambda z: target(z, labels), logits)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol)
    torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("k", [10, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "params"), CASES)
def test_finite_where_the_target_probability_is_exactly_zero_or_one(name, params, dtype, k):
    """Row 0 has u_y = 0 and row 1 has u_y = 1, both exactly, in the softmax of any float."""
    logits = torch.zeros(2, k, dtype=dtype)
    logits[0, 0] = logits[1, 0] = 4096.0
    labels = torch.tensor([1, 0])
    u = logits.double().softmax(dim=1)[torch.arange(2), labels]
    assert u.tolist() == [0.0, 1.0]
    value, gradient = value_and_gradient(
        lambda z: build_loss(name, reduction="none", **params)(z, labels), logits
    )
    at_zero = 1 / params["q"] if name == "gce" else 4096.0
    if (name, params.get("q")) == ("gce", 0.01):
        assert 0 < value[0] <= 100
    else:
        assert value[0].item() == pytest.approx(at_zero, rel=1e-6)
    assert value[1].item() == 0.0
    assert gradient.isfinite().all()
    assert gradient[1].abs().max().item() == 0.0
    if name != "gce":  # CE and FL are -log u_y there: the gradient is u - onehot(y)
        assert gradient[0, :2].tolist() == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize(("name", "params"), CASES)
def test_finite_near_certainty(name, params):
    """u_y from 1 - 1e-1 to 1 - 1e-17: where 1 - u_y cancels if it is formed carelessly."""
    gaps = torch.logspace(0, 2, 200)
    logits = torch.zeros(200, 10)
    logits[:, 3] = gaps
    labels = torch.full((200,), 3)
    loss = build_loss(name, reduction="none", **params)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (value >= 0).all()
    assert (value.diff() <= 1e-6).all()


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), float("inf")])
def test_bad_gamma_is_refused(gamma):
    logits, labels = draw()
    with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\)"):
        FocalLoss(gamma)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\)"):
        focal_loss(logits, labels, gamma)


@pytest.mark.parametrize("q", [0.0, -0.7, 1.01, float("nan")])
def test_bad_q_is_refused(q):
    logits, labels = draw()
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        GeneralizedCrossEntropy(q)
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        generalized_cross_entropy(logits, labels, q)


def test_unknown_losses_parameters_and_reductions_are_refused():
    with pytest.raises(ValueError, match="unknown loss 'mse'; there are: ce, fl, gce"):
        build_loss("mse")
    with pytest.raises(ValueError, match="loss 'ce' does not take"):
        build_loss("ce", gamma=2.0)
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none"):
        CrossEntropy("average")


# --- the paper's theory, on every loss -----------------------------------------------------------

outputs = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=7).map(
    lambda weights: torch.tensor(weights, dtype=torch.float64) / sum(weights)
)


@st.composite
def restricted_networks(draw):
    """Outputs of samples, all permutations of one v, with labels: (N, K), (N,), v."""
    v = draw(outputs)
    k = len(v)
    orders = draw(st.lists(st.permutations(range(k)), min_size=1, max_size=6))
    labels = draw(st.lists(st.integers(0, k - 1), min_size=len(orders), max_size=len(orders)))
    return torch.stack([v[order] for order in orders]), torch.tensor(labels), v


def losses_of_every_class(loss, u):
    """L(u, k) for each sample and class, (N, K)."""
    n, k = u.shape
    return torch.stack([loss(u.log(), torch.full((n,), c)) for c in range(k)], dim=1)


@pytest.mark.parametrize("name", LOSSES)
@given(network=restricted_networks())
def test_lemma_1_restricted_outputs_make_any_loss_symmetric(name, network):
    u, _, v = network
    loss = build_loss(name, reduction="none")
    sums = losses_of_every_class(loss, u).sum(dim=1)  # (N,)
    constant = FORMULAS[name](v).sum()
    torch.testing.assert_close(sums, constant.expand_as(sums), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@given(network=restricted_networks(), rate=st.floats(0, 1))
def test_theorem_1_noisy_risk_is_affine_in_the_clean_risk(name, network, rate):
    u, labels, v = network
    k = len(v)
    each = losses_of_every_class(build_loss(name, reduction="none"), u)  # (N, K)
    clean = each[torch.arange(len(labels)), labels].mean()
    noisy = (symmetric_transition(k, rate)[labels] * each).sum(dim=1).mean()
    constant = FORMULAS[name](v).sum()
    expected = (1 - rate * k / (k - 1)) * clean + rate * constant / (k - 1)
    torch.testing.assert_close(noisy, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_outside_the_restriction_these_losses_are_not_symmetric(name):
    """Otherwise the two tests above would show nothing."""
    u = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.3, 0.3]], dtype=torch.float64)
    sums = losses_of_every_class(build_loss(name, reduction="none"), u).sum(dim=1)
    assert abs(sums[0] - sums[1]) > 0.1
