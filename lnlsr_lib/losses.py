"""Base losses: logits (N, K) and labels (N,) to one loss per sample, then the reduction.

As PyTorch's own criteria they also take logits (N, K, ...) with labels (N, ...), such as (N, K, T)
of tokens and (N, K, H, W) of pixels; every position is then a sample.

Each loss is a pure function that returns one value per sample, and a thin module around it with
``reduction`` as in PyTorch. Probabilities are u = softmax(z); u_y is that of the given label.
Half-precision logits are lifted to float32 first, and everything is computed from log u, so values
and gradients stay finite for u_y -> 0 and u_y -> 1.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lnlsr_lib.checks import (
    check_generator,
    check_labels,
    check_logits,
    check_parameter,
    check_place,
    check_range,
    check_reduction,
    check_rows,
    check_whole,
    kept_rows,
    look,
    reduce_rows,
    warn_of_softmax,
)

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "FocalLoss",
    "GeneralizedCrossEntropy",
    "Loss",
    "NegativeLearning",
    "build_loss",
    "co_teaching_loss",
    "cross_entropy",
    "focal_loss",
    "generalized_cross_entropy",
    "mean_absolute_error",
    "normalized_cross_entropy",
    "normalized_focal_loss",
    "partially_huberised_cross_entropy",
    "reverse_cross_entropy",
    "weighted_sum",
]

RCE_LOG_ZERO = math.log(1e-4)  # A, the logarithm of a clamped 0; source: the authors' code
# Below it log u is that of a class that was masked, with -inf, -1e9 or the like; ours.
MASKED = -1e4

PerSample = Callable[..., Tensor]  # of logits and labels, and parameters of its own


def _log_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """log u, (N, K), in at least float32, once both arguments are checked."""
    logits = check_logits(logits)
    check_labels(labels, logits.shape[1], (logits.shape[0], *logits.shape[2:]))
    check_place(logits, labels)
    log_u = logits.log_softmax(dim=1)
    if not torch.compiler.is_compiling():  # NaN anywhere in a row makes its softmax NaN throughout
        check_rows(log_u.detach().select(1, 0).sum(), logits)
    return log_u


def _at(values: Tensor, labels: Tensor) -> Tensor:
    """The entry of each row that its label names, (N,)."""
    return values.gather(1, labels.unsqueeze(1)).squeeze(1)


def _log_target(logits: Tensor, labels: Tensor) -> Tensor:
    """log u_y, (N,), in at least float32."""
    return -F.nll_loss(_log_softmax(logits, labels), labels, reduction="none")


def _of_all(log_u: Tensor) -> Tensor:
    """Log u for a sum over the classes, from which a class that is masked stays out."""
    return log_u.masked_fill(log_u < MASKED, 0.0)


def _share(losses: Tensor, log_u: Tensor, labels: Tensor) -> Tensor:
    """The label's part of the sum of all classes' losses, (N,); 1, its limit, if it is masked."""
    masked, total = _at(log_u.detach(), labels) < MASKED, losses.sum(dim=1)
    total = torch.where(total.detach() == 0, 1.0, total)  # no other class counts: no loss
    return torch.where(masked, 1.0, _at(losses, labels) / total)


def _focal(log_u: Tensor, gamma: float, detach: bool) -> Tensor:
    """-(1 - u)^gamma log u, entry by entry; the power constant to the gradient if ``detach``."""
    if gamma == 0:
        return -log_u
    masked = log_u.detach() == -math.inf  # the loss is infinite there, its slope that of CE
    given, log_u = log_u, log_u.masked_fill(masked, -1.0)
    # 1 - u without cancellation. The floor keeps the power's slope finite at u = 1, where the loss
    # and its gradient are 0.
    miss = (-torch.expm1(log_u.detach() if detach else log_u)).clamp_min(
        torch.finfo(log_u.dtype).tiny
    )
    return torch.where(masked, -given, -(miss**gamma) * log_u)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy (CE) per sample, L = -log u_y.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].

    Returns:
        (N,), in nats, float32 or wider.

    Raises:
        TypeError, ValueError: see :func:`lnlsr_lib.checks.check_logits` and ``check_labels``.
    """
    return -_log_target(logits, labels)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 0.5, detach: bool = False) -> Tensor:
    """Focal loss (FL) per sample, L = -(1 - u_y)^gamma log u_y.

    gamma = 0 is CE. The authors' code has gamma = 0.5. With ``detach`` the value is the same, and
    the gradient that of CE times (1 - u_y)^gamma.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        gamma: focusing exponent, >= 0.
        detach: take (1 - u_y)^gamma for a constant in the gradient, as the authors' code does;
            False, the default, is the published loss.

    Returns:
        (N,), in nats, float32 or wider.

    Raises:
        TypeError, ValueError: bad logits, labels or gamma.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017; detach, the authors' code.
    """
    gamma = check_parameter("gamma", gamma, 0.0)
    return _focal(_log_target(logits, labels), gamma, detach)


