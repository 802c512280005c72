"""Which of my labels are wrong? Those that a robustly trained network contradicts, worst first.

    issues = find_label_issues(margins(logits, labels))

with the logits of the training images themselves, and PyTorch alone. This is ours, beyond the
paper; figures that say how far it carries are on the page of the same name.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lnlsr_lib.checks import check_labels, check_logits

__all__ = ["find_label_issues", "margins"]


@torch.no_grad()
def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """How clearly a network agrees with each given label: z_y - max_{k != y} z_k.

    Below 0 the prediction contradicts the label. Summed over the epochs, a sample's margins tell
    more than those of the last epoch, in which a network may have memorised what is wrong.

    Args:
        logits: z, (N, K), any floating dtype.
        labels: the given ones, (N,), int64, in [0, K - 1].

    Returns:
        (N,), float32 or wider, without a gradient.

    Raises:
        TypeError, ValueError: bad logits or labels.

    Source: the mean over epochs is the area under the margin of Pleiss et al., NeurIPS 2020.
    """
    logits = check_logits(logits)
    check_labels(labels, logits.shape[1], logits.shape[0])
    given = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return given[:, 0] - others.amax(dim=1)


def find_label_issues(margin: Tensor) -> Tensor:
    """The samples whose given label is likely wrong: margin below 0, the most negative first.

    Args:
        margin: of every sample, (N,), floating: :func:`margins` of the last epoch, or its sum or
            mean over the epochs.

    Returns:
        Indices of the samples, (M,), int64, M <= N; equal margins in the order of the samples.

    Raises:
        TypeError: no tensor, or not of a floating dtype.
        ValueError: not a vector, or NaN in it.
    """
    if not isinstance(margin, Tensor) or not margin.is_floating_point():
        got = margin.dtype if isinstance(margin, Tensor) else type(margin).__name__
        raise TypeError(f"margin must be a tensor of a floating dtype, got {got}")
    if margin.ndim != 1 or bool(margin.isnan().any()):
        raise ValueError(f"margin must be (N,) and not NaN, got shape {tuple(margin.shape)}")
    order = margin.argsort(stable=True)
    return order[margin[order] < 0]
