"""`train(spec)`: one visible loop, the whole data set on the device. No paths, no printing.

The protocol is that of the paper (SGD, cosine annealing stepped per epoch, clipped gradients, last
short batch kept); what is ours is how fast it goes: uint8 images resident on the device, batches by
indexing, channels_last, bf16 where the device gains from it, and no host synchronisation inside an
epoch (but for WebVision, which is streamed).
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lnlsr_lib.augment import Augmentation
from lnlsr_lib.data import (
    Dataset,
    balanced_subset,
    data_folder,
    load_dataset,
    load_human_labels,
)
from lnlsr_lib.losses import NegativeLearning, build_loss, co_teaching_loss
from lnlsr_lib.models import build_model
from lnlsr_lib.noise import corrupt_labels, imbalanced_subset, noisy_labels
from lnlsr_lib.regularization import SparseRegularization, sparse_rates
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.webvision import IMAGENET_MEAN, IMAGENET_STD, WebVisionStream

__all__ = [
    "DivergedError",
    "Precision",
    "RunResult",
    "given_labels",
    "resolve_device",
    "resolve_precision",
    "selection",
    "train",
]

Precision = Literal["float32", "bf16"]
HISTORY = (
    "learning_rate",
    "weight",  # lambda; 0 without SR
    "train_loss",  # mean over the epoch's samples, SR included; both networks' for Co-teaching
    "test_accuracy",  # percent
    "sparse_rate",  # share of test samples with max sigma_0.1 > 0.99
    "zero_rate",  # share of entries of sigma_0.1 below 1e-6
    "seconds",  # training and test, wall clock
)
EVAL_BATCH = 250  # with 1,000 the activations of ResNet-34 take gigabytes


class DivergedError(FloatingPointError):
    """The training loss or the outputs became NaN or infinite."""


@dataclass
class RunResult:
    """What came out of one run.

    Attributes:
        spec: what was trained.
        history: one list per name in ``HISTORY``, one number per epoch.
        device: such as "cpu (AMD EPYC)", with ", compiled" behind it if the network was.
        precision: "float32" or "bf16"; threads: of the CPU.
        origin: where the data came from.
        realised_noise_rate: the share of training labels that are wrong; None if unknown.
        features: test features of the last hidden layer, (N, D) float32, if they were asked for.
    """

    spec: RunSpec
    history: dict[str, list[float]]
    device: str
    precision: str
    threads: int
    origin: str
    realised_noise_rate: float | None
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
    """The base loss, with SR around it if the spec has one; lambda's path is stretched to fit.

    For Co-teaching it gives one loss per sample.
    """
    reduction = "mean" if spec.forget_rate is None else "none"
    loss = build_loss(spec.loss, **spec.loss_params, reduction=reduction)
    if spec.sr is None:
        return loss
    params = spec.sr.model_dump()
    params["every"] = Fraction(spec.sr.every * spec.epochs, spec.paper_epochs)
    return SparseRegularization(loss, **params)


def selection(spec: RunSpec, labels: Tensor) -> Tensor:
    """Which training images are used, (N,), int64, ascending: ``labels`` are all true labels."""
    index = torch.arange(len(labels))
    if spec.train_size is not None:
        index = balanced_subset(labels, spec.train_size, spec.generator("subset"))
    if spec.imbalance is not None:
        kept = imbalanced_subset(
            labels[index], spec.imbalance, spec.imbalance_ratio, spec.generator("imbalance")
        )
        index = index[kept]
    return index


def given_labels(spec: RunSpec, data: Dataset, index: Tensor) -> Tensor:
    """The labels of the images ``index`` that the network is shown, (N,), int64."""
    if spec.noise == "human":
        return load_human_labels(str(spec.human_labels), spec.dataset, data.train_labels)[index]
    labels, generator = data.train_labels[index], spec.generator("noise")
    if spec.noise == "transition":
        if len(spec.transition or ()) != data.num_classes:
            raise ValueError(
                f"transition must have a row for each of {data.num_classes} classes of {data.name}"
            )
        return corrupt_labels(labels, torch.tensor(spec.transition).double(), generator)
    return noisy_labels(
        labels,
        data.name,
        data.num_classes,
        spec.noise,
        spec.noise_rate,
        generator,
        spec.noise_variant,
    )


@dataclass(frozen=True)
class _Pixels:
    """From uint8 images to what the network takes: scaled to [0, 1], then normalised."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], device: torch.device) -> _Pixels:
        means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return cls((1 / (255 * stds)).to(device), (-means / stds).to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 to float32, channels_last."""
        pixels = torch.addcmul(self.shift, images.float(), self.scale)
        return pixels.contiguous(memory_format=torch.channels_last)


class _Resident:
    """The whole data set on the device, batches by indexing, augmented there."""

    def __init__(self, spec: RunSpec, data: Dataset, device: torch.device) -> None:
        if data.name != spec.dataset:
            raise ValueError(f"the spec asks for {spec.dataset}, but the data are {data.name}")
        index = selection(spec, data.train_labels)
        labels = given_labels(spec, data, index)
        whole = len(index) == len(data.train_labels)
        self.spec = spec
        self.wrong: float | None = (labels != data.train_labels[index]).double().mean().item()
        self.images = (data.train_images if whole else data.train_images[index]).to(device)
        self.labels = labels.to(device)
        self.test_images = data.test_images.to(device)
        self.test_labels = data.test_labels.to(device)
        self.num_classes, self.mean, self.std = data.num_classes, data.mean, data.std
        self.origin = data.origin
        self.augmentation = Augmentation(spec.padding, spec.flip, spec.degrees)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images (B, C, H, W) uint8, labels (B,) and indices (B,) of one epoch, shuffled.

        The last short batch is kept, unless it is of one image, which BatchNorm cannot train on.
        """
        device = self.images.device
        order = torch.randperm(len(self.labels), generator=self.spec.generator(f"order/{epoch}"))
        draws = None
        if self.augmentation != Augmentation():
            generator = self.spec.generator(f"augment/{epoch}")
            draws = self.augmentation.draw(self.images.shape, generator).to(device)
        for index in order.to(device).split(self.spec.batch_size):
            if len(index) > 1:
                images = self.images[index]
                if draws is not None:
                    images = self.augmentation(images, draws[index])
                yield images, self.labels[index], index

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in big batches, with their labels."""
        yield from zip(
            self.test_images.split(EVAL_BATCH), self.test_labels.split(EVAL_BATCH), strict=True
        )


class _Stream:
    """WebVision, read, decoded and augmented by worker processes while the network trains."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        folder = data_folder() / "webvision"
        self.spec, self.device = spec, device
        self.train, self.test = (WebVisionStream(folder, train=train) for train in (True, False))
        self.wrong: float | None = None  # nobody knows
        self.labels = self.train.labels.to(device)
        self.num_classes, self.mean, self.std = 50, IMAGENET_MEAN, IMAGENET_STD
        self.workers = min(16, os.cpu_count() or 1)

    @property
    def origin(self) -> str:
        """Where the images came from, and how many files the last passes had to skip."""
        skipped = len(self.train.report.skipped), len(self.test.report.skipped)
        return (
            f"WebVision 1.0, Google subset, first {self.num_classes} classes; files skipped: "
            f"{skipped[0]} train, {skipped[1]} test"
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = self.spec.generator(f"order/{epoch}")
        nowhere = torch.empty(0, dtype=torch.int64, device=self.device)  # nothing goes by index
        for images, labels in self.train.batches(self.spec.batch_size, generator, self.workers):
            if len(labels) > 1:
                yield images.to(self.device), labels.to(self.device), nowhere

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.test.batches(100, torch.Generator(), self.workers):
            yield images.to(self.device), labels.to(self.device)


@torch.no_grad()
def _outputs(
    call: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """``call`` over all batches, float32, and their labels."""
    pairs = [(call(images).float(), labels) for images, labels in batches]
    outputs, labels = zip(*pairs, strict=True)
    return torch.cat(outputs), torch.cat(labels)


def _test(
    model: nn.Module,
    pixels: _Pixels,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: torch.autocast,
) -> tuple[float, float, float]:
    """Test accuracy in percent, and both sparse rates; NaN where outputs are not finite."""
    model.eval()
    with autocast:
        logits, labels = _outputs(lambda images: model(pixels(images)), batches)
    if not bool(logits.isfinite().all()):
        return math.nan, math.nan, math.nan
    hits = (logits.argmax(dim=1) == labels).cpu()  # MPS has no float64
    sparse_rate, zero_rate = sparse_rates(logits)
    return 100 * hits.double().mean().item(), sparse_rate.item(), zero_rate.item()


def _keep_rate(spec: RunSpec, epoch: int) -> float:
    """Co-teaching's share of samples in ``epoch`` (from 0): 1 - forget_rate * min(t / T_k, 1).

    t = epoch + 1; T_k, of the paper's epochs, is stretched like lambda's path.
    """
    if spec.forget_rate is None:
        return 1.0
    done = (epoch + 1) * spec.paper_epochs / (spec.forget_epochs * spec.epochs)
    return 1 - spec.forget_rate * min(done, 1.0)


def train(
    spec: RunSpec,
    data: Dataset | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    features: bool = False,
    state: dict[str, Any] | None = None,
    on_batch: Callable[[], object] | None = None,
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
) -> RunResult:
    """Train as ``spec`` says, and test after every epoch.

    That is one network, or two for Co-teaching, of which the test figures are then the mean.

    Args:
        spec: the run.
        data: the data set, if it is at hand; loaded by name otherwise, but for "webvision", which
            is streamed from the data folder.
        device: "auto", or a PyTorch device.
        precision: "auto", "float32" or "bf16" (autocast; the loss is in float32 either way).
        compiled: train through ``torch.compile``, which fuses the passes over memory; for GPUs. It
            takes its time at the start, and needs a C++ compiler.
        features: also return the test features of the last hidden layer (of the first network).
        state: what ``on_epoch`` was last given; training goes on from there, to the same bits.
        on_batch: called after every step.
        on_epoch: called after every epoch with the state: {"epoch", "history", "models", ...}.
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
    if target.type == "cuda":  # float32 means it
        torch.backends.cudnn.allow_tf32 = False
    source: _Resident | _Stream
    if data is None and spec.dataset == "webvision":
        source = _Stream(spec, target)
    else:
        source = _Resident(spec, load_dataset(spec.dataset) if data is None else data, target)
    pixels = _Pixels.of(spec.mean or source.mean, spec.std or source.std, target)

    purposes = ["weights"] if spec.forget_rate is None else ["weights", "weights/second"]
    models = [
        build_model(spec.model, source.num_classes, spec.draw_seed(purpose)).to(  # type: ignore[call-overload]
            device=target, memory_format=torch.channels_last
        )
        for purpose in purposes
    ]
    # the last short batch is compiled on its own, and the tests are not compiled
    calls = [torch.compile(model, dynamic=False) if compiled else model for model in models]
    criterion = build_criterion(spec).to(target)
    sparse = criterion if isinstance(criterion, SparseRegularization) else None
    base = criterion if sparse is None else sparse.loss
    nlnl = base if isinstance(base, NegativeLearning) else None
    if nlnl is not None:
        nlnl.attach(source.labels, source.num_classes)
    optimizer = torch.optim.SGD(
        [parameter for model in models for parameter in model.parameters()],
        lr=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
        fused=target.type in ("cpu", "cuda"),
    )
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if spec.decay is None:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=spec.epochs)
    else:
        gamma = spec.decay ** (spec.paper_epochs / spec.epochs)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    autocast = torch.autocast(target.type, torch.bfloat16, enabled=resolved == "bf16")
    history: dict[str, list[float]] = {name: [] for name in HISTORY}

    made_with = (
        f"lnlsr {version('lnlsr')}, torch {torch.__version__}, {source.origin.split(';')[0]}, "
        f"{target.type}" + ", compiled" * compiled
    )
    first = 0
    if state is not None:
        if state["digest"] != spec.digest or state["precision"] != resolved:
            raise ValueError(f"the state is of another run, {state['id']} in {state['precision']}")
        if state["made_with"] != made_with:
            raise ValueError(
                f"the state was made with {state['made_with']}, and this is {made_with}; "
                "delete it to train from the start"
            )
        for model, weights in zip(models, state["models"], strict=True):
            model.load_state_dict(weights)
        criterion.load_state_dict(state["criterion"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history = {name: list(values) for name, values in state["history"].items()}
        first = state["epoch"]

    for epoch in range(first, spec.epochs):
        start = time.perf_counter()
        for model in models:
            model.train()
        if nlnl is not None:
            nlnl.start_epoch(epoch, spec.epochs, spec.generator(f"complementary/{epoch}"))
        keep_rate = _keep_rate(spec, epoch)
        total, seen = torch.zeros((), device=target), 0
        for images, labels, index in source.batches(epoch):
            with autocast:
                batch = pixels(images)
                logits = [call(batch).float() for call in calls]  # one or two of (B, K)
            try:
                if len(models) == 2:
                    ours, other = (criterion(z, labels) for z in logits)
                    loss = co_teaching_loss(ours, other, keep_rate)
                elif nlnl is not None:
                    loss = criterion(logits[0], labels, index)
                else:
                    loss = criterion(logits[0], labels)
            except ValueError as error:  # on the CPU the loss itself refuses NaN
                raise DivergedError(f"{spec.id}: in epoch {epoch + 1}, {error}") from error
            optimizer.zero_grad()
            loss.backward()
            if spec.clip_norm is not None:
                for model in models:
                    nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
            optimizer.step()
            total += loss.detach() * len(labels)
            seen += len(labels)
            if on_batch is not None:
                on_batch()
        train_loss = total.item() / seen
        if not math.isfinite(train_loss):
            raise DivergedError(f"{spec.id}: the loss of epoch {epoch + 1} is {train_loss}")

        tests = [_test(model, pixels, source.test_batches(), autocast) for model in models]
        if not all(math.isfinite(figure) for test in tests for figure in test):
            # the epoch's last step broke the weights
            raise DivergedError(f"{spec.id}: the test outputs of epoch {epoch + 1} are not finite")
        accuracy, sparse_rate, zero_rate = (
            sum(figures) / len(tests) for figures in zip(*tests, strict=True)
        )
        record = {
            "learning_rate": scheduler.get_last_lr()[0],
            "weight": sparse.weight if sparse is not None else 0.0,
            "train_loss": train_loss,
            "test_accuracy": accuracy,
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
                    "made_with": made_with,
                    "epoch": epoch + 1,
                    "history": history,
                    "models": [model.state_dict() for model in models],
                    "criterion": criterion.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                }
            )

    last_hidden = None
    if features:
        models[0].eval()
        with autocast:
            last_hidden, _ = _outputs(
                lambda images: models[0].features(pixels(images)), source.test_batches()
            )
        last_hidden = last_hidden.cpu()
    return RunResult(
        spec=spec,
        history=history,
        device=device_name(target) + ", compiled" * compiled,
        precision=resolved,
        threads=torch.get_num_threads(),
        origin=source.origin,
        realised_noise_rate=source.wrong,
        features=last_hidden,
    )
