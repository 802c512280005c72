"""Losses against their formulas in float64, their limits, and the paper's theory on them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lnlsr_lib.losses import (
    LOSSES,
    CrossEntropy,
    FocalLoss,
    GeneralizedCrossEntropy,
    NegativeLearning,
    build_loss,
    co_teaching_loss,
    cross_entropy,
    focal_loss,
    generalized_cross_entropy,
    mean_absolute_error,
    normalized_cross_entropy,
    normalized_focal_loss,
    partially_huberised_cross_entropy,
)
from lnlsr_lib.noise import symmetric_transition


def focal(u, gamma, detach=False):
    """With ``detach``, as in the authors' code, the factor is taken from the data of u."""
    return -((1 - (u.detach() if detach else u)) ** gamma) * torch.log(u)


def huberised(u, t):
    return torch.where(u > 1 / t, -torch.log(u), -t * (u - 1 / t) + math.log(t))


A = math.log(1e-4)
# L as a function of u (N, K) and of u_y (N,), written out from the papers.
FORMULAS = {
    "ce": lambda u, v: -torch.log(v),
    "fl": lambda u, v, gamma=0.5, detach=False: focal(v, gamma, detach),
    "gce": lambda u, v, q=0.7, floor=0.0: (1 - v.clamp_min(floor) ** q) / q,
    "mae": lambda u, v, scale=2.0: scale / 2 * ((u.sum(dim=1) - v) + (1 - v)),
    "rce": lambda u, v: -A * (u.sum(dim=1) - v),
    "nce": lambda u, v: torch.log(v) / torch.log(u).sum(dim=1),
    "nfl": lambda u, v, gamma=0.5, detach=False: (
        focal(v, gamma, detach) / focal(u, gamma, detach).sum(dim=1)
    ),
    "phuber_ce": lambda u, v, t=10.0: huberised(v, t),
    "sce": lambda u, v, alpha=1.0, beta=1.0: -alpha * torch.log(v) - beta * A * (1 - v),
    "apl": lambda u, v, alpha=1.0, beta=1.0: (
        alpha * torch.log(v) / torch.log(u).sum(dim=1) + beta * (1 - v)
    ),
    "nce_rce": lambda u, v, alpha=1.0, beta=1.0: (
        alpha * torch.log(v) / torch.log(u).sum(dim=1) - beta * A * (1 - v)
    ),
    "nfl_rce": lambda u, v, alpha=1.0, beta=1.0, detach=False: (
        alpha * focal(v, 0.5, detach) / focal(u, 0.5, detach).sum(dim=1) - beta * A * (1 - v)
    ),
}
CASES = [
    ("ce", {}),
    ("fl", {"gamma": 0.5}),
    ("fl", {"gamma": 1.0}),
    ("fl", {"gamma": 2.0}),
    ("fl", {"gamma": 0.5, "detach": True}),
    ("gce", {"q": 0.7}),
    ("gce", {"q": 0.01}),
    ("gce", {"q": 1.0}),
    ("gce", {"q": 0.01, "floor": 0.05}),
    ("mae", {}),
    ("mae", {"scale": 1.0}),
    ("rce", {}),
    ("nce", {}),
    ("nfl", {"gamma": 0.5}),
    ("nfl", {"gamma": 2.0}),
    ("nfl", {"gamma": 0.5, "detach": True}),
    ("phuber_ce", {"t": 2.0}),
    ("phuber_ce", {"t": 10.0}),
    ("sce", {"alpha": 0.1, "beta": 1.0}),
    ("apl", {"alpha": 10.0, "beta": 1.0}),
    ("apl", {"alpha": 1.0, "beta": 100.0}),
    ("nce_rce", {"alpha": 1.0, "beta": 0.1}),
    ("nfl_rce", {"alpha": 1.0, "beta": 0.1}),
    ("nfl_rce", {"alpha": 10.0, "beta": 0.1, "detach": True}),
]
# Of these, the ones that satisfy the symmetric condition (eq. 2) for every output, and their C.
SYMMETRIC = {
    "mae": lambda k: 2 * (k - 1),
    "rce": lambda k: -A * (k - 1),
    "nce": lambda k: 1,
    "nfl": lambda k: 1,
    "apl": lambda k: 1 + (k - 1),
    "nce_rce": lambda k: 1 - A * (k - 1),
    "nfl_rce": lambda k: 1 - A * (k - 1),
}


def test_every_loss_has_its_formula_here():
    """NLNL keeps a state, and has its own tests below."""
    assert set(FORMULAS) | {"nlnl"} == set(LOSSES)
    assert set(FORMULAS) == {name for name, _ in CASES}


