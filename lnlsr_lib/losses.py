"""Base losses: logits (N, K) and labels (N,) to one loss per sample, then the reduction.

Each loss is a pure function that returns one value per sample, and a thin module around it with
``reduction`` as in PyTorch. Probabilities are u = softmax(z); u_y is that of the given label.
Half-precision logits are lifted to float32 first, and everything is computed from log u, so values
and gradients stay finite for u_y -> 0 and u_y -> 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lnlsr_lib.checks import check_labels, check_logits, check_range

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "FocalLoss",
    "GeneralizedCrossEntropy",
    "Loss",
    "build_loss",
    "cross_entropy",
    "focal_loss",
    "generalized_cross_entropy",
]

REDUCTIONS = ("mean", "sum", "none")


def _log_target(logits: Tensor, labels: Tensor) -> Tensor:
    """log u_y, (N,), in at least float32."""
    logits = check_logits(logits)
    check_labels(labels, logits.shape[1], logits.shape[0])
    return logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]


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


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 0.5) -> Tensor:
    """Focal loss (FL) per sample, L = -(1 - u_y)^gamma log u_y.

    gamma = 0 is CE. The paper uses gamma = 0.5.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        gamma: focusing exponent, >= 0.

    Returns:
        (N,), in nats, float32 or wider.

    Raises:
        TypeError, ValueError: bad logits, labels or gamma.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017.
    """
    check_range("gamma", gamma, 0.0)
    log_u = _log_target(logits, labels)
    if gamma == 0:
        return -log_u
    # 1 - u_y without cancellation. The floor keeps the power's slope finite at u_y = 1, where the
    # loss and its gradient are 0.
    miss = (-torch.expm1(log_u)).clamp_min(torch.finfo(log_u.dtype).tiny)
    return -(miss**gamma) * log_u


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """Generalised cross entropy (GCE) per sample, L = (1 - u_y^q) / q.

    q -> 0 is CE; q = 1 is 1 - u_y, half of MAE. The paper uses q = 0.7.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,), int64, in [0, K - 1].
        q: Box-Cox exponent, in (0, 1].

    Returns:
        (N,), in [0, 1/q], float32 or wider.

    Raises:
        TypeError, ValueError: bad logits, labels or q.

    Source: Zhang and Sabuncu, NeurIPS 2018.
    """
    check_range("q", q, 0.0, 1.0, open_low=True)
    return -torch.expm1(q * _log_target(logits, labels)) / q


class Loss(nn.Module):
    """A per-sample loss with a reduction: ``forward(logits, labels)``.

    Args:
        reduction: "mean" (default), "sum", or "none" for the per-sample values (N,).

    Raises:
        ValueError: an unknown reduction.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        self.reduction = reduction

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        """One loss per sample, (N,)."""
        raise AssertionError("a subclass defines per_sample")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = self.per_sample(logits, labels)  # (N,)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()


class CrossEntropy(Loss):
    """CE, see :func:`cross_entropy`."""

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels)


class FocalLoss(Loss):
    """FL, see :func:`focal_loss`."""

    def __init__(self, gamma: float = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_range("gamma", gamma, 0.0)
        self.gamma = gamma

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        return focal_loss(logits, labels, self.gamma)


class GeneralizedCrossEntropy(Loss):
    """GCE, see :func:`generalized_cross_entropy`."""

    def __init__(self, q: float = 0.7, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_range("q", q, 0.0, 1.0, open_low=True)
        self.q = q

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        return generalized_cross_entropy(logits, labels, self.q)


LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": CrossEntropy,
    "fl": FocalLoss,
    "gce": GeneralizedCrossEntropy,
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
