"""Checks of arguments that every floor above shares: what was wrong, and what is allowed.

Values are looked at on the CPU alone. On an accelerator the question would stall the queue at every
step, and the trainer asks it of the loss once an epoch instead; compiled and transformed code has
no values to look at.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

# fmt: off
__all__ = [
    "check_generator", "check_labels", "check_logits", "check_parameter", "check_place",
    "check_range", "check_reduction", "check_rows", "check_whole", "kept_rows", "look",
    "reduce_rows", "warn_of_softmax",
]
# fmt: on

REDUCTIONS = ("mean", "sum", "none")
SMALLEST, LARGEST = 1e-30, 1e30  # of parameters; float32 goes from 1.2e-38 to 3.4e38


def look(tensor: Tensor) -> int | float | bool | None:
    """The one number in ``tensor``; None where looking costs a stall, or is not possible.

    That is on an accelerator, under ``torch.compile``, ``torch.export`` and tracing, and on the
    batched tensors of ``torch.func`` and fake tensors, which have no values.
    """
    if torch.compiler.is_compiling() or not tensor.is_cpu or torch._C._is_tracing():
        return None
    try:
        value = tensor.item()
    except RuntimeError:  # of torch.func, and of fake tensors
        return None
    return value if isinstance(value, (bool, int, float)) else None  # a symbol is no number


def check_range(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
) -> float:
    """Return ``value`` as Python's number if it is finite and in [low, high], or raise.

    The interval is (low, high] if ``open_low``. NumPy's numbers are numbers.

    Raises:
        TypeError: ``value`` is no real number (a bool is none either).
        ValueError: ``value`` is NaN, infinite or outside the interval.
    """
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    above = low < value if open_low else low <= value  # neither is true of NaN
    if not above or value > high or abs(value) == math.inf:
        left, right = "(" if open_low else "[", ")" if high == math.inf else "]"
        raise ValueError(f"{name} must be in {left}{low:g}, {high:g}{right}, got {value!r}")
    return value


def check_parameter(name: str, value: Any, *interval: float, open_low: bool = False) -> float:
    """As :func:`check_range`; what is not 0 is of a size in [1e-30, 1e30], too.

    Losses are computed in float32, which holds little more.
    """
    number = check_range(name, value, *interval, open_low=open_low)
    if number and not SMALLEST <= abs(number) <= LARGEST:
        raise ValueError(f"{name} must be 0, or of a size in [1e-30, 1e30], got {number!r}")
    return number


def check_whole(name: str, value: Any, low: int) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``low``, or raise ValueError.

    NumPy's integers are whole numbers; a bool and a float are none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be an int >= {low}, got {value!r}")
    return int(value)


def check_generator(generator: Any) -> torch.Generator:
    """Return a CPU generator: the one given, or a new one of that seed.

    Raises:
        TypeError: None, NumPy's generator, one of another device, or anything else.
    """
    if isinstance(generator, (int, np.integer)) and not isinstance(generator, bool):
        return torch.Generator().manual_seed(int(generator))
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise TypeError(f"generator must be a torch.Generator of the CPU or a seed: {generator!r}")
    return generator


def check_logits(logits: Tensor, name: str = "logits") -> Tensor:
    """Return ``logits`` in at least float32, or raise; their values are left to ``check_rows``.

    Args:
        logits: real scores, (N, K) or (N, K, ...) with K >= 2, any floating dtype.
        name: what messages call them.

    Returns:
        The same values; half precision comes back as float32, float64 stays.

    Raises:
        TypeError: no tensor, or not of a floating dtype.
        ValueError: wrong rank, or fewer than two classes.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {logits.dtype}")
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{name} must be (N, K, ...) or (N, K) with K >= 2, got shape {tuple(logits.shape)}"
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_rows(total: Tensor, logits: Tensor, unit_logits: bool = False) -> None:
    """Raise if ``total``, a sum over rows of what a softmax gave, is NaN because of the logits.

    A single number says whether the logits have to be searched, so that no pass over them is spent
    while all is well. A class may be masked with -inf, but not with ``unit_logits``: such a row has
    no unit length.

    Raises:
        ValueError: NaN, or rows that have no softmax.
    """
    value = look(total)
    if value is None or value == value:
        return
    nan = logits.isnan().any(dim=1)
    if nan.any():
        raise ValueError(f"logits must not be NaN; {int(nan.sum())} of {nan.numel()} rows hold NaN")
    infinite = logits.isinf().any(dim=1) if unit_logits else logits.amax(dim=1).isinf()
    if infinite.any():
        wanted = "be finite with unit_logits" if unit_logits else "have a finite largest entry"
        raise ValueError(
            f"rows of logits must {wanted}; {int(infinite.sum())} of {infinite.numel()} do not"
        )


