"""What is measured while a network trains and when it is tested.

Nothing here asks the device for a number before its epoch is over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnlsr_lib.feed import Batch
from lnlsr_lib.label_issues import margins
from lnlsr_lib.regularization import sparse_rates

__all__ = ["Tally", "accuracy_figures", "confusion_matrix"]


class Tally:
    """Counts over one epoch's batches, from the outputs that the training steps make anyway.

    These are outputs in training mode, each from before its sample's step; with two networks, the
    mean of both.

    Args:
        samples: how many training samples there are, if every one's margin is to be summed over
            the epochs; 0 for none.
        device: where the batches are.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self.margins = torch.zeros(samples, device=device)
        self.loss, self.clipped = torch.zeros((), device=device), torch.zeros((), device=device)
        # wrongly labelled; of these predicted as given, as they truly are; all predicted as given
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget the counts, but not the margins."""
        for sums in (self.loss, self.clipped, self.counts):
            sums.zero_()
        self.samples = self.steps = self.looks = 0

    @torch.no_grad()
    def add(
        self, batch: Batch, logits: Sequence[Tensor], loss: Tensor, clipped: Sequence[Tensor]
    ) -> None:
        """Take in one step.

        Args:
            batch: what it was given.
            logits: of each network, (B, K).
            loss: mean over the batch, a scalar.
            clipped: whether the gradient was clipped, of each network; none for no bound.
        """
        size = len(batch.labels)
        self.samples += size
        self.steps += 1
        self.loss += loss * size
        for one in clipped:
            self.clipped += one
        for z in logits:
            if batch.truth is not None:
                self.looks += size
                predicted = z.argmax(dim=1)
                wrong, as_given = batch.labels != batch.truth, predicted == batch.labels
                right = wrong & (predicted == batch.truth)
                counts = torch.stack([wrong, wrong & as_given, right, as_given])
                self.counts += counts.sum(dim=1)
            if len(self.margins):
                self.margins[batch.indices] += margins(z, batch.labels) / len(logits)

    def figures(self, networks: int = 1) -> dict[str, float | None]:
        """The epoch's train_loss, clipped, memorised, corrected and fitted.

        The last three are None where there is no such sample, or nobody knows which are.
        """
        wrong, memorised, corrected, as_given = self.counts.tolist()

        def share(part: float, whole: float) -> float | None:
            return part / whole if whole else None

        return {
            "train_loss": self.loss.item() / self.samples,
            "clipped": self.clipped.item() / (self.steps * networks),
            "memorised": share(memorised, wrong),
            "corrected": share(corrected, wrong),
            "fitted": share(as_given - memorised, self.looks - wrong),
        }


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """How many samples of each true class (rows) are predicted as each class, (K, K), int64."""
    classes = logits.shape[1]
    pairs = (classes * labels + logits.argmax(dim=1)).bincount(minlength=classes**2)
    return pairs.view(classes, classes)


def accuracy_figures(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracies in percent, the number of classes predicted, and both sparse rates.

    Args:
        logits: finite, (N, K); labels: true classes, (N,).
    """
    matrix = confusion_matrix(logits, labels).cpu().double()  # MPS has no float64
    support = matrix.sum(dim=1)
    recall = matrix.diagonal()[support > 0] / support[support > 0]
    sparse_rate, zero_rate = sparse_rates(logits)
    return {
        "test_accuracy": 100 * (matrix.trace() / matrix.sum()).item(),
        "lowest_recall": 100 * recall.min().item(),
        "classes_predicted": float((matrix.sum(dim=0) > 0).sum()),
        "sparse_rate": sparse_rate.item(),
        "zero_rate": zero_rate.item(),
    }