def draw(n=16, k=10, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    labels = torch.randint(k, (n,), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def directly(name, logits, labels, params):
    """The formula on u = exp(z) / sum(exp(z)), in float64."""
    exponentials = logits.double().exp()
    u = exponentials / exponentials.sum(dim=1, keepdim=True)
    return FORMULAS[name](u, u[torch.arange(len(labels)), labels], **params)


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
    tight = min(rtol, 2e-5)  # bf16 logits are exact here, and lifted to float32
    scale = max(1.0, params.get("alpha", 0.0), params.get("beta", 0.0))
    torch.testing.assert_close(loss.double(), expected, rtol=tight, atol=0.1 * tight * scale)
    loss.sum().backward()
    expected.sum().backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rtol, atol=0.1 * rtol * scale)


@pytest.mark.parametrize(("name", "params"), [c for c in CASES if "detach" not in c[1]])
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
            lambda z, y: mean_absolute_error(z, y) / 2,
            1e-5,
        ),
        (lambda z, y: normalized_focal_loss(z, y, 0.0), normalized_cross_entropy, 0.0),
        (lambda z, y: partially_huberised_cross_entropy(z, y, 1e30), cross_entropy, 0.0),
        (lambda z, y: build_loss("sce", beta=0.0, reduction="none")(z, y), cross_entropy, 0.0),
        (
            lambda z, y: build_loss("apl", alpha=0.0, reduction="none")(z, y),
            lambda z, y: mean_absolute_error(z, y) / 2,
            0.0,
        ),
    ],
    ids=[
        "FL gamma=0 is CE",
        "FL gamma->0 is CE",
        "GCE q->0 is CE",
        "GCE q=1 is MAE/2",
        "NFL gamma=0 is NCE",
        "PHuber-CE t->inf is CE",
        "SCE beta=0 is CE",
        "APL alpha=0 is half of MAE",
    ],
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
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    # At u_y = 1 every loss of the paper is 0 and at rest.
    assert value[1].item() == 0.0
    assert gradient[1].abs().max().item() == 0.0
    if name in ("ce", "fl"):  # -log u_y there: the gradient is u - onehot(y)
        assert value[0].item() == pytest.approx(4096.0, rel=1e-6)
        assert gradient[0, :2].tolist() == pytest.approx([1.0, -1.0])
    elif "gce" in name:
        assert 0 < value[0] <= 1 / params["q"]
    elif name == "phuber_ce":
        assert value[0].item() == pytest.approx(1 + math.log(params["t"]), rel=1e-6)


