"""What a step asks for, whatever the method: a spec and its labels to one `Objective`.

A new method is a class here. The loop calls ``start_epoch``, the objective with the logits of each
network, and ``end_epoch``; what changes from epoch to epoch is in its criterion's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from lnlsr_lib.losses import NegativeLearning, build_loss, co_teaching_loss
from lnlsr_lib.regularization import SparseRegularization
from lnlsr_lib.spec import RunSpec

__all__ = ["CoTeaching", "Negative", "Objective", "build_criterion", "build_objective"]


def build_criterion(spec: RunSpec, reduction: str = "mean") -> nn.Module:
    """The base loss, with SR around it if the spec has one; lambda's path is stretched to fit."""
    loss = build_loss(spec.loss, **spec.loss_params, reduction=reduction)
    if spec.sr is None:
        return loss
    params = spec.sr.model_dump()
    params["every"] = Fraction(spec.sr.every * spec.epochs, spec.paper_epochs)
    return SparseRegularization(loss, **params)


class Objective:
    """One network, and a criterion of its logits and the labels.

    Args:
        spec: the run.
        labels: the given labels of all training samples, (N,), int64, on the device.
        num_classes: K.
    """

    networks = 1
    reduction = "mean"

    def __init__(self, spec: RunSpec, labels: Tensor, num_classes: int) -> None:
        self.spec = spec
        self.criterion = build_criterion(spec, self.reduction).to(labels.device)
        criterion: Any = self.criterion
        self.sparse = criterion if isinstance(criterion, SparseRegularization) else None
        self.base: Any = criterion if self.sparse is None else criterion.loss

    @property
    def weight(self) -> float:
        """Lambda in this epoch; 0 without SR. Reads from the device."""
        return float(self.sparse.weight) if self.sparse is not None else 0.0

    def start_epoch(self, epoch: int) -> None:
        """Get ready for ``epoch``, from 0."""

    def __call__(self, logits: Sequence[Tensor], labels: Tensor, index: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            logits: of each network, (B, K), float32.
            labels, index: of the batch, (B,).
        """
        loss: Tensor = self.criterion(logits[0], labels)
        return loss

    def end_epoch(self) -> None:
        """Take lambda one epoch further."""
        if self.sparse is not None:
            self.sparse.step()


class Negative(Objective):
    """NLNL, whose loss knows every sample by its index."""

    base: NegativeLearning

    def __init__(self, spec: RunSpec, labels: Tensor, num_classes: int) -> None:
        super().__init__(spec, labels, num_classes)
        self.base.attach(labels, num_classes)

    def start_epoch(self, epoch: int) -> None:
        generator = self.spec.generator(f"complementary/{epoch}")
        self.base.start_epoch(epoch, self.spec.epochs, generator)

    def __call__(self, logits: Sequence[Tensor], labels: Tensor, index: Tensor) -> Tensor:
        loss: Tensor = self.criterion(logits[0], labels, index)
        return loss


class CoTeaching(Objective):
    """Two networks, each trained on the samples that are easiest for the other."""

    networks = 2
    reduction = "none"
    keep_rate = 1.0

    def start_epoch(self, epoch: int) -> None:
        """Keep 1 - forget_rate * min(t / T_k, 1) of the samples, t = epoch + 1.

        T_k, of the paper's epochs, is stretched like lambda's path.
        """
        spec = self.spec
        assert spec.forget_rate is not None
        done = (epoch + 1) * spec.paper_epochs / (spec.forget_epochs * spec.epochs)
        self.keep_rate = 1 - spec.forget_rate * min(done, 1.0)

    def __call__(self, logits: Sequence[Tensor], labels: Tensor, index: Tensor) -> Tensor:
        first, second = (self.criterion(z, labels) for z in logits)
        return co_teaching_loss(first, second, self.keep_rate)


def build_objective(spec: RunSpec, labels: Tensor, num_classes: int) -> Objective:
    """The objective of a run; arguments as for :class:`Objective`."""
    if spec.forget_rate is not None:
        return CoTeaching(spec, labels, num_classes)
    kind = Negative if spec.loss == "nlnl" else Objective
    return kind(spec, labels, num_classes)