def check_labels(
    labels: Tensor,
    num_classes: int,
    num_samples: int | tuple[int, ...] | None = None,
    name: str = "labels",
) -> None:
    """Raise unless ``labels`` is an int64 vector of class indices.

    Args:
        labels: class indices, (N,), int64.
        num_classes: K; every label must lie in [0, K - 1].
        num_samples: the N that goes with it, if one is known, or the whole shape, such as
            (N, H, W).
        name: what a message calls them.

    Raises:
        TypeError: no tensor, or not int64.
        ValueError: wrong shape, or a label outside [0, K - 1].
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{name} must be int64 class indices, got {labels.dtype}")
    more = num_samples[1:] if isinstance(num_samples, tuple) else ()
    if labels.ndim != 1 + len(more) or labels.shape[1:] != more:
        wanted = ", ".join(map(str, ("N", *more))) + "," * (not more)
        raise ValueError(f"{name} must be ({wanted}), got shape {tuple(labels.shape)}")
    samples = num_samples[0] if isinstance(num_samples, tuple) else num_samples
    given = labels.shape[0]  # len() would make a dynamic batch a fixed one
    if samples is not None and given != samples:
        raise ValueError(f"{name} must be as many as the samples, {samples}, got {given}")
    if labels.numel() and not torch.compiler.is_compiling():
        low, high = map(look, labels.aminmax())
        if low is not None and high is not None and (low < 0 or high >= num_classes):
            raise ValueError(f"{name} must be in [0, {num_classes - 1}], got {low} to {high}")


def check_place(logits: Tensor, labels: Any) -> None:
    """Raise ValueError if the labels are on another device than the logits."""
    device = labels.device if isinstance(labels, Tensor) else logits.device
    if device != logits.device:
        raise ValueError(f"labels must be on the logits' {logits.device}, and are on {device}")


def warn_of_softmax(logits: Tensor, stacklevel: int = 5) -> None:
    """Warn if ``logits`` are what a softmax gives: in every row none negative, and the sum 1."""
    if torch.compiler.is_compiling() or len(logits) < 2:
        return
    sums = logits.detach().sum(dim=1)
    if look(((logits.detach() >= 0).all()) & ((sums - 1).abs() < 1e-4).all()):
        warnings.warn(
            "logits look like the output of a softmax: none is negative, and every row sums to 1. "
            "Give the network's outputs as they are, without a softmax",
            stacklevel=stacklevel,
        )


def kept_rows(labels: Tensor, ignore_index: int | None) -> Tensor | None:
    """Which labels are not ``ignore_index``, bool; None if all are known to be kept."""
    if ignore_index is None or not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    if labels.numel() and not torch.compiler.is_compiling():  # one pass, where all are kept
        below = ignore_index < 0
        nearest = look(labels.min() if below else labels.max())
        if nearest is not None and (nearest > ignore_index if below else nearest < ignore_index):
            return None
    return labels.long() != ignore_index  # a byte of 156 is -100


def check_reduction(reduction: Any) -> str:
    """Return ``reduction`` if it is "mean", "sum" or "none", or raise ValueError."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return str(reduction)


def reduce_rows(
    rows: Tensor, reduction: str, kept: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """One number per sample to what ``reduction`` says, as ``nn.CrossEntropyLoss`` does it.

    Args:
        rows: (N, ...), floating.
        reduction: "mean", "sum" or "none".
        kept: (N, ...), bool; the others count as 0, and not in the mean.
        weight: of each row, (N, ...); the mean is over its sum.

    Raises:
        ValueError: another reduction, or the mean of no rows.
    """
    check_reduction(reduction)
    if reduction == "mean" and not rows.numel():
        raise ValueError("a batch must have one sample at least: the mean over none is no number")
    if weight is not None:
        rows = rows * weight
    if kept is not None:
        rows = torch.where(kept, rows, 0.0)
        weight = kept if weight is None else torch.where(kept, weight, 0.0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.mean() if weight is None else rows.sum() / weight.sum()
