"""`train(spec)`: one visible loop, the whole data set on the device. No paths, no printing.

The protocol is that of the paper (SGD, cosine annealing stepped per epoch, clipped gradients, last
short batch kept); what is ours is how fast it goes: uint8 images resident on the device, batches by
indexing, channels_last, bf16 where the device gains from it, and no host synchronisation inside an
epoch.
"""

from __future__ import annotations

import ctypes
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lnlsr_lib.data import Dataset, load_dataset, subset_of
from lnlsr_lib.losses import build_loss
from lnlsr_lib.models import build_model
from lnlsr_lib.noise import corrupt_labels, symmetric_transition
from lnlsr_lib.regularization import SparseRegularization, sparse_rates
from lnlsr_lib.spec import RunSpec

__all__ = [
    "DivergedError",
    "Precision",
    "RunResult",
    "resolve_device",
    "resolve_precision",
    "train",
]

Precision = Literal["float32", "bf16"]
HISTORY = (
    "learning_rate",
    "weight",  # lambda; 0 without SR
    "train_loss",  # mean over the epoch's samples, SR included
    "test_accuracy",  # percent
    "sparse_rate",  # share of test samples with max sigma_0.1 > 0.99
    "zero_rate",  # share of entries of sigma_0.1 below 1e-6
    "seconds",  # training and test, wall clock
)
EVAL_BATCH = 1000


class DivergedError(FloatingPointError):
    """The training loss or the outputs became NaN or infinite."""


@dataclass
class RunResult:
    """What came out of one run.

    Attributes:
        spec: what was trained.
        history: one list per name in ``HISTORY``, one number per epoch.
        device: such as "cpu (AMD EPYC)"; precision: "float32" or "bf16"; threads: of the CPU.
        origin: where the data came from.
        realised_noise_rate: the share of training labels that ended up wrong.
        features: test features of the last hidden layer, (N, D) float32, if they were asked for.
    """

    spec: RunSpec
    history: dict[str, list[float]]
    device: str
    precision: str
    threads: int
    origin: str
    realised_noise_rate: float
    features: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last epoch, percent."""
        return self.history["test_accuracy"][-1]

    @property
    def best_accuracy(self) -> float:
        """The highest test accuracy of any epoch, percent."""
        return max(self.history["test_accuracy"])

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(self.history["seconds"])


def resolve_device(device: str = "auto") -> torch.device:
    """CUDA where there is one, then MPS, then the CPU; or the one that is named.

    Raises:
        ValueError: a device that is unknown or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except Exception as error:
        raise ValueError(f"device {device!r} cannot be used here: {error}") from None
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """Bf16 for "auto" where the device has matrix units for it, float32 elsewhere.

    Those are CUDA devices from Ampere on, and CPUs with AMX or AVX512-BF16. On other CPUs bf16 is
    emulated, far more slowly than float32.

    Raises:
        ValueError: neither "auto" nor "float32" nor "bf16".
    """
    if precision == "float32":
        return "float32"
    if precision == "bf16":
        return "bf16"
    if precision != "auto":
        raise ValueError(f"precision must be auto, float32 or bf16, got {precision!r}")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return "bf16" if can.get("amx_bf16") or can.get("avx512_bf16") else "float32"
    return "float32"


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed buffers, rather than hand them back and fault them in every step.

    Does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


def device_name(device: torch.device) -> str:
    """The device in words, for the record."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    name = platform.processor() or platform.machine()
    if device.type == "cpu" and sys.platform.startswith("linux"):
        with open("/proc/cpuinfo") as lines:
            models = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
        name = models[0].strip() if models else name
    return f"{device.type} ({name})"


def build_criterion(spec: RunSpec) -> nn.Module:
    """The base loss, with SR around it if the spec has one; lambda's path is stretched to fit."""
    loss = build_loss(spec.loss, **spec.loss_params)
    if spec.sr is None:
        return loss
    params = spec.sr.model_dump()
    params["every"] = Fraction(spec.sr.every * spec.epochs, spec.paper_epochs)
    return SparseRegularization(loss, **params)


def noisy_labels(spec: RunSpec, data: Dataset) -> Tensor:
    """The training labels that the network is shown, (N,), int64."""
    if spec.noise == "clean":
        return data.train_labels
    transition = symmetric_transition(data.num_classes, spec.noise_rate)
    return corrupt_labels(data.train_labels, transition, spec.generator("noise"))


