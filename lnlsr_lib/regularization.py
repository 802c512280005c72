"""Sparse regularisation (SR): sharpen the outputs, and add their l_p norm to any loss.

The objective is equation 9 of the paper: the mean over the batch of
L(sigma_tau(z), y) + lambda * ||sigma_tau(z)||_p^p, with lambda growing through training.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lnlsr_lib.checks import check_logits, check_range, look

__all__ = ["SparseRegularization", "lp_norm", "sharpen", "sparse_rates"]

# Probabilities are clamped to [1e-7, 1] inside the power; source: the authors' code.
CLAMP = 1e-7


def sharpen(logits: Tensor, temperature: float, unit_logits: bool = False) -> Tensor:
    """Logits whose softmax is the sharpened output sigma_tau(z) (eq. 7): z / tau.

    With ``unit_logits`` each row is first scaled to unit l2 length, which bounds the largest
    probability (0.478 for tau = 0.5 and K = 10) and forbids the trivial way to sparsity, longer
    logits.

    Args:
        logits: z, (N, K), any floating dtype.
        temperature: tau, > 0; the paper takes (0, 1], 1 changes nothing.
        unit_logits: whether to scale each row to unit length first.

    Returns:
        (N, K), float32 or wider.

    Raises:
        TypeError, ValueError: bad logits or temperature.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    logits = check_logits(logits)
    if unit_logits:
        logits = F.normalize(logits, dim=1)
    return logits / temperature


def lp_norm(probabilities: Tensor, p: float) -> Tensor:
    """||u||_p^p = sum_i u_i^p per sample, with u clamped to [1e-7, 1].

    For u in the simplex it runs from 1 (one-hot) to K^(1-p) (uniform), so for p < 1 a smaller norm
    is a sparser output; for p = 1 it is constant.

    Args:
        probabilities: u, (N, K), in [0, 1].
        p: exponent, in (0, 1].

    Returns:
        (N,), in [1, K^(1-p)] up to the clamp.

    Raises:
        TypeError, ValueError: bad probabilities' shape or dtype, or p.
    """
    check_range("p", p, 0.0, 1.0, open_low=True)
    return check_logits(probabilities).clamp(CLAMP, 1.0).pow(p).sum(dim=1)