@pytest.mark.parametrize("t", [2.0, 10.0])
def test_phuber_ce_meets_its_tangent_smoothly_and_is_never_steeper_than_t(t):
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64).requires_grad_()
    logits = torch.stack([u.log(), (1 - u).log()], dim=1)
    labels = torch.zeros(len(u), dtype=torch.int64)
    partially_huberised_cross_entropy(logits, labels, t).sum().backward()
    expected = -torch.minimum(1 / u.detach(), torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(u.grad, expected)


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


@pytest.mark.parametrize("t", [1.0, 0.5, -2.0, float("nan")])
def test_bad_t_is_refused(t):
    logits, labels = draw()
    with pytest.raises(ValueError, match=r"t must be in \(1, inf\)"):
        build_loss("phuber_ce", t=t)
    with pytest.raises(ValueError, match=r"t must be in \(1, inf\)"):
        partially_huberised_cross_entropy(logits, labels, t)


@pytest.mark.parametrize("name", ["sce", "apl", "nce_rce", "nfl_rce"])
@pytest.mark.parametrize("weight", ["alpha", "beta"])
def test_bad_weights_of_a_sum_are_refused(name, weight):
    with pytest.raises(ValueError, match=rf"{weight} must be in \[0, inf\)"):
        build_loss(name, **{weight: -1.0})


@pytest.mark.parametrize("q", [0.0, -0.7, 1.01, float("nan")])
def test_bad_q_is_refused(q):
    logits, labels = draw()
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        GeneralizedCrossEntropy(q)
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        generalized_cross_entropy(logits, labels, q)


@pytest.mark.parametrize("floor", [-1e-7, 1.01, float("nan")])
def test_a_bad_floor_is_refused(floor):
    logits, labels = draw()
    with pytest.raises(ValueError, match=r"floor must be in \[0, 1\]"):
        GeneralizedCrossEntropy(floor=floor)
    with pytest.raises(ValueError, match=r"floor must be in \[0, 1\]"):
        generalized_cross_entropy(logits, labels, floor=floor)


def test_below_the_floor_gce_has_no_gradient():
    """u_y is 4e-9, then 5e-5: the floor of 1e-7 lies between."""
    logits = torch.tensor([[20.0, 0.0], [10.0, 0.0]], requires_grad=True)
    labels = torch.tensor([1, 1])
    generalized_cross_entropy(logits, labels, 0.01, 1e-7).sum().backward()
    assert (logits.grad[0] == 0).all()
    assert logits.grad[1].abs().min() > 0.5
    (plain,) = torch.autograd.grad(generalized_cross_entropy(logits, labels, 0.01).sum(), logits)
    assert plain[0].abs().min() > 0.5


def test_unknown_losses_parameters_and_reductions_are_refused():
    with pytest.raises(ValueError, match="unknown loss 'mse'; there are: ce, fl, gce"):
        build_loss("mse")
    with pytest.raises(ValueError, match="loss 'ce' does not take"):
        build_loss("ce", gamma=2.0)
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none"):
        CrossEntropy("average")


# --- class weights, ignored labels, maps, masked classes ------------------------------------------

CLASS_WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("shape", [(9,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["plain", "weighted"])
def test_cross_entropy_takes_all_that_pytorchs_takes(weight, reduction, shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape[0], 5, *shape[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(5, shape, generator=generator)
    for ignored in (0, 3, labels.numel()):
        labels.view(-1)[:ignored] = 255
        options = {"weight": weight, "ignore_index": 255, "reduction": reduction}
        ours, theirs = build_loss("ce", **options), nn.CrossEntropyLoss(**options)
        (value, slope), (expected, wanted) = (
            value_and_gradient(lambda z, f=f: f(z, labels), logits) for f in (ours, theirs)
        )
        torch.testing.assert_close(value, expected, equal_nan=True)  # the mean of nothing is NaN
        torch.testing.assert_close(slope, wanted, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "params"), CASES)
def test_every_loss_is_that_of_the_kept_positions(name, params, reduction):
    """Of pixels, (N, K, H, W), some of them ignored, with class weights."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (2, 3, 4), generator=generator)
    labels[0, 1] = -100
    rows, flat = logits.movedim(1, -1).reshape(-1, 5), labels.flatten()
    kept = flat != -100
    each = build_loss(name, reduction="none", **params)(rows[kept], flat[kept])
    weights = CLASS_WEIGHT[flat[kept]]
    loss = build_loss(name, reduction=reduction, weight=CLASS_WEIGHT, **params)
    value = loss(logits, labels)
    if reduction == "none":
        assert value.shape == labels.shape
        assert (value.flatten()[~kept] == 0).all()
        value, expected = value.flatten()[kept], each * weights
    else:
        expected = (each * weights).sum() / (weights.sum() if reduction == "mean" else 1)
    torch.testing.assert_close(value, expected)
    assert list(loss.state_dict()) == ["weight"]


def test_bad_class_weights_and_labels_of_maps_are_refused():
    for weight in (torch.ones(2, 2), -torch.ones(3), torch.tensor([math.nan, 1.0])):
        with pytest.raises(ValueError, match=r"weight must be \(K,\), each >= 0"):
            build_loss("ce", weight=weight)
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor, got list"):
        CrossEntropy(weight=[1.0, 2.0])
    with torch.device("meta"):
        assert build_loss("ce", weight=torch.ones(3)).weight.is_meta
    with pytest.raises(ValueError, match=r"weight must be \(4,\), got \(3,\)"):
        build_loss("gce", weight=torch.ones(3))(torch.zeros(2, 4), torch.tensor([0, 1]))
    maps = torch.zeros(2, 3, 4, 5)
    for shape in ((2, 4), (2, 5, 4), (2, 3, 4, 5), (2,)):
        with pytest.raises(ValueError, match=r"labels must be \(N, 4, 5\), got shape"):
            build_loss("mae")(maps, torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="as many as the samples, 2, got 3"):
        build_loss("mae")(maps, torch.zeros(3, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\], got -1 to 0"):
        build_loss("mae")(torch.zeros(2, 3), torch.tensor([-1, 0]))


@pytest.mark.parametrize(("name", "params"), CASES)
def test_a_class_masked_with_minus_infinity_is_no_class(name, params):
    """Value and gradient are those of the logits without it, as of PyTorch's cross entropy."""
    logits, labels = draw(n=6, k=5)
    masked = torch.cat([logits.detach(), torch.full((6, 1), -math.inf)], dim=1)
    loss = build_loss(name, reduction="none", **params)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), masked)
    expected, wanted = value_and_gradient(lambda z: loss(z, labels), logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, :5], wanted)
    assert (gradient[:, 5] == 0).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_an_ignored_label_beside_a_masked_class_has_no_gradient(name):
    """Padding is often class 0, masked, and its labels ignored."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1, -100, 2, 3, -100, 4])
    masked, kept = logits.masked_fill(torch.arange(5) == 0, -math.inf), labels >= 0
    loss = build_loss(name)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), masked)
    expected = value_and_gradient(lambda z: loss(z, labels[kept]), masked[kept])
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient[kept], expected[1])
    assert (gradient[~kept] == 0).all()


@pytest.mark.parametrize("params", [{}, {"detach": True}], ids=repr)
def test_a_label_of_a_masked_class_has_the_limit(params):
    logits, labels = torch.zeros(1, 4), torch.tensor([1])
    logits[0, 1] = -math.inf
    ce = value_and_gradient(lambda z: nn.CrossEntropyLoss()(z, labels), logits)
    fl = value_and_gradient(lambda z: build_loss("fl", **params)(z, labels), logits)
    assert fl[0] == ce[0] == math.inf
    torch.testing.assert_close(fl[1], ce[1])
    for name, more in (("nce", {}), ("nfl", params), ("apl", {"beta": 0.0})):
        loss = build_loss(name, **more)
        value, gradient = value_and_gradient(lambda z, loss=loss: loss(z, labels), logits)
        assert value == 1
        assert gradient.isfinite().all()


def test_a_class_that_is_only_unlikely_is_one():
    logits = torch.tensor([[0.0, -200.0, -1.0]], dtype=torch.float64)
    losses = -logits.log_softmax(dim=1)
    expected = losses[0, 2] / losses.sum()
    assert build_loss("nce")(logits, torch.tensor([2])).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["nce", "nfl", "apl", "nce_rce", "nfl_rce"])
@pytest.mark.parametrize("mask", [-1e9, torch.finfo(torch.float32).min])
def test_a_class_masked_with_a_number_is_no_class_either(name, mask):
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    labels, loss = labels % 4, build_loss(name)
    out = [
        value_and_gradient(
            lambda z: loss(z, labels), logits.masked_fill(torch.arange(5) == 4, number)
        )
        for number in (-math.inf, mask)
    ]
    torch.testing.assert_close(out[1], out[0])


@pytest.mark.parametrize("name", list(FORMULAS))
@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_rows_without_a_softmax_are_refused_with_a_true_message(name, bad):
    logits = torch.zeros(3, 4)
    logits[1] = bad
    with pytest.raises(ValueError, match="must have a finite largest entry; 1 of 3 do not"):
        build_loss(name)(logits, torch.tensor([0, 1, 2]))


# --- transforms: nothing asks for values ----------------------------------------------------------


@pytest.mark.skipif(torch.__version__ < "2.4", reason="export was young then")
@pytest.mark.parametrize("name", FORMULAS)
def test_exported_with_any_batch(name):
    logits, labels = draw(n=16, k=5)
    loss, batch = build_loss(name), torch.export.Dim("batch", min=2, max=100)
    example = logits.detach(), labels
    program = torch.export.export(loss, example, dynamic_shapes=({0: batch}, {0: batch}))
    few = example[0][:4], labels[:4]
    torch.testing.assert_close(program.module()(*few), loss(*few))


@pytest.mark.parametrize("name", FORMULAS)
def test_traced_with_symbols_for_sizes(name):
    logits, labels = draw(n=16, k=5)
    loss = build_loss(name)
    traced = make_fx(loss, tracing_mode="symbolic")(logits.detach(), labels)
    few = logits.detach()[:4], labels[:4]
    torch.testing.assert_close(traced(*few), loss(*few))


@pytest.mark.parametrize(("name", "params"), CASES)
def test_gradients_per_sample_by_vmap(name, params):
    logits, labels = draw(n=5, k=4)
    loss = build_loss(name, **params)
    each = torch.func.vmap(torch.func.grad(lambda z, y: loss(z[None], y[None])))
    (summed,) = torch.autograd.grad(
        build_loss(name, reduction="sum", **params)(logits, labels), logits
    )
    torch.testing.assert_close(each(logits.detach(), labels), summed)


@pytest.mark.parametrize(("name", "params"), dict(CASES).items())
def test_one_graph_and_the_same_numbers_compiled_exported_and_fake(name, params):
    logits, labels = (t.detach() for t in draw(n=6, k=4))
    labels[1] = -100
    loss = build_loss(name, weight=CLASS_WEIGHT[:4] + 1, **params)
    expected = loss(logits, labels)
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), expected)
    exported = torch.export.export(loss, (logits, labels)).module()
    torch.testing.assert_close(exported(logits, labels), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = loss(mode.from_tensor(logits), mode.from_tensor(labels))
    assert fake.shape == expected.shape


# --- outputs restricted to the permutations of one vector ----------------------------------

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


# --- NLNL -----------------------------------------------------------------------------------------


def attached(labels, k, phases=3, reduction="none", epoch=0, epochs=3, seed=0, draws=1):
    loss = NegativeLearning(phases, draws, reduction)
    loss.attach(labels, k)
    loss.start_epoch(epoch, epochs, torch.Generator().manual_seed(seed))
    return loss


def test_negative_learning_pushes_down_one_other_class():
    logits, labels = draw(n=500)
    index = torch.arange(500)
    loss = attached(labels, 10)
    each = loss(logits, labels, index)
    other = (labels + loss.shifts[:, 0]) % 10
    assert (other != labels).all()
    u = logits.softmax(dim=1)
    weight = (labels.bincount().max() / labels.bincount())[labels]
    expected = -weight * torch.log(1 - u[index, other])
    torch.testing.assert_close(each, expected, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(each.sum(), logits)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)
    assert (gradient[index, other] >= 0).all()  # a step of descent lowers that class


def test_several_draws_are_summed_and_may_repeat():
    logits, labels = draw(n=40)
    index = torch.arange(40)
    loss = attached(labels, 10, phases=1, draws=110)
    assert loss.shifts.shape == (40, 110)
    others = (labels[:, None] + loss.shifts) % 10
    weight = (labels.bincount(minlength=10).max() / labels.bincount(minlength=10))[labels]
    expected = -weight * torch.log(1 - logits.softmax(dim=1).gather(1, others)).sum(dim=1)
    torch.testing.assert_close(loss(logits, labels, index), expected, rtol=1e-6, atol=1e-9)
    mean = attached(labels, 10, phases=1, draws=110, reduction="mean")
    torch.testing.assert_close(mean(logits, labels, index), expected.mean(), rtol=1e-6, atol=0)
    assert not loss.confidence.numel()  # the first phase alone trusts nobody


def test_complementary_labels_are_uniform_over_the_other_classes_and_new_each_epoch():
    labels = torch.zeros(9000, dtype=torch.int64)
    loss = attached(labels, 10, seed=1)
    counts = loss.shifts[:, 0].bincount(minlength=10)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 5 * (9000 * (1 / 9) * (8 / 9)) ** 0.5
    before = loss.shifts.clone()
    loss.start_epoch(1, 3, torch.Generator().manual_seed(2))
    assert not torch.equal(before, loss.shifts)
    loss.start_epoch(0, 3, torch.Generator().manual_seed(1))
    assert torch.equal(before, loss.shifts)


@pytest.mark.parametrize(
    ("phases", "epochs", "expected"),
    [
        (3, 3, [1, 2, 3]),
        (3, 6, [1, 1, 2, 2, 3, 3]),
        (3, 4, [1, 1, 2, 3]),
        (3, 1, [1]),
        (1, 4, [1, 1, 1, 1]),
    ],
)
def test_phases_are_thirds_of_the_epochs(phases, epochs, expected):
    loss = attached(torch.tensor([0, 1]), 2, phases)
    seen = []
    for epoch in range(epochs):
        loss.start_epoch(epoch, epochs, torch.Generator())
        seen.append(loss.phase)
    assert seen == expected


def test_selection_goes_by_the_mean_confidence_of_the_last_ten_visits():
    labels = torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, 3.0]]).log_softmax(1)
    index = torch.arange(4)
    loss = attached(labels, 2, epochs=30)
    for epoch in range(10):
        loss.start_epoch(epoch, 30, torch.Generator().manual_seed(epoch))
        assert (loss(logits, labels, index) > 0).all()  # the first phase uses every sample
    torch.testing.assert_close(
        loss.confidence.mean(dim=0), logits.exp()[index, labels], rtol=1e-5, atol=0
    )
    for epoch, phase in ((10, 2), (20, 3)):
        loss.start_epoch(epoch, 30, torch.Generator().manual_seed(epoch))
        assert loss.phase == phase
        each = loss(logits, labels, index)
        assert (each > 0).tolist() == [True, False, False, True]
    torch.testing.assert_close(each[0], -logits[0, 0])  # positive learning is CE


def test_the_mean_is_over_the_samples_in_use_and_none_gives_zero():
    labels = torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, 1.0]], requires_grad=True)
    index = torch.arange(4)
    mean = attached(labels, 2, reduction="mean", epoch=2)
    mean.confidence[:] = torch.tensor([0.9, 0.1, 0.2, 0.8])
    expected = F.cross_entropy(logits[[0, 3]], labels[[0, 3]])
    torch.testing.assert_close(mean(logits, labels, index), expected)
    mean.confidence[:] = 0.0
    nothing = mean(logits, labels, index)
    nothing.backward()
    assert nothing.item() == 0
    assert (logits.grad == 0).all()


def test_the_third_phase_is_the_cross_entropy_of_weighted_classes():
    labels, index = torch.tensor([0, 0, 0, 1, 1, 2]), torch.arange(6)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    loss = attached(labels, 3, reduction="mean", epoch=2)
    loss.confidence[:] = torch.tensor([0.9, 0.1, 0.6, 0.7, 0.2, 0.8])
    used, weight = [0, 2, 3, 5], loss.class_weight
    expected = F.cross_entropy(logits[used], labels[used], weight=weight)
    torch.testing.assert_close(loss(logits, labels, index), expected)
    assert not expected.isclose(F.cross_entropy(logits[used], labels[used]))


def test_the_second_phase_trusts_more_than_chance_and_the_third_more_than_half():
    labels, index = torch.tensor([0, 1, 2, 3]), torch.arange(4)
    for epoch, used in ((1, [False, True, True, True]), (2, [False, False, False, True])):
        loss = attached(labels, 4, epoch=epoch)
        loss.confidence[:] = torch.tensor([0.2, 0.3, 0.5, 0.6])
        assert (loss(torch.zeros(4, 4), labels, index) > 0).tolist() == used


def test_confidence_is_that_of_ten_visits_and_holds_no_graph():
    labels, index = torch.tensor([0, 1]), torch.arange(2)
    logits, loss = torch.zeros(2, 2, requires_grad=True), attached(labels, 2, epochs=40)
    for epoch in range(11):
        loss.start_epoch(epoch, 40, torch.Generator())
        loss((epoch + 1) * logits, labels, index)
        assert (loss.confidence[:, 0] > 0).sum() == min(epoch + 1, 10)
    assert loss.confidence.shape == (10, 2)
    assert not loss.confidence.requires_grad


def test_a_certain_complementary_class_gives_finite_numbers():
    labels = torch.tensor([0])
    loss = attached(labels, 2)
    logits = torch.tensor([[0.0, 200.0]], requires_grad=True)
    value = loss(logits, labels, torch.tensor([0]))
    value.sum().backward()
    assert value.item() == pytest.approx(-math.log(1e-5))
    assert logits.grad.isfinite().all()


def test_rare_classes_weigh_more():
    labels = torch.tensor([0, 0, 0, 1])
    assert attached(labels, 3).class_weight.tolist() == [1.0, 3.0, 3.0]


def test_confidence_is_kept_in_training_alone_and_in_the_state():
    labels = torch.tensor([0, 1])
    logits = torch.zeros(2, 2)
    loss = attached(labels, 2).eval()
    loss(logits, labels, torch.arange(2))
    assert (loss.confidence == 0).all()
    loss.train()(logits, labels, torch.arange(2))
    assert loss.confidence[0].tolist() == [0.5, 0.5]
    again = attached(labels, 2)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.confidence, loss.confidence)


def test_negative_learning_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="phases must be 1 or 3, got 2"):
        NegativeLearning(phases=2)
    with pytest.raises(ValueError, match=r"complementary must be in \[1, inf\)"):
        NegativeLearning(complementary=0)
    with pytest.raises(ValueError, match=r"complementary must be a whole number, got 1\.5"):
        NegativeLearning(complementary=1.5)
    loss = NegativeLearning()
    with pytest.raises(RuntimeError, match="comes before the first epoch"):
        loss.start_epoch(0, 3, torch.Generator())
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\]"):
        loss.attach(torch.tensor([0, 2]), 2)


def test_negative_learning_refuses_what_it_was_not_told_of():
    labels, index = torch.tensor([0, 1]), torch.arange(2)
    logits = torch.zeros(2, 3)
    loss = NegativeLearning()
    with pytest.raises(RuntimeError, match=r"attach\(\) and start_epoch\(\) come before"):
        loss(logits, labels, index)
    loss.attach(labels, 3)
    with pytest.raises(RuntimeError, match=r"attach\(\) and start_epoch\(\) come before"):
        loss(logits, labels, index)
    for epoch in (3, 4, -1):
        with pytest.raises(ValueError, match="epoch must be"):
            loss.start_epoch(epoch, 3, 0)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator of the CPU"):
        loss.start_epoch(0, 3, None)
    loss.start_epoch(2, 3, 0)
    with pytest.raises(ValueError, match=r"logits must be \(N, 3\), got \(2, 4\)"):
        loss(torch.zeros(2, 4), labels, index)
    for wrong in (torch.tensor([-1, 0]), torch.tensor([0, 2])):
        with pytest.raises(ValueError, match=r"index must be in \[0, 1\]"):
            loss(logits, labels, wrong)
    with pytest.raises(ValueError, match="index must be as many as the samples, 2, got 3"):
        loss(logits, labels, torch.arange(3))
    with pytest.raises(ValueError, match="labels must be of one sample at least"):
        loss.attach(labels[:0], 3)
    with pytest.raises(ValueError, match="the state is of other samples"):
        attached(torch.tensor([0, 1, 1]), 3).load_state_dict(attached(labels, 3).state_dict())


def test_the_table_of_samples_is_no_buffer_but_moves_and_is_saved():
    labels = torch.tensor([0, 1])
    loss = attached(labels, 2)
    assert [name for name, _ in loss.named_buffers()] == ["class_weight"]
    assert all(isinstance(value, torch.Tensor) for value in loss.state_dict().values())
    loss.confidence[:] = 0.25
    before = {"confidence": loss.confidence, "class_weight": loss.class_weight}  # of version 1
    again = attached(labels, 2)
    again.load_state_dict(before)
    assert (again.confidence == 0.25).all()
    moved = attached(labels, 2).to("meta")
    assert moved.confidence.device == moved.shifts.device == torch.device("meta")


@given(network=restricted_networks())
def test_lemma_1_holds_for_negative_learning_in_expectation(network):
    """The mean over complementary labels of -log(1 - u_k), summed over the given label."""
    u, _, v = network
    miss = -torch.log(1 - u)
    expected = (miss.sum(dim=1, keepdim=True) - miss) / (len(v) - 1)  # (N, K), by given label
    sums = expected.sum(dim=1)
    torch.testing.assert_close(sums, -torch.log(1 - v).sum().expand_as(sums))


def test_other_samples_need_another_epoch():
    loss = build_loss("nlnl")
    loss.attach(torch.arange(20) % 5, 5)
    loss.start_epoch(0, 3, 0)
    labels = torch.arange(10) % 2
    loss.attach(labels, 2)
    with pytest.raises(RuntimeError, match=r"start_epoch\(\) come before the first batch"):
        loss(torch.randn(10, 2), labels, torch.arange(10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_three_phases_train_in_any_precision(dtype):
    labels = torch.arange(10) % 5
    loss = build_loss("nlnl", phases=3)
    loss.attach(labels, 5)
    loss.start_epoch(0, 3, 0)
    loss.to(dtype)
    assert loss(torch.randn(10, 5).to(dtype), labels, torch.arange(10)).isfinite()


@pytest.mark.skipif(torch.__version__ < "2.4", reason="compiled code saw no attribute change")
def test_three_phases_are_compiled_once_a_phase():
    logits, labels = torch.randn(16, 5), torch.arange(16) % 5
    loss, counter = build_loss("nlnl", phases=3), CompileCounter()
    loss.attach(labels, 5)
    torch.compiler.reset()
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for epoch in range(12):
        loss.start_epoch(epoch, 12, epoch)
        assert compiled(logits, labels, torch.arange(16)).isfinite()
    assert counter.frame_count == 3


# --- Co-teaching ----------------------------------------------------------------------------------


def test_co_teaching_takes_the_samples_that_are_easy_for_the_other():
    first = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    second = torch.tensor([40.0, 30.0, 20.0, 10.0], requires_grad=True)
    loss = co_teaching_loss(first, second, 0.5)
    assert loss.item() == (3 + 4) / 2 + (40 + 30) / 2
    loss.backward()
    assert first.grad.tolist() == [0, 0, 0.5, 0.5]
    assert second.grad.tolist() == [0.5, 0.5, 0, 0]


def test_co_teaching_keeping_all_is_the_sum_of_both_means():
    first, second = torch.rand(2, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(co_teaching_loss(first, second, 1.0), first.mean() + second.mean())


def test_co_teaching_keeps_no_more_than_its_share():
    first, second = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 5.0, 7.0])
    assert co_teaching_loss(first, second, 0.6).item() == 1 + 3


def test_co_teaching_keeps_at_least_one_sample():
    first, second = torch.tensor([2.0, 1.0]), torch.tensor([5.0, 3.0])
    assert co_teaching_loss(first, second, 0.0).item() == 1 + 3


def test_co_teaching_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"must be \(N,\) with N >= 1, got \(3,\) and \(2,\)"):
        co_teaching_loss(torch.ones(3), torch.ones(2), 0.5)
    with pytest.raises(ValueError, match=r"keep_rate must be in \[0, 1\]"):
        co_teaching_loss(torch.ones(3), torch.ones(3), 1.5)


# --- the paper's theory, on every loss -----------------------------------------------------------


def formula_over_classes(name, v):
    """L(v, k) for every class k by the formula, (K,)."""
    return FORMULAS[name](v.expand(len(v), -1), v)


def losses_of_every_class(loss, u):
    """L(u, k) for each sample and class, (N, K)."""
    n, k = u.shape
    return torch.stack([loss(u.log(), torch.full((n,), c)) for c in range(k)], dim=1)


@pytest.mark.parametrize("name", FORMULAS)
@given(network=restricted_networks())
def test_lemma_1_restricted_outputs_make_any_loss_symmetric(name, network):
    u, _, v = network
    loss = build_loss(name, reduction="none")
    sums = losses_of_every_class(loss, u).sum(dim=1)  # (N,)
    constant = formula_over_classes(name, v).sum()
    torch.testing.assert_close(sums, constant.expand_as(sums), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FORMULAS)
@given(network=restricted_networks(), rate=st.floats(0, 1))
def test_theorem_1_noisy_risk_is_affine_in_the_clean_risk(name, network, rate):
    u, labels, v = network
    k = len(v)
    each = losses_of_every_class(build_loss(name, reduction="none"), u)  # (N, K)
    clean = each[torch.arange(len(labels)), labels].mean()
    noisy = (symmetric_transition(k, rate)[labels] * each).sum(dim=1).mean()
    constant = formula_over_classes(name, v).sum()
    expected = (1 - rate * k / (k - 1)) * clean + rate * constant / (k - 1)
    torch.testing.assert_close(noisy, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SYMMETRIC)
@given(u=outputs)
def test_a_symmetric_loss_sums_to_its_constant_for_every_output(name, u):
    total = losses_of_every_class(build_loss(name, reduction="none"), u[None]).sum()
    assert total.item() == pytest.approx(SYMMETRIC[name](len(u)), rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(FORMULAS) - set(SYMMETRIC)))
def test_outside_the_restriction_the_others_are_not_symmetric(name):
    """Otherwise Lemma 1 and Theorem 1 would show nothing on them."""
    u = torch.tensor([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3]], dtype=torch.float64)
    sums = losses_of_every_class(build_loss(name, reduction="none"), u).sum(dim=1)
    assert abs(sums[0] - sums[1]) > 0.1


@pytest.mark.parametrize(
    ("name", "params"),
    [("gce", {"q": 1e-320}), ("sce", {"alpha": 1e308}), ("fl", {"gamma": 1e-310})],
)
def test_parameters_that_float32_cannot_compute_with_are_refused(name, params):
    with pytest.raises(ValueError, match=r"must be 0, or of a size in \[1e-30, 1e30\]"):
        build_loss(name, **params)


def test_the_smallest_q_is_still_cross_entropy():
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 10
    ours = build_loss("gce", q=1e-30)(logits, labels)
    assert ours == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["nce", "nfl", "apl", "nce_rce", "nfl_rce"])
@pytest.mark.parametrize("others", [-math.inf, -1e9, -2e4])
def test_a_row_of_one_class_has_no_normalised_loss(name, others):
    logits = torch.tensor([[1.0, others, others], [0.0, 1.0, 2.0]], requires_grad=True)
    labels = torch.tensor([0, 1])
    loss = build_loss(name, reduction="none")(logits, labels)
    alone = build_loss(name, reduction="none")(logits[1:], labels[1:])
    torch.testing.assert_close(loss, torch.cat([torch.zeros(1), alone]))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert (slope[0] == 0).all()
    assert slope.isfinite().all()
    wrong = torch.tensor([[2e4, 0.0, 0.0]], requires_grad=True)
    build_loss(name)(wrong, labels[1:]).backward()
    assert wrong.grad.isfinite().all()