@dataclass(frozen=True)
class _Pixels:
    """From uint8 images to what the network takes: scaled to [0, 1], then normalised."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, data: Dataset, device: torch.device) -> _Pixels:
        mean = torch.tensor(data.mean).view(1, -1, 1, 1)
        std = torch.tensor(data.std).view(1, -1, 1, 1)
        return cls((1 / (255 * std)).to(device), (-mean / std).to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 to float32, channels_last."""
        pixels = torch.addcmul(self.shift, images.float(), self.scale)
        return pixels.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _outputs(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``call`` over all images in big batches, in evaluation mode, float32."""
    model.eval()
    return torch.cat([call(batch).float() for batch in images.split(EVAL_BATCH)])


def train(
    spec: RunSpec,
    data: Dataset | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    features: bool = False,
    state: dict[str, Any] | None = None,
    on_batch: Callable[[], object] | None = None,
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
) -> RunResult:
    """Train one network as ``spec`` says, and test it after every epoch.

    Args:
        spec: the run.
        data: the data set, if it is at hand; loaded by name otherwise.
        device: "auto", or a PyTorch device.
        precision: "auto", "float32" or "bf16" (autocast; the loss is in float32 either way).
        features: also return the test features of the last hidden layer.
        state: what ``on_epoch`` was last given; training goes on from there, to the same bits.
        on_batch: called after every step.
        on_epoch: called after every epoch with the state: {"epoch", "history", "model", ...}.
            Tensors in it are the live ones: save it or copy it.

    Raises:
        DivergedError: the loss or the outputs of an epoch were NaN or infinite.
        ValueError: device, precision or state do not fit.
        lnlsr_lib.data.DataError: the data set cannot be had.
    """
    target = resolve_device(device)
    resolved = resolve_precision(precision, target)
    if target.type == "cpu":
        keep_freed_memory()
    data = load_dataset(spec.dataset) if data is None else data
    if data.name != spec.dataset:
        raise ValueError(f"the spec asks for {spec.dataset}, but the data are {data.name}")
    if spec.train_size is not None:
        data = subset_of(data, spec.train_size, spec.generator("subset"))

    given_labels = noisy_labels(spec, data)
    wrong = (given_labels != data.train_labels).double().mean().item()
    images, labels = data.train_images.to(target), given_labels.to(target)
    test_images, test_labels = data.test_images.to(target), data.test_labels.to(target)
    pixels = _Pixels.of(data, target)

    model = build_model(spec.model, data.num_classes, spec.draw_seed("weights"))
    model = model.to(device=target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = build_criterion(spec).to(target)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        fused=target.type in ("cpu", "cuda"),
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=spec.epochs)
    autocast = torch.autocast(target.type, torch.bfloat16, enabled=resolved == "bf16")
    history: dict[str, list[float]] = {name: [] for name in HISTORY}
    sparse = criterion if isinstance(criterion, SparseRegularization) else None

    first = 0
    if state is not None:
        if state["digest"] != spec.digest or state["precision"] != resolved:
            raise ValueError(f"the state is of another run, {state['id']} in {state['precision']}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history = {name: list(values) for name, values in state["history"].items()}
        first = state["epoch"]
        if sparse is not None:
            sparse.epochs_done = first

    for epoch in range(first, spec.epochs):
        start = time.perf_counter()
        model.train()
        order = torch.randperm(len(labels), generator=spec.generator(f"order/{epoch}"))
        total = torch.zeros((), device=target)
        for index in order.to(target).split(spec.batch_size):
            with autocast:
                logits = model(pixels(images[index]))  # (B, K)
            try:
                loss = criterion(logits.float(), labels[index])
            except ValueError as error:  # on the CPU the loss itself refuses NaN
                raise DivergedError(f"{spec.id}: in epoch {epoch + 1}, {error}") from error
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
            optimizer.step()
            total += loss.detach() * len(index)
            if on_batch is not None:
                on_batch()
        train_loss = total.item() / len(labels)
        if not math.isfinite(train_loss):
            raise DivergedError(f"{spec.id}: the loss of epoch {epoch + 1} is {train_loss}")

        with autocast:
            test_logits = _outputs(model, lambda batch: model(pixels(batch)), test_images)
        if not bool(test_logits.isfinite().all()):  # the epoch's last step broke the weights
            raise DivergedError(f"{spec.id}: the test outputs of epoch {epoch + 1} are not finite")
        hits = (test_logits.argmax(dim=1) == test_labels).cpu()  # MPS has no float64
        sparse_rate, zero_rate = (rate.item() for rate in sparse_rates(test_logits))
        record = {
            "learning_rate": scheduler.get_last_lr()[0],
            "weight": sparse.weight if sparse is not None else 0.0,
            "train_loss": train_loss,
            "test_accuracy": 100 * hits.double().mean().item(),
            "sparse_rate": sparse_rate,
            "zero_rate": zero_rate,
            "seconds": time.perf_counter() - start,
        }
        for name, value in record.items():
            history[name].append(float(value))
        scheduler.step()
        if sparse is not None:
            sparse.step()
        if on_epoch is not None:
            on_epoch(
                {
                    "id": spec.id,
                    "digest": spec.digest,
                    "precision": resolved,
                    "epoch": epoch + 1,
                    "history": history,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                }
            )

    with autocast:
        last_hidden = (
            _outputs(model, lambda batch: model.features(pixels(batch)), test_images).cpu()
            if features
            else None
        )
    return RunResult(
        spec=spec,
        history=history,
        device=device_name(target),
        precision=resolved,
        threads=torch.get_num_threads(),
        origin=data.origin,
        realised_noise_rate=wrong,
        features=last_hidden,
    )
