"""Label noise: row-stochastic transition matrices, and labels corrupted by them.

Convention throughout: ``transition[i, j]`` is the probability that true class i gets label j, so
rows sum to 1. Everything here lives on the CPU and draws from a generator that is handed in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lnlsr_lib.checks import check_labels, check_range

__all__ = ["corrupt_labels", "realised_transition", "symmetric_transition"]


def symmetric_transition(num_classes: int, noise_rate: float) -> Tensor:
    """Symmetric noise: 1 - eta on the diagonal, eta / (K - 1) off it.

    Args:
        num_classes: K >= 2.
        noise_rate: eta in [0, 1], the probability that a label is wrong.

    Returns:
        (K, K), float64, rows sum to 1.

    Raises:
        TypeError, ValueError: K < 2 or eta outside [0, 1].

    Source: the paper, section 2.1.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes must be an int >= 2, got {num_classes!r}")
    check_range("noise_rate", noise_rate, 0.0, 1.0)
    off = noise_rate / (num_classes - 1)
    transition = torch.full((num_classes, num_classes), off, dtype=torch.float64)
    return transition.fill_diagonal_(1.0 - noise_rate)


def _check_transition(transition: Tensor) -> None:
    if not isinstance(transition, Tensor) or transition.ndim != 2:
        raise ValueError("transition must be a (K, K) tensor")
    rows, columns = transition.shape
    if rows != columns or rows < 2 or not transition.is_floating_point():
        raise ValueError(
            f"transition must be (K, K), K >= 2, floating; "
            f"got {tuple(transition.shape)} of {transition.dtype}"
        )
    sums = transition.double().sum(dim=1)
    # ``not (... >= 0).all()`` rather than ``(... < 0).any()``: it refuses NaN as well.
    if not bool((transition >= 0).all()) or not bool(((sums - 1).abs() < 1e-6).all()):
        raise ValueError("transition must be row-stochastic: entries >= 0, every row sums to 1")


def corrupt_labels(labels: Tensor, transition: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each sample's noisy label from its true class's row, independently.

    An entry of ``transition`` that is exactly 0 is never drawn.

    Args:
        labels: true labels, (N,), int64, on the CPU.
        transition: (K, K), floating, row-stochastic; ``[i, j]`` = P(label j | true class i).
        generator: a CPU generator; the draws come from it alone.

    Returns:
        Noisy labels, (N,), int64; ``labels`` is left as it was.

    Raises:
        TypeError, ValueError: bad labels, or a transition that is not row-stochastic.
    """
    _check_transition(transition)
    check_labels(labels, len(transition))
    cumulative = transition.double().cumsum(dim=1)
    # Dividing by the last entry makes it, and any trailing ones of probability 0, exactly 1.
    cumulative = cumulative / cumulative[:, -1:]
    draws = torch.rand(len(labels), 1, dtype=torch.float64, generator=generator)
    return torch.searchsorted(cumulative[labels], draws, right=True)[:, 0]


def realised_transition(labels: Tensor, noisy_labels: Tensor, num_classes: int) -> Tensor:
    """The share of each true class that carries each label: what the noise came out as.

    Args:
        labels: true labels, (N,), int64.
        noisy_labels: given labels, (N,), int64.
        num_classes: their number, K.

    Returns:
        (K, K), float64; a class with no sample has a row of zeros.

    Raises:
        TypeError, ValueError: bad labels.
    """
    check_labels(labels, num_classes)
    check_labels(noisy_labels, num_classes, len(labels))
    cells = (labels * num_classes + noisy_labels).bincount(minlength=num_classes**2)
    counts = cells.view(num_classes, num_classes).double()
    return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