def generalized_cross_entropy(
    logits: Tensor, labels: Tensor, q: float = 0.7, floor: float = 0.0
) -> Tensor:
    """Generalised cross entropy (GCE) per sample, L = (1 - max(u_y, floor)^q) / q.

    q -> 0 is CE; q = 1 is 1 - u_y, half of MAE. The authors' code has q = 0.7. A sample below the
    floor has no gradient: the network gives up on labels that it is sure are wrong. For q near 0
    that matters to GCE+SR, whose gradient at such labels is nearly that of CE without it.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        q: Box-Cox exponent, in (0, 1].
        floor: lower bound of u_y, in [0, 1]; 0, the default, is the published loss, 1e-7 what the
            authors' code has.

    Returns:
        (N,), in [0, 1/q], float32 or wider.

    Raises:
        TypeError, ValueError: bad logits, labels, q or floor.

    Source: Zhang and Sabuncu, NeurIPS 2018; the floor, the authors' code.
    """
    q = check_parameter("q", q, 0.0, 1.0, open_low=True)
    floor = check_parameter("floor", floor, 0.0, 1.0)
    log_u = _log_target(logits, labels)
    if floor:
        log_u = log_u.clamp_min(math.log(floor))
    return -torch.expm1(q * log_u) / q


def mean_absolute_error(logits: Tensor, labels: Tensor, scale: float = 2.0) -> Tensor:
    """Mean absolute error (MAE) per sample, L = scale (1 - u_y); ||e_y - u||_1 for scale 2.

    Symmetric (eq. 2) with C = scale (K - 1). Inside APL the scale is 1: in the authors' code the
    passive part of NCE+MAE is half of the MAE that stands alone, in APL's own code both are 1.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        scale: > 0.

    Returns:
        (N,), in [0, scale], float32 or wider.

    Raises:
        TypeError, ValueError: bad logits, labels or scale.

    Source: Ghosh et al., AAAI 2017; both scales as in the authors' code.
    """
    scale = check_parameter("scale", scale, 0.0, open_low=True)
    return -scale * torch.expm1(_log_target(logits, labels))


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Reverse cross entropy (RCE) per sample, L = -A (1 - u_y) with A = log 1e-4.

    That is -sum_i u_i log(e_y)_i, the label's zeros clamped at 1e-4. Symmetric (eq. 2) with
    C = -A (K - 1).

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].

    Returns:
        (N,), in [0, -A], float32 or wider.

    Raises:
        TypeError, ValueError: bad logits or labels.

    Source: Wang et al., ICCV 2019; the clamp as in the authors' code.
    """
    return RCE_LOG_ZERO * torch.expm1(_log_target(logits, labels))


def normalized_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Normalised cross entropy (NCE) per sample, L = log u_y / sum_k log u_k.

    Symmetric (eq. 2) with C = 1.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].

    Returns:
        (N,), in [0, 1], float32 or wider.

    Raises:
        TypeError, ValueError: bad logits or labels.

    Source: Ma et al., ICML 2020.
    """
    log_u = _log_softmax(logits, labels)
    return _share(_of_all(log_u), log_u, labels)


def normalized_focal_loss(
    logits: Tensor, labels: Tensor, gamma: float = 0.5, detach: bool = False
) -> Tensor:
    """Normalised focal loss (NFL) per sample, FL of the label over the sum of FL of all classes.

    Symmetric (eq. 2) with C = 1. gamma = 0 is NCE.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        gamma: focusing exponent, >= 0.
        detach: take every (1 - u_k)^gamma, above and below the bar, for a constant in the gradient,
            as the authors' code does; the logarithms keep theirs. False by default.

    Returns:
        (N,), in [0, 1], float32 or wider.

    Raises:
        TypeError, ValueError: bad logits, labels or gamma.

    Source: Ma et al., ICML 2020.
    """
    gamma = check_parameter("gamma", gamma, 0.0)
    log_u = _log_softmax(logits, labels)
    return _share(_focal(_of_all(log_u), gamma, detach), log_u, labels)


