"""Checks of arguments that every floor above shares: what was wrong, and what is allowed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_labels", "check_logits", "check_range", "look"]


def look(tensor: Tensor) -> int | float | bool | None:
    """The one number in ``tensor``; None where looking costs a stall, or is not possible.

    That is on an accelerator, under ``torch.compile``, ``torch.export`` and tracing, and on the
    batched tensors of ``torch.func`` and fake tensors, which have no values.
    """
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or torch._C._is_tracing():
        return None
    try:
        return tensor.item()
    except RuntimeError:  # of torch.func, and of fake tensors
        return None


def check_range(
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
) -> None:
    """Raise unless ``value`` is a finite number in [low, high], or (low, high] if ``open_low``.

    Raises:
        TypeError: ``value`` is no real number (a bool is none either).
        ValueError: ``value`` is NaN, infinite or outside the interval.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    left = "(" if open_low else "["
    lower = "-inf" if low is None else f"{low:g}"
    interval = f"{left}{lower}, inf)" if high is None else f"{left}{lower}, {high:g}]"
    finite = value == value and abs(value) != float("inf")
    too_low = low is not None and (value <= low if open_low else value < low)
    too_high = high is not None and value > high
    if not finite or too_low or too_high:
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def check_logits(logits: Tensor) -> Tensor:
    """Return ``logits`` in at least float32, or raise.

    The shape and the dtype are checked on every device. NaN is looked for on the CPU alone: on an
    accelerator the question would stall the queue at every step, and the trainer asks it of the
    loss once an epoch instead.

    Args:
        logits: real scores, (N, K) with K >= 2, any floating dtype.

    Returns:
        The same values; half precision comes back as float32, float64 stays.

    Raises:
        TypeError: no tensor, or not of a floating dtype.
        ValueError: wrong rank, fewer than two classes, or NaN.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be of a floating dtype, got {logits.dtype}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (N, K) with K >= 2, got shape {tuple(logits.shape)}")
    if look(logits.isnan().any()):
        rows = int(logits.isnan().any(dim=1).sum())
        raise ValueError(f"logits must not be NaN; {rows} of {len(logits)} rows hold NaN")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_labels(labels: Tensor, num_classes: int, num_samples: int | None = None) -> None:
    """Raise unless ``labels`` is an int64 vector of class indices.

    Values are looked at on the CPU alone, for the reason given at :func:`check_logits`.

    Args:
        labels: class indices, (N,), int64.
        num_classes: K; every label must lie in [0, K - 1].
        num_samples: the N that goes with it, if one is known.

    Raises:
        TypeError: no tensor, or not int64.
        ValueError: wrong rank, wrong length, or a label outside [0, K - 1].
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, got {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"labels must be (N,), got shape {tuple(labels.shape)}")
    if num_samples is not None and len(labels) != num_samples:
        raise ValueError(f"labels must be as many as the samples, {num_samples}, got {len(labels)}")
    if labels.numel():
        low, high = look(labels.min()), look(labels.max())
        if low is not None and high is not None and (low < 0 or high >= num_classes):
            raise ValueError(f"labels must be in [0, {num_classes - 1}], got {low} to {high}")
