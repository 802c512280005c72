"""Sparse regularisation (SR): sharpen the outputs, and add their l_p norm to any loss.

The objective is equation 9 of the paper: the mean over the batch of
L(sigma_tau(z), y) + lambda * ||sigma_tau(z)||_p^p, with lambda growing through training.
"""

from __future__ import annotations

import copy
import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lnlsr_lib.checks import (
    check_logits,
    check_parameter,
    check_place,
    check_reduction,
    check_rows,
    check_whole,
    kept_rows,
    look,
    reduce_rows,
    warn_of_softmax,
)

__all__ = ["SparseRegularization", "critical_weight", "lp_norm", "sharpen", "sparse_rates"]

# Probabilities are clamped to [1e-7, 1] inside the power; source: the authors' code.
CLAMP = 1e-7
# Rows shorter than this are divided by it instead of by their length, which bounds the gradient
# where a network starts from zero. Ours; the outputs of a network that trains are far longer.
SHORTEST = 0.01
# lambda over its critical value from which SR says so. The authors' start on MNIST, lambda = 4
# with CE, is 2.9 times the critical value, and trains; on digits CE loses classes from 2 times it
# with 80% noise, from 8 times with clean labels.
FAR_ABOVE = 5.0
ONCE = "it is called once an epoch"
LARGEST = 3e38  # lambda, a float32
STEP = 1e-5  # of the logits, over which lambda_crit takes the slope of the gradient, in float64
MOST_CLASSES = 1024  # for which lambda_crit is looked up unasked: it takes K x K logits
FIRST_CHECK = 32  # batches, before which a network may well predict one class
# Of PyTorch's own, the losses of logits (N, K) and one label each. The others, such as NLLLoss and
# those of several labels, would give a wrong number.
WRAPPED = (nn.CrossEntropyLoss, nn.MultiMarginLoss)


def sharpen(logits: Tensor, temperature: float, unit_logits: bool = False) -> Tensor:
    """Logits whose softmax is the sharpened output sigma_tau(z) (eq. 7): z / tau.

    With ``unit_logits`` each row is first scaled to unit l2 length, which bounds the largest
    probability (0.478 for tau = 0.5 and K = 10) and forbids the trivial way to sparsity, longer
    logits. A row shorter than 0.01 is scaled by 100, so that the gradient at 0 is bounded (ours).

    Args:
        logits: z, (N, K) or (N, K, ...), any floating dtype; finite if ``unit_logits``.
        temperature: tau, > 0; the paper takes (0, 1], 1 changes nothing.
        unit_logits: whether to scale each row to unit length first.

    Returns:
        (N, K), float32 or wider.

    Raises:
        TypeError, ValueError: bad logits or temperature.
    """
    temperature = check_parameter("temperature", temperature, 0.0, open_low=True)
    return _sharpen(check_logits(logits), temperature, unit_logits)


def _sharpen(logits: Tensor, temperature: float, unit_logits: bool) -> Tensor:
    if unit_logits:
        logits = F.normalize(logits, dim=1, eps=SHORTEST)
    return logits / temperature


def lp_norm(probabilities: Tensor, p: float) -> Tensor:
    """||u||_p^p = sum_i u_i^p per sample, with u clamped to [1e-7, 1].

    For u in the simplex it runs from 1 (one-hot) to K^(1-p) (uniform), so for p < 1 a smaller norm
    is a sparser output; for p = 1 it is constant.

    Args:
        probabilities: u, (N, K) or (N, K, ...), in [0, 1].
        p: exponent, in (0, 1].

    Returns:
        (N,), in [1, K^(1-p)] up to the clamp.

    Raises:
        TypeError, ValueError: bad probabilities' shape or dtype, or p.
    """
    p = check_parameter("p", p, 0.0, 1.0, open_low=True)
    return check_logits(probabilities, "probabilities").clamp(CLAMP, 1.0).pow(p).sum(dim=1)


