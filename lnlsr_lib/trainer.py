"""`train(spec)`: one visible loop, the whole data set on the device. No paths, no printing.

The protocol is that of the paper (SGD, cosine annealing stepped per epoch, clipped gradients, last
short batch kept); what is ours is how fast it goes: uint8 images resident on the device, batches by
indexing, channels_last, bf16 where the device gains from it, and no host synchronisation inside an
epoch (but for WebVision, which is streamed).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lnlsr_lib.data import Dataset
from lnlsr_lib.device import device_name, keep_freed_memory, resolve_device, resolve_precision
from lnlsr_lib.feed import Batch, Pixels, Resident, Stream, open_source
from lnlsr_lib.label_issues import margins
from lnlsr_lib.measure import Tally, accuracy_figures, confusion_matrix
from lnlsr_lib.models import build_model
from lnlsr_lib.objective import build_objective
from lnlsr_lib.spec import Finite, NonNegative, RunSpec

__all__ = ["HISTORY", "DivergedError", "RunResult", "StateError", "train"]

Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]


class History(BaseModel, extra="forbid", strict=True):
    """What is recorded of every epoch: one list a series, one number an epoch."""

    learning_rate: list[NonNegative]
    weight: list[NonNegative]  # lambda; 0 without SR
    train_loss: list[Finite]  # mean over the samples, SR included; both networks' for Co-teaching
    test_accuracy: list[Percent]
    lowest_recall: list[Percent]  # of any class of the test set
    classes_predicted: list[NonNegative]  # how many classes any test sample is predicted as
    sparse_rate: list[Share]  # of test samples with max sigma_0.1 > 0.99
    zero_rate: list[Share]  # of entries of sigma_0.1 below 1e-6
    # Of the training samples, by their outputs in the epoch's own steps; None where there are no
    # such samples, or nobody knows which they are:
    memorised: list[Share | None]  # of the wrongly labelled: predicted as the label given
    corrected: list[Share | None]  # of the wrongly labelled: predicted as they truly are
    fitted: list[Share | None]  # of the rightly labelled: predicted as the label given
    clipped: list[Share]  # of steps whose gradient was clipped
    seconds: list[NonNegative]  # training and test, wall clock


HISTORY = tuple(History.model_fields)


class DivergedError(FloatingPointError):
    """The training loss or the outputs became NaN or infinite."""


class StateError(ValueError):
    """A state that training cannot go on from: of another run, not whole, or senseless."""


def check_record(history: Any, confusion: Any, epochs: int) -> None:
    """Raise unless this is what a run records in so many epochs, with numbers that can be.

    Args:
        history: to be a :class:`History`, as a dict.
        confusion: to be K rows of K counts.
        epochs: their number, >= 1.

    Raises:
        ValueError: it is not.
    """
    for name, values in History.model_validate(history):
        if len(values) != epochs:
            raise ValueError(f"{name} is not a list of {epochs} numbers, one an epoch")
    rows = confusion if isinstance(confusion, list) else []
    square = all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    if len(rows) < 2 or not square or not all(type(n) is int and n >= 0 for r in rows for n in r):
        raise ValueError("confusion is not K rows of K counts")


@dataclass
class RunResult:
    """What came out of one run.

    Attributes:
        spec: what was trained.
        history: one list per name in ``HISTORY``, one number (or None) per epoch.
        device: such as "cpu (AMD EPYC)", with ", compiled" behind it if the network was.
        precision: "float32" or "bf16"; threads: of the CPU.
        origin: where the data came from.
        realised_noise_rate: the share of training labels that are wrong; None if unknown.
        confusion: counts on the test set after the last epoch, K rows (true class) of K
            (predicted); of the first network.
        details: by name, if they were asked for: ``features`` (N, D) of the last hidden layer and
            ``test_labels`` of the test set; ``test_prediction``, ``train_prediction``, and the
            margins of the logits, ``test_margin`` (of the true label) and ``train_margin`` (of the
            given one; ``train_mean_margin`` over all steps), all (N,).
    """

    spec: RunSpec
    history: dict[str, list[float | None]]
    device: str
    precision: str
    threads: int
    origin: str
    realised_noise_rate: float | None
    confusion: list[list[int]] = field(default_factory=list)
    details: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(float(seconds or 0) for seconds in self.history["seconds"])


Batches = Iterable[tuple[Tensor, Tensor]]  # images and labels
Outputs = Callable[[Any, Batches], tuple[Tensor, Tensor]]  # of a network, and the labels
STATE = {
    *("id", "digest", "precision", "made_with", "epoch", "history", "confusion", "margins"),
    *("models", "objective", "optimizer", "scheduler"),
}


def _last_look(
    model: Any, outputs: Outputs, source: Resident | Stream, tally: Tally
) -> dict[str, Tensor]:
    """``details`` of :class:`RunResult`: the trained network on every sample that has a place."""
    model.eval()
    hidden, labels = outputs(model.features, source.test_batches())
    found = {"features": hidden, "test_labels": labels}
    parts = {"test": source.test_batches()}
    if isinstance(source, Resident):
        parts["train"] = source.train_batches()
    for part, batches in parts.items():
        logits, labels = outputs(model, batches)
        found[f"{part}_prediction"] = logits.argmax(dim=1)
        found[f"{part}_margin"] = margins(logits, labels)
    if len(tally.margins):
        found["train_mean_margin"] = tally.margins / source.spec.epochs
    return {name: values.cpu() for name, values in found.items()}


def check_state(state: Any, spec: RunSpec, precision: str) -> None:
    """Raise unless ``state`` is whole, of this run, and from the end of one of its epochs.

    Raises:
        StateError: it is not.
    """
    if not isinstance(state, dict) or set(state) != STATE:
        raise StateError(f"a state is a dict of {', '.join(sorted(STATE))}")
    if state["digest"] != spec.digest or state["precision"] != precision:
        raise StateError(f"the state is of another run, {state['id']} in {state['precision']}")
    epoch, scheduler = state["epoch"], state["scheduler"]
    if type(epoch) is not int or not 1 <= epoch <= spec.epochs:
        raise StateError(f"the state's epoch is {epoch!r}, and should be in [1, {spec.epochs}]")
    if not isinstance(scheduler, dict) or scheduler.get("last_epoch") != epoch:
        raise StateError(f"the state's scheduler is not that of epoch {epoch}")
    try:
        check_record(state["history"], state["confusion"], epoch)
    except (TypeError, ValueError) as error:
        raise StateError(f"the state's record is not that of {epoch} epochs: {error}") from error


def train(
    spec: RunSpec,
    data: Dataset | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    details: bool = False,
    state: dict[str, Any] | None = None,
    on_batch: Callable[[], object] | None = None,
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
) -> RunResult:
    """Train as ``spec`` says, and test after every epoch.

    That is one network, or two for Co-teaching, whose figures are then the mean of both.

    Args:
        spec: the run.
        data: the data set, if it is at hand; loaded by name otherwise, but for "webvision", which
            is streamed from the data folder.
        device: "auto", or a PyTorch device.
        precision: "auto", "float32" or "bf16" (autocast; the loss is in float32 either way).
        compiled: train through ``torch.compile``, which fuses the passes over memory; for GPUs. It
            takes its time at the start, and needs a C++ compiler.
        details: also return the features, and every sample's prediction and margin (of the first
            network).
        state: what ``on_epoch`` was last given; training goes on from there, to the same bits.
        on_batch: called after every step.
        on_epoch: called after every epoch with the state: {"epoch", "history", "models", ...}.
            Tensors in it are the live ones: save it or copy it.

    Raises:
        DivergedError: the loss or the outputs of an epoch were NaN or infinite.
        ValueError: device or precision do not fit.
        StateError: the state does not.
        lnlsr_lib.data.DataError: the data set cannot be had.
    """
    target = resolve_device(device)
    resolved = resolve_precision(precision, target)
    if target.type == "cpu":
        keep_freed_memory()
    if target.type == "cuda":  # float32 means it
        torch.backends.cudnn.allow_tf32 = False
    source = open_source(spec, data, target)
    pixels = Pixels(spec.mean or source.mean, spec.std or source.std, target)
    objective = build_objective(spec, source.labels, source.num_classes)
    models = [
        build_model(spec.model, source.num_classes, spec.draw_seed(purpose), spec.side).to(  # type: ignore[call-overload]
            device=target, memory_format=torch.channels_last
        )
        for purpose in ("weights", "weights/second")[: objective.networks]
    ]
    # the last short batch is compiled on its own, and the tests are not compiled
    calls = [torch.compile(model, dynamic=False) if compiled else model for model in models]
    optimizer = torch.optim.SGD(
        [parameter for model in models for parameter in model.parameters()],
        lr=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
        fused=target.type in ("cpu", "cuda"),
    )
    scheduler: lr_scheduler.LRScheduler
    if spec.decay is None:
        lowest = spec.final_learning_rate
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, spec.epochs, lowest)
    else:
        gamma = spec.decay ** (spec.paper_epochs / spec.epochs)
        scheduler = lr_scheduler.ExponentialLR(optimizer, gamma)
    autocast = torch.autocast(target.type, torch.bfloat16, enabled=resolved == "bf16")
    by_index = details and isinstance(source, Resident)
    tally = Tally(len(source.labels) if by_index else 0, target)
    history: dict[str, list[float | None]] = {name: [] for name in HISTORY}
    confusion: list[list[int]] = []

    made_with = (
        f"lnlsr {version('lnlsr')}, torch {torch.__version__}, {source.origin.split(';')[0]}, "
        f"{target.type}" + ", compiled" * compiled
    )
    first = 0
    if state is not None:
        check_state(state, spec, resolved)
        if state["made_with"] != made_with:
            raise StateError(
                f"the state was made with {state['made_with']}, and this is {made_with}; "
                "delete it to train from the start"
            )
        try:
            for model, weights in zip(models, state["models"], strict=True):
                model.load_state_dict(weights)
            objective.criterion.load_state_dict(state["objective"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            if tally.margins.shape == state["margins"].shape:
                tally.margins.copy_(state["margins"])
        except Exception as error:  # given any state, these raise anything
            raise StateError(f"the state does not fit: {error!r}") from error
        history = {name: list(values) for name, values in state["history"].items()}
        confusion, first = state["confusion"], state["epoch"]

    def step(batch: Batch) -> None:
        """A batch in, the weights one step on; nothing is read back from the device."""
        with autocast:
            inputs = pixels(batch.images)
            logits = [call(inputs).float() for call in calls]  # (B, K) of each network
        loss = objective(logits, batch.labels, batch.indices)
        optimizer.zero_grad()
        loss.backward()
        clipped = []
        if spec.clip_norm is not None:
            for model in models:
                norm = nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
                clipped.append(norm > spec.clip_norm)
        optimizer.step()
        tally.add(batch, logits, loss, clipped)

    @torch.no_grad()
    def outputs(network: Any, batches: Batches) -> tuple[Tensor, Tensor]:
        """What ``network`` makes of all batches, float32, and their labels."""
        with autocast:
            pairs = [(network(pixels(images)).float(), labels) for images, labels in batches]
        logits, labels = zip(*pairs, strict=True)
        return torch.cat(logits), torch.cat(labels)

    for epoch in range(first, spec.epochs):
        start = time.perf_counter()
        for model in models:
            model.train()
        objective.start_epoch(epoch)
        tally.start_epoch()
        for batch in source.batches(epoch):
            try:
                step(batch)
            except ValueError as error:  # on the CPU the loss itself refuses NaN
                raise DivergedError(f"{spec.id}: in epoch {epoch + 1}, {error}") from error
            if on_batch is not None:
                on_batch()
        record: dict[str, float | None] = {
            "learning_rate": float(scheduler.get_last_lr()[0]),
            "weight": objective.weight,
            **tally.figures(len(models)),
        }
        if not math.isfinite(record["train_loss"] or 0):
            raise DivergedError(
                f"{spec.id}: the loss of epoch {epoch + 1} is {record['train_loss']}"
            )

        tests = []
        for model in models:
            logits, labels = outputs(model.eval(), source.test_batches())
            if not logits.isfinite().all():  # the epoch's last step broke the weights
                raise DivergedError(
                    f"{spec.id}: the test outputs of epoch {epoch + 1} are not finite"
                )
            tests.append(accuracy_figures(logits, labels))
            if model is models[0]:
                confusion = confusion_matrix(logits, labels).tolist()
        record |= {name: sum(test[name] for test in tests) / len(tests) for name in tests[0]}
        record["seconds"] = time.perf_counter() - start
        for name in HISTORY:
            history[name].append(record[name])
        scheduler.step()
        objective.end_epoch()
        if on_epoch is not None:
            on_epoch(
                {
                    "id": spec.id,
                    "digest": spec.digest,
                    "precision": resolved,
                    "made_with": made_with,
                    "epoch": epoch + 1,
                    "history": history,
                    "confusion": confusion,
                    "margins": tally.margins,
                    "models": [model.state_dict() for model in models],
                    "objective": objective.criterion.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                }
            )

    return RunResult(
        spec=spec,
        history=history,
        device=device_name(target) + ", compiled" * compiled,
        precision=resolved,
        threads=torch.get_num_threads(),
        origin=source.origin,
        realised_noise_rate=source.wrong,
        confusion=confusion,
        details=_last_look(models[0], outputs, source, tally) if details else None,
    )