def partially_huberised_cross_entropy(logits: Tensor, labels: Tensor, t: float = 10.0) -> Tensor:
    """PHuber-CE per sample: CE for u_y > 1/t, and its tangent there below.

    L = -log u_y where u_y > 1/t, else log t + 1 - t u_y. t -> infinity is CE.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        t: steepest slope in u_y, > 1. Menon et al. have 2 on CIFAR-10, 10 on MNIST and CIFAR-100.

    Returns:
        (N,), in [0, log t + 1], float32 or wider.

    Raises:
        TypeError, ValueError: bad logits, labels or t.

    Source: Menon et al., ICLR 2020.
    """
    t = check_parameter("t", t, 1.0, open_low=True)
    log_u = _log_target(logits, labels)
    return torch.where(log_u > -math.log(t), -log_u, math.log(t) + 1 - t * log_u.exp())


def weighted_sum(
    first: PerSample,
    second: PerSample,
    logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    **options: Any,
) -> Tensor:
    """alpha times one loss plus beta times another, per sample: SCE, and active passive losses.

    Args:
        first, second: functions of (logits, labels) to one loss per sample.
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        alpha, beta: the weights of the two, >= 0.
        options: of the first, such as the ``detach`` of NFL in NFL+RCE.

    Returns:
        (N,), float32 or wider.

    Raises:
        TypeError, ValueError: alpha or beta below 0, bad logits or labels, or options that the
            first does not take.

    Source: SCE = alpha CE + beta RCE, Wang et al., ICCV 2019; APL = alpha active + beta passive,
    Ma et al., ICML 2020. In APL the passive part of NCE+MAE is beta (1 - u_y), half of
    :func:`mean_absolute_error` as it stands alone.
    """
    alpha, beta = check_parameter("alpha", alpha, 0.0), check_parameter("beta", beta, 0.0)
    return alpha * first(logits, labels, **options) + beta * second(logits, labels)


class Loss(nn.Module):
    """A per-sample loss with a reduction: ``forward(logits, labels)``.

    Args:
        reduction: "mean" (default), "sum", or "none" for the per-sample values (N,).
        function: of (logits, labels) and ``params`` to one loss per sample, (N,); it is called once
            here, so that bad parameters are refused at once.
        weight: of each class, (K,), floating, >= 0; ``mean`` is then the weighted mean. All classes
            weigh the same by default.
        ignore_index: a label whose samples do not count. Both as ``nn.CrossEntropyLoss`` has them.

    Raises:
        TypeError, ValueError: an unknown reduction, bad weights, or parameters that the function
            refuses.
    """

    def __init__(
        self,
        reduction: str = "mean",
        function: Callable[..., Tensor] | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        **params: Any,
    ) -> None:
        super().__init__()
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
        if weight is not None and (weight.ndim != 1 or look((weight >= 0).all()) is False):
            raise ValueError(f"weight must be (K,), each >= 0, got {weight!r}")
        self.reduction = check_reduction(reduction)
        self.ignore_index: int | None = operator.index(ignore_index)
        self.register_buffer("weight", weight)
        self.weight: Tensor | None
        if function is not None:
            function(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), **params)
        self.function, self.params = function, params
        self._new = True  # no batch was looked at

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        kept = kept_rows(labels, self.ignore_index)
        if kept is not None:
            labels = torch.where(kept, labels, 0)
        assert self.function is not None, "a subclass without a function defines forward"
        rows = self.function(logits, labels, **self.params)  # (N,)
        if not torch.compiler.is_compiling() and self._new:
            self._new = False
            warn_of_softmax(logits)
        weight = self.weight
        if weight is not None:
            if len(weight) != logits.shape[1]:
                raise ValueError(f"weight must be ({logits.shape[1]},), got ({len(weight)},)")
            weight = weight.to(rows.dtype)[labels]
        return reduce_rows(rows, self.reduction, kept, weight)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.params.items())


class CrossEntropy(Loss):
    """CE, see :func:`cross_entropy`; ``more`` are :class:`Loss`'s weight and ignore_index."""

    def __init__(self, reduction: str = "mean", **more: Any) -> None:
        super().__init__(reduction, cross_entropy, **more)


class FocalLoss(Loss):
    """FL, see :func:`focal_loss`; ``more`` are :class:`Loss`'s weight and ignore_index."""

    def __init__(self, gamma: float = 0.5, detach: bool = False, **more: Any) -> None:
        super().__init__(function=focal_loss, gamma=gamma, detach=detach, **more)


class GeneralizedCrossEntropy(Loss):
    """GCE, see :func:`generalized_cross_entropy`; ``more`` are :class:`Loss`'s options."""

    def __init__(self, q: float = 0.7, floor: float = 0.0, **more: Any) -> None:
        super().__init__(function=generalized_cross_entropy, q=q, floor=floor, **more)