def critical_weight(loss: nn.Module, num_classes: int, p: float) -> float:
    """lambda_crit: above it, SR around this loss makes uniform outputs fall to few classes. Ours.

    At uniform outputs the norm is at its maximum, so that a shift of all outputs towards one class
    grows by itself; the loss's curvature along logits that all samples share, averaged over the
    labels, holds it back. Expanding both around u = 1/K, with the mean square m of such logits,
    ||u||_p^p is K^(1-p) (1 - p (1-p) m / 2) and the mean loss a constant plus kappa m / 2, so that
    uniform outputs are stable for lambda below

    lambda_crit = kappa / (p (1 - p) K^(1-p)).

    The curvature is the slope of the gradient, so a factor that a loss keeps out of its gradient is
    seen as training sees it; at a kink the smaller counts. kappa is 1 for CE, K^-q (1 - q) for GCE,
    alpha for SCE, 1 for PHuber-CE if t > K, 1/K at the kink t = K and 0 if t < K, and 0 for every
    symmetric loss (eq. 2): MAE, RCE, NCE, NFL and APL. The temperature drops out. With
    ``unit_logits`` no output is uniform for long, and the number says little.

    Args:
        loss: any module of (logits (K, K), labels (K,)) that treats all classes alike.
        num_classes: K >= 2.
        p: the norm's exponent, in (0, 1].

    Returns:
        lambda_crit >= 0, to six digits; infinite for p = 1, whose norm is constant.

    Raises:
        TypeError, ValueError: bad arguments; a loss that has SR in it.
    """
    num_classes = check_whole("num_classes", num_classes, 2)
    p = check_parameter("p", p, 0.0, 1.0, open_low=True)
    if not isinstance(loss, nn.Module) or isinstance(loss, SparseRegularization):
        raise TypeError(f"loss must be the module that SR is put around, got {type(loss).__name__}")
    if p == 1:
        return math.inf
    # hooks of the caller's, such as activation checkpointing's, shall not see what is saved here
    own = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.inference_mode(False), torch.enable_grad(), own:
        exact: Any = copy.deepcopy(loss).to("cpu", torch.float64)
        if hasattr(exact, "ignore_index"):
            exact.ignore_index = -100  # every class counts
        labels = torch.arange(num_classes)
        # one class falls, or, the other way round, rises; of mean square 1
        towards = torch.full((num_classes,), 1 / math.sqrt(num_classes - 1), dtype=torch.float64)
        towards[0] = -math.sqrt(num_classes - 1)

        def slope(step: float) -> float:
            """That of the mean loss along ``towards``, ``step`` away from uniform outputs."""
            z = (step * towards).repeat(num_classes, 1).requires_grad_()
            value: Tensor = exact(z, labels)
            value = value / num_classes if getattr(loss, "reduction", "") == "sum" else value.mean()
            return float((torch.autograd.grad(value, z)[0] * towards).sum())

        # to either side, up to terms of the step's square
        start, sides = slope(0.0), (STEP, -STEP)
        kappa = min((4 * slope(h) - slope(2 * h) - 3 * start) / (2 * h) for h in sides)
    # rounding leaves a symmetric loss 1e-11 or so
    return kappa / (p * (1 - p) * num_classes ** (1 - p)) if kappa > 1e-8 else 0.0