@torch.no_grad()
def sparse_rates(logits: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Two readings of how sparse the sharpened outputs are (figure 3).

    The paper's formula is lost in its text, so both definitions are ours: (a) the share of samples
    whose largest probability exceeds 0.99, (b) the share of entries below 1e-6.

    Args:
        logits: z, (N, K), N >= 1, any floating dtype.
        temperature: tau of the sharpening, > 0; figure 3 has 0.1.

    Returns:
        The shares (a) and (b), scalars in [0, 1] on the logits' device.

    Raises:
        TypeError, ValueError: bad logits or temperature.
    """
    u = sharpen(logits, temperature).softmax(dim=1)
    return (u.amax(dim=1) > 0.99).float().mean(), (u < 1e-6).float().mean()


class SparseRegularization(nn.Module):
    """SR around any loss: ``criterion(logits, labels)``, and ``criterion.step()`` once an epoch.

    Computes L(sigma_tau(z), y) + lambda_t ||sigma_tau(z)||_p^p (eq. 9), where the wrapped loss gets
    the sharpened logits z / tau, and lambda_t = weight * growth^floor(t / every) with t the epochs
    done. Accuracy is taken from the plain logits: the argmax is the same.

    Args:
        loss: any module of (logits (N, K), labels (N,)): PyTorch's or this library's. Its
            ``reduction`` decides how the norm is reduced.
        temperature: tau, > 0. Smaller is sharper and more robust, and too small underfits.
            Paper: 0.1 on MNIST, 0.5 on CIFAR.
        p: exponent of the norm, in (0, 1]. Paper: 0.1, and 0.01 for 100 classes.
        weight: lambda at the start, >= 0; weight * p < 1 keeps CE fitting. Paper: 1.2 on CIFAR-10.
        growth: rho, the factor at each growth of lambda, > 0. Paper: 1.03 on CIFAR-10.
        every: r, the epochs between growths, > 0; a Fraction for a schedule that is squeezed.
        unit_logits: scale logits to unit length before sharpening. Paper's code: on CIFAR.
        warmup: epochs at the start that train the wrapped loss alone, on plain logits, >= 0. Ours,
            not the paper's, and 0 by default: at high noise rates SR may lose a class for good in
            its first epoch.

    Raises:
        TypeError, ValueError: an argument out of its range; a loss that is no module.

    Source: the paper, equations 7 and 9, section 3.1 (remark).
    """

    def __init__(
        self,
        loss: nn.Module,
        temperature: float = 0.5,
        p: float = 0.1,
        weight: float = 1.2,
        growth: float = 1.0,
        every: int | Fraction = 1,
        unit_logits: bool = False,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise TypeError(f"loss must be a torch.nn.Module, got {type(loss).__name__}")
        check_range("temperature", temperature, 0.0, open_low=True)
        check_range("p", p, 0.0, 1.0, open_low=True)
        check_range("weight (lambda)", weight, 0.0)
        check_range("growth", growth, 0.0, open_low=True)
        if isinstance(every, bool) or not isinstance(every, (int, Fraction)) or every <= 0:
            raise ValueError(f"every must be an int or Fraction > 0, in epochs, got {every!r}")
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            raise ValueError(f"warmup must be an int >= 0, in epochs, got {warmup!r}")
        self.loss = loss
        self.temperature = temperature
        self.p = p
        self.initial_weight = weight
        self.growth = growth
        self.every = Fraction(every)
        self.unit_logits = unit_logits
        self.warmup = warmup
        # as BatchNorm's num_batches_tracked: saved, moved and broadcast with the weights, read by
        # compiled code without compiling it anew
        self.register_buffer("epochs_done", torch.zeros((), dtype=torch.int64))
        self.epochs_done: Tensor

    @property
    def weight(self) -> float:
        """lambda_t now; 0 while warming up."""
        done = int(self.epochs_done)
        return 0.0 if done < self.warmup else self._grown(done)

    def _grown(self, done: int) -> float:
        return float(self.initial_weight * self.growth ** (done // self.every))

    def _state(self, device: torch.device) -> tuple[float | Tensor, bool | Tensor]:
        """lambda, warm-up aside, and whether this is the warm-up; tensors where nobody may look."""
        done = look(self.epochs_done)
        if done is not None:
            return self._grown(int(done)), done < self.warmup
        epochs = self.epochs_done.to(device)
        growths = epochs * self.every.denominator // self.every.numerator
        wide = torch.float32 if device.type == "mps" else torch.float64
        weight = self.initial_weight * self.growth ** growths.to(wide)
        return self.initial_weight if self.growth == 1 else weight, epochs < self.warmup

    def step(self) -> None:
        """Say that one more epoch is done."""
        self.epochs_done += 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As of any module; before version 2 the epochs were the extra state, a Python int."""
        if f"{prefix}_extra_state" in state_dict:
            done = state_dict.pop(f"{prefix}_extra_state")
            state_dict[f"{prefix}epochs_done"] = torch.tensor(int(done))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, logits: Tensor, labels: Tensor, *more: Tensor) -> Tensor:
        """The objective; ``more`` goes to the wrapped loss as it is, such as sample indices."""
        logits = check_logits(logits)
        weight, warming = self._state(logits.device)
        if warming is True:
            plain: Tensor = self.loss(logits, labels, *more)
            return plain
        z = sharpen(logits, self.temperature, self.unit_logits)  # (N, K)
        norm = lp_norm(z.softmax(dim=1), self.p)  # (N,)
        if self.warmup and isinstance(warming, Tensor):
            z = torch.where(warming, logits, z)
            norm = torch.where(warming, 0.0, norm)
        reduction = getattr(self.loss, "reduction", "mean")
        if reduction == "mean":
            norm = norm.mean()
        elif reduction == "sum":
            norm = norm.sum()
        if isinstance(weight, Tensor):
            weight = weight.to(norm.dtype)  # a float, too, is rounded to the tensor it multiplies
        loss: Tensor = self.loss(z, labels, *more)
        return loss + weight * norm

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, p={self.p}, weight={self.initial_weight}, "
            f"growth={self.growth}, every={self.every}, unit_logits={self.unit_logits}, "
            f"warmup={self.warmup}"
        )