class NegativeLearning(Loss):
    """NLNL: learn from complementary labels, "not class k", then from the samples it trusts.

    In each epoch every sample draws complementary labels k, uniform over the classes other than its
    given label y, with replacement. The first phase is the form of APL's own runs, which 13 of
    the paper's 27 cells are; the published method has three, of a third of the epochs each:

    1. NL: every sample, L = -w_y sum_k log(1 - u_k), summed over its draws;
    2. SelNL: the same, on samples with mean u_y > 1/K;
    3. SelPL: CE, L = -w_y log u_y, on samples with mean u_y > 1/2.

    The mean of u_y is that of the sample's last ten visits, of which one not yet made counts as 0,
    so that after a phase of fewer epochs few samples are trusted, or none; w_y is the size of the
    largest class over that of y; 1 - u_k is clamped at 1e-5. The reduction "mean" is over the
    samples in use, weighted by w_y in the third phase.

    It has to be told of the samples, once: :meth:`attach`; of every epoch: :meth:`start_epoch`; and
    it takes their indices: ``loss(logits, labels, index)``. Its state is in ``state_dict``. The
    confidence is no buffer, which DistributedDataParallel would copy from the first process over
    what the others have seen: each process keeps that of the samples that it has trained on.

    Args:
        phases: 1 for the first alone, as in the code of APL and of the authors, or 3.
        complementary: labels drawn a visit, >= 1; the published runs have 1, on CIFAR-100 110.
        reduction: as for :class:`Loss`.

    Raises:
        ValueError: another number of phases, or no draws.

    Source: Kim et al., ICCV 2019, and its published code; one phase, APL's code.
    """

    WINDOW = 10  # visits
    CLAMP = 1e-5

    def __init__(self, phases: int = 1, complementary: int = 1, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if phases not in (1, 3):
            raise ValueError(f"phases must be 1 or 3, got {phases!r}")
        check_range("complementary", complementary, 1)
        if complementary != int(complementary):
            raise ValueError(f"complementary must be a whole number, got {complementary!r}")
        self.phases, self.complementary = int(phases), int(complementary)
        self.phase = 1
        # the visit's place, a tensor: a number would be compiled anew in every epoch
        self.slot = torch.zeros((), dtype=torch.int64)
        self.ignore_index = None
        self.confidence = torch.zeros(self.WINDOW, 0)  # u_y, (visits, samples)
        self.shifts = torch.zeros(0, 0, dtype=torch.int64)  # from the given label to each draw
        self.register_buffer("class_weight", torch.zeros(0))  # w, (K,)
        self.class_weight: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NegativeLearning:
        self.confidence, self.shifts, self.slot = map(fn, (self.confidence, self.shifts, self.slot))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def get_extra_state(self) -> Tensor:
        """The samples' confidence, a tensor, which every format of states can hold."""
        return self.confidence

    def set_extra_state(self, state: Tensor) -> None:
        if state.shape != self.confidence.shape:
            there, here = tuple(state.shape), tuple(self.confidence.shape)
            raise ValueError(f"the state is of other samples, {there}, and this is {here}: attach")
        self.confidence.copy_(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As of any module; the confidence may also be the buffer that it was before version 2."""
        if f"{prefix}confidence" in state_dict:
            state_dict[f"{prefix}_extra_state"] = state_dict.pop(f"{prefix}confidence")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def attach(self, labels: Tensor, num_classes: int) -> None:
        """Make room for the samples' state.

        Args:
            labels: the given label of every training sample, (N,), int64, N >= 1.
            num_classes: K >= 2.

        Raises:
            TypeError, ValueError: bad labels, or none, or a bad K.
        """
        num_classes = check_whole("num_classes", num_classes, 2)
        check_labels(labels, num_classes)
        if not len(labels):
            raise ValueError("labels must be of one sample at least")
        counts = labels.bincount(minlength=num_classes).float()
        self.class_weight = counts.max() / counts.clamp_min(1)
        visits = self.WINDOW if self.phases == 3 else 0
        self.confidence = torch.zeros(visits, len(labels), device=labels.device)
        self.shifts = torch.zeros(0, 0, dtype=torch.int64)  # those of other samples

    def start_epoch(self, epoch: int, epochs: int, generator: torch.Generator) -> None:
        """Choose the phase, and draw the complementary labels' distances from the given ones.

        Args:
            epoch: from 0, below ``epochs``.
            epochs: all that will be trained.
            generator: a CPU generator, or a seed.

        Raises:
            RuntimeError: :meth:`attach` was not called.
            TypeError, ValueError: an epoch that is none of these, or another generator.
        """
        epoch, epochs = check_whole("epoch", epoch, 0), check_whole("epochs", epochs, 1)
        if epoch >= epochs:
            raise ValueError(f"epoch must be below epochs={epochs}, from 0; got {epoch}")
        if not self.confidence.shape[1]:
            raise RuntimeError("attach(labels, num_classes) comes before the first epoch")
        self.phase = 1 if self.phases == 1 else 1 + 3 * epoch // epochs
        self.slot = torch.tensor(epoch % self.WINDOW, device=self.confidence.device)
        shape = (self.confidence.shape[1], self.complementary)
        shifts = torch.randint(
            1, len(self.class_weight), shape, generator=check_generator(generator)
        )
        self.shifts = shifts.to(self.confidence.device)

    def forward(  # type: ignore[override]
        self, logits: Tensor, labels: Tensor, index: Tensor
    ) -> Tensor:
        log_u = _log_softmax(logits, labels)  # (N, K)
        classes, samples = len(self.class_weight), len(self.shifts)
        if not samples:
            raise RuntimeError("attach() and start_epoch() come before the first batch")
        if log_u.ndim != 2 or log_u.shape[1] != classes:
            raise ValueError(f"logits must be (N, {classes}), got {tuple(logits.shape)}")
        check_labels(index, samples, len(labels), "index")
        weight = self.class_weight[labels].to(log_u.dtype)  # (N,)
        used = torch.ones_like(weight)
        if self.phase > 1:
            trust = self.confidence[:, index].mean(dim=0)  # (N,)
            used = (trust > (0.5 if self.phase == 3 else 1 / classes)).to(log_u.dtype)
        if self.phase == 3:
            loss, total = -weight * _at(log_u, labels), (weight * used).sum()
        else:
            others = (labels[:, None] + self.shifts[index]) % classes  # (N, draws)
            miss = (-torch.expm1(log_u.gather(1, others))).clamp_min(self.CLAMP)
            loss, total = -weight * miss.log().sum(dim=1), used.sum()
        if self.training and self.phases == 3:
            seen = _at(log_u, labels).detach().exp()
            self.confidence[self.slot, index] = seen.to(self.confidence.dtype)
        loss = reduce_rows(loss * used, "none" if self.reduction == "none" else "sum")
        return loss / total.clamp_min(1e-12) if self.reduction == "mean" else loss


def co_teaching_loss(first: Tensor, second: Tensor, keep_rate: float) -> Tensor:
    """Co-teaching: each network's mean loss on the samples that are easiest for the other.

    Args:
        first, second: the two networks' losses of the same samples, (N,), floating.
        keep_rate: share of the samples that is kept, in [0, 1]; at least one is.

    Returns:
        The sum of the two means, a scalar; each network's gradient comes from its own part.

    Raises:
        TypeError, ValueError: shapes that differ, or a bad keep_rate.

    Source: Han et al., NeurIPS 2018, algorithm 1.
    """
    check_range("keep_rate", keep_rate, 0.0, 1.0)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            "first and second must be (N,) with N >= 1, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    keep = max(1, int(keep_rate * len(first)))
    easy_for_first, easy_for_second = (loss.detach().argsort()[:keep] for loss in (first, second))
    return first[easy_for_second].mean() + second[easy_for_first].mean()


def _sum_of(first: PerSample, second: PerSample) -> Callable[..., Loss]:
    return partial(Loss, function=partial(weighted_sum, first, second))


LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": CrossEntropy,
    "fl": FocalLoss,
    "gce": GeneralizedCrossEntropy,
    "mae": partial(Loss, function=mean_absolute_error),
    "rce": partial(Loss, function=reverse_cross_entropy),
    "nce": partial(Loss, function=normalized_cross_entropy),
    "nfl": partial(Loss, function=normalized_focal_loss),
    "phuber_ce": partial(Loss, function=partially_huberised_cross_entropy),
    "nlnl": NegativeLearning,
    "sce": _sum_of(cross_entropy, reverse_cross_entropy),
    "apl": _sum_of(normalized_cross_entropy, partial(mean_absolute_error, scale=1.0)),
    "nce_rce": _sum_of(normalized_cross_entropy, reverse_cross_entropy),
    "nfl_rce": _sum_of(normalized_focal_loss, reverse_cross_entropy),
}


def build_loss(name: str, **params: Any) -> Loss:
    """The loss of that name: ``build_loss("gce", q=0.7)``.

    Raises:
        ValueError: an unknown name, or parameters that loss does not take.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; there are: {', '.join(LOSSES)}")
    try:
        return LOSSES[name](**params)
    except TypeError as error:
        raise ValueError(f"loss {name!r} does not take {params}: {error}") from None