@torch.no_grad()
def sparse_rates(logits: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Two readings of how sparse the sharpened outputs are (figure 3).

    The paper's formula is lost in its text, so both definitions are ours: (a) the share of samples
    whose largest probability exceeds 0.99, (b) the share of entries below 1e-6.

    Args:
        logits: z, (N, K), N >= 1, any floating dtype.
        temperature: tau of the sharpening, > 0; the paper's is lost, 0.1 is ours.

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
    done, a buffer. Accuracy is taken from the plain logits: the argmax is the same. As PyTorch's
    criteria it also takes logits (N, K, ...) with labels (N, ...).

    It warns, once each, of a lambda far above :func:`critical_weight` (up to 1,024 classes), of
    training batches that have collapsed to one predicted class (looked for at batch 32, 64, 128 and
    so on), and of ``step()`` after every batch; in eager mode alone, and of the batches on the CPU
    alone. For that its first batch calls a copy of the loss on small logits, and a loss without
    ``reduction`` on the batch; PyTorch's generators are then as they were.

    Args:
        loss: any module of (logits (N, K), labels (N,)): PyTorch's or this library's. Its
            ``reduction`` decides how the norm is reduced, and what it ignores by ``ignore_index``
            is left out of the norm; a module that has no ``reduction`` must be a mean over the
            batch or give one loss per sample. Class weights are the loss's alone.
        temperature: tau, > 0. Smaller is sharper, by the paper more robust; too small underfits.
            Authors' code: 0.1 on MNIST, with GCE 0.5, and 0.5 on CIFAR.
        p: exponent of the norm, in (0, 1]. Authors' code: 0.1, and 0.01 for 100 classes.
        weight: lambda at the start, >= 0; the paper asks for weight * p < 1, and
            :func:`critical_weight` says where classes are lost. Authors' code: 1.2 on CIFAR-10.
        growth: rho, the factor at each growth of lambda, > 0. Authors' code: 1.03 on CIFAR-10.
        every: r, the epochs between growths, > 0; a Fraction for a schedule that is squeezed.
        unit_logits: scale logits to unit length before sharpening. Authors' code: on CIFAR. No
            class may be masked then: -inf is refused, and -1e9 would leave nothing of the others.
        warmup: epochs at the start that train the wrapped loss alone, on plain logits, >= 0. Ours,
            not the paper's, and 0 by default: at high noise rates SR may lose a class for good in
            its first epoch.

    Raises:
        TypeError, ValueError: an argument out of its range; a loss that is no module, takes no
            logits with one label each, or has SR in it.

    Source: the paper, equations 7 and 9, section 3.1 (remark); the values, which its text has
    lost, and unit_logits, the authors' code.
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
        theirs = type(loss).__module__ == nn.CrossEntropyLoss.__module__
        if theirs and not isinstance(loss, WRAPPED):
            raise ValueError(f"loss must be of logits and one label each, got {loss}")
        if any(isinstance(module, SparseRegularization) for module in loss.modules()):
            raise ValueError("loss must not have SR in it already: its norm would count twice")
        if not isinstance(unit_logits, bool):
            raise TypeError(f"unit_logits must be a bool, got {unit_logits!r}")
        check_reduction(getattr(loss, "reduction", "mean"))
        whole = isinstance(every, (int, np.integer, Fraction)) and not isinstance(every, bool)
        # a Fraction of a float has 2^55ths, too many for compiled code's whole numbers
        if not whole or (exact := Fraction(every).limit_denominator(10**6)) <= 0:
            raise ValueError(f"every must be an int or Fraction > 0, in epochs, got {every!r}")
        self.loss = loss
        self.temperature = temperature
        self.p = check_parameter("p", p, 0.0, 1.0, open_low=True)
        self.initial_weight = check_parameter("weight (lambda)", weight, 0.0)
        self.growth = check_parameter("growth", growth, 0.0, open_low=True)
        self.every = exact
        self.unit_logits = unit_logits
        self.warmup = check_whole("warmup", warmup, 0)
        # batches seen, and since step(); steps after a single batch; checks in a row that found the
        # batch collapsed. Not in compiled code; a list, since a module is slow to set attributes of
        self._counts = [0, 0, 0, 0]
        # a loss inside the loss may ignore labels, too
        inner = (m.ignore_index for m in loss.modules() if hasattr(m, "ignore_index"))
        self._ignored: Any = next(inner, None)
        # as BatchNorm's num_batches_tracked: saved, moved and broadcast with the weights, read by
        # compiled code without compiling it anew
        self.register_buffer("epochs_done", torch.zeros((), dtype=torch.int64))
        self.epochs_done: Tensor
        self._widen()

    @property
    def temperature(self) -> float:
        """tau, which may be set between epochs."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        self._temperature = check_parameter("temperature", temperature, 0.0, open_low=True)

    @property
    def reduction(self) -> str:
        """The wrapped loss's, and set there."""
        return str(getattr(self.loss, "reduction", "mean"))

    @reduction.setter
    def reduction(self, reduction: str) -> None:
        if not hasattr(self.loss, "reduction"):
            raise ValueError(f"{type(self.loss).__name__} has no reduction that could be set")
        self.loss.reduction = check_reduction(reduction)  # type: ignore[assignment]

    @property
    def weight(self) -> float:
        """lambda_t now; 0 while warming up. Setting it sets the start so that this is lambda."""
        done = int(self.epochs_done)
        return 0.0 if done < self.warmup else float(self.initial_weight * self._factor(done))

    @weight.setter
    def weight(self, weight: float) -> None:
        weight = check_parameter("weight (lambda)", weight, 0.0)
        done = int(self.epochs_done)
        if not (factor := self._factor(done)):
            raise ValueError(
                f"lambda has shrunk to 0 after {done} calls of step(), and stays there"
            )
        self.initial_weight = weight / factor

    def _factor(self, done: int) -> float:
        """What lambda has grown by."""
        if self.growth == 1:
            return 1.0
        try:
            return float(self.growth ** (done * self.every.denominator // self.every.numerator))
        except OverflowError:
            raise OverflowError(f"lambda overflows after {done} calls of step(): {ONCE}") from None

    def _state(self, device: torch.device) -> tuple[float | Tensor, bool | Tensor]:
        """lambda, warm-up aside, and whether this is the warm-up; tensors where nobody may look."""
        if self.growth == 1 and not self.warmup:
            return self.initial_weight, False
        done = look(self._buffers["epochs_done"])  # type: ignore[arg-type]  # faster so
        if done is not None:
            weight = self.initial_weight * self._factor(int(done))
            if weight > LARGEST:
                raise OverflowError(f"lambda overflows after {done} calls of step(): {ONCE}")
            return weight, done < self.warmup
        epochs = self.epochs_done.to(device)
        growths = epochs * self.every.denominator // self.every.numerator
        wide = torch.float32 if device.type == "mps" else torch.float64
        return self.initial_weight * self.growth ** growths.to(wide), epochs < self.warmup

    def _apply(self, fn: Any, recurse: bool = True) -> SparseRegularization:
        """As of any module; class weights stay as wide as the logits that come to the loss."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._widen()
        return self

    def _widen(self) -> None:
        for module in self.loss.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.dtype in (torch.float16, torch.bfloat16):
                    module._buffers[name] = buffer.float()

    def step(self) -> None:
        """Say that one more epoch is done."""
        self.epochs_done += 1
        seen, since, before, collapsed = self._counts
        self._counts = [seen, 0, single := before + 1 if since == 1 else 0, collapsed]
        if single == 100 and (self.growth != 1 or self.warmup):
            message = f"step() came after each of the last 100 batches; {ONCE}"
            warnings.warn(f"{message}, and all is well if that is one batch", stacklevel=2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As of any module; before version 2 the epochs were the extra state, a Python int."""
        if f"{prefix}_extra_state" in state_dict:
            done = state_dict.pop(f"{prefix}_extra_state")
            state_dict[f"{prefix}epochs_done"] = torch.tensor(int(done))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, logits: Tensor, labels: Tensor, *more: Tensor) -> Tensor:
        """The objective; ``more`` goes to the wrapped loss as it is, such as sample indices."""
        logits = check_logits(logits)
        check_place(logits, labels)
        weight, warming = self._state(logits.device)
        if warming is True:
            plain: Tensor = self.loss(logits, labels, *more)
            if not torch.compiler.is_compiling():
                self._watch(logits, logits, labels, more, None)
            return plain
        z = _sharpen(logits, self.temperature, self.unit_logits)  # (N, K)
        # lp_norm, of what is no larger than 1
        norm = z.softmax(dim=1).clamp_min(CLAMP).pow(self.p).sum(dim=1)  # (N,)
        if self.warmup and isinstance(warming, Tensor):
            z = torch.where(warming, logits, z)
            norm = torch.where(warming, 0.0, norm)
        wrapped: Any = self._modules["loss"]  # faster so
        try:
            loss: Tensor = wrapped(z, labels, *more)
        except ValueError:  # it saw what we made of the logits; say what was wrong with these
            check_rows(norm.sum(), logits, self.unit_logits)
            raise
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss must give a torch.Tensor, got {type(loss).__name__}")
        # a loss that does not say is taken as it comes
        reduction = getattr(wrapped, "reduction", "none" if loss.ndim else "mean")
        kept = kept_rows(labels, getattr(wrapped, "ignore_index", self._ignored))
        norm = reduce_rows(norm, reduction, kept)
        if loss.shape != norm.shape and loss.numel() * norm.numel() != 1:
            wanted = f"shape {tuple(norm.shape)}" + ", or be one number" * bool(norm.ndim)
            raise ValueError(f"loss must have {wanted}, got shape {tuple(loss.shape)}")
        if not torch.compiler.is_compiling():
            check_rows(norm.sum() if norm.ndim else norm, logits, self.unit_logits)
            self._watch(z, logits, labels, more, kept)
        if isinstance(weight, Tensor):  # a float, too, is rounded to the tensor it multiplies
            return loss + weight.to(norm.dtype) * norm
        return torch.add(loss, norm, alpha=weight)  # faster than a product and a sum

    def _watch(
        self, z: Tensor, logits: Tensor, labels: Tensor, more: tuple[Tensor, ...], kept: Any
    ) -> None:
        """Count a batch, and say once what cannot work."""
        counts = self._counts
        counts[0] += 1
        counts[1] += 1
        if (seen := counts[0]) & (seen - 1):  # not the first batch, the 2nd, the 4th, 8th, ...
            return
        z = z.detach()
        if seen == 1:
            warn_of_softmax(logits, stacklevel=6)
            if not more:
                with torch.random.fork_rng([z.device] if z.is_cuda else []):  # a loss may draw
                    self._first_look(z, labels)
        if seen < FIRST_CHECK or not self.training:
            return
        predicted = z.argmax(dim=1).flatten()
        if look(predicted.sum()) is None or not self.weight:
            return
        soft = labels.is_floating_point() and labels.ndim > 1
        rows = (labels.argmax(dim=1) if soft else labels).flatten()
        if kept is not None:
            rows, predicted = rows[kept.flatten()], predicted[kept.flatten()]
        if len(rows) < 16:
            return
        collapsed = look((predicted == predicted[0]).all()) and look((rows != rows[0]).any())
        counts[3] = counts[3] + 1 if collapsed else 0
        if counts[3] == 2:
            counts[0] = -(2**62)  # once
            message = "SR has collapsed: all outputs of a training batch predict the same class"
            warnings.warn(f"{message}; critical_weight says what weight is safe", stacklevel=5)

    def _first_look(self, z: Tensor, labels: Tensor) -> None:
        """Refuse a loss that sums without saying so, and warn of a lambda far above lambda_crit."""
        if not hasattr(self.loss, "reduction"):
            self._check_mean(z, labels)
        if self.unit_logits or z.shape[1] > MOST_CLASSES:
            return
        try:
            critical = critical_weight(self.loss, z.shape[1], self.p)
        except Exception:  # any loss may be wrapped, and not each has a second derivative
            return
        if self.initial_weight > FAR_ABOVE * critical:
            message = (
                f"weight (lambda) = {self.initial_weight:g} is far above critical_weight = "
                f"{critical:.3g} of this loss with {z.shape[1]} classes and p = {self.p:g}"
            )
            warnings.warn(f"{message}: outputs are likely to fall to few classes", stacklevel=6)

    @torch.no_grad()
    def _check_mean(self, z: Tensor, labels: Tensor) -> None:
        """Refuse a loss that does not say how it reduces, and whose value grows with the batch."""
        try:
            loss = copy.deepcopy(self.loss)
            once, again = loss(z, labels), loss(z, labels)
            twice = loss(torch.cat([z, z]), torch.cat([labels, labels]))
            if once.ndim or not look(once.isfinite()) or not torch.equal(once, again):
                return  # one value per sample; nothing to compare; it draws at random
            grows = not torch.allclose(twice, once, rtol=1e-3)
        except Exception:  # it cannot be copied, or called twice
            return
        if grows:
            raise ValueError("loss is no mean over the batch: it must say so in loss.reduction")

    def extra_repr(self) -> str:
        names = ("temperature", "p", "growth", "every", "unit_logits", "warmup")
        others = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"weight={self.initial_weight}, {others}"
