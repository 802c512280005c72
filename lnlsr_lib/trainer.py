"""`train(spec)`: one visible loop, the whole data set on the device. No paths, no printing.

The protocol is that of the paper (SGD, cosine annealing stepped per epoch, clipped gradients, last
short batch kept); what is ours is how fast it goes: uint8 images resident on the device, batches by
indexing, channels_last, bf16 where the device gains from it, and no host synchronisation inside an
epoch (but for WebVision, which is streamed).
"""

from __future__ import annotations

import math
import os
import shutil
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
from lnlsr_lib.device import (
    device_name,
    keep_freed_memory,
    place_name,
    resolve_device,
    resolve_precision,
)
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
        device: such as "cpu (AMD EPYC, AVX512)", with ", compiled" behind it if the network was.
        precision: "float32" or "bf16"; threads: of the CPU, whose number decides how it rounds.
        origin: where the data came from.
        realised_noise_rate: the share of training labels that are wrong; None if unknown.
        confusion: counts on the test set after the last epoch, K rows (true class) of K
            (predicted); of the first network.
        details: by name, if they were asked for: ``features`` (N, D) of the last hidden layer and
            ``test_labels`` of the test set; ``test_prediction``, ``train_prediction``, and the
            margins of the logits, ``test_margin`` (of the true label) and ``train_margin`` (of the
            given one; ``train_mean_margin`` over all steps, of two networks the mean), all (N,).
        places: device and threads, in their order; several if it was stopped, and went on
            elsewhere.
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
    places: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(float(seconds or 0) for seconds in self.history["seconds"])


Batches = Iterable[tuple[Tensor, Tensor]]  # images and labels
STATE = {
    *("id", "digest", "precision", "made_with", "epoch", "history", "confusion", "margins"),
    *("models", "objective", "optimizer", "scheduler", "places"),
}


class Learner:
    """What learns in a run: its networks, their objective, optimiser and learning rate.

    Args:
        spec: the run.
        source: of its batches.
        device, precision: where, and in what; resolved.
        compiled: whether the networks are trained through ``torch.compile``.
    """

    def __init__(
        self,
        spec: RunSpec,
        source: Resident | Stream,
        device: torch.device,
        precision: str,
        compiled: bool,
    ) -> None:
        self.spec = spec
        self.pixels = Pixels(spec.mean or source.mean, spec.std or source.std, device)
        self.objective = build_objective(spec, source.labels, source.num_classes)
        self.models = [
            build_model(spec.model, source.num_classes, spec.draw_seed(purpose), spec.side).to(  # type: ignore[call-overload]
                device=device, memory_format=torch.channels_last
            )
            for purpose in ("weights", "weights/second")[: self.objective.networks]
        ]
        # the last short batch is compiled on its own, and the tests are not compiled
        self.calls = [torch.compile(m, dynamic=False) if compiled else m for m in self.models]
        self.optimizer = torch.optim.SGD(
            [parameter for model in self.models for parameter in model.parameters()],
            lr=spec.learning_rate,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            weight_decay=spec.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.scheduler: lr_scheduler.LRScheduler
        if spec.decay is None:
            lowest = spec.final_learning_rate
            self.scheduler = lr_scheduler.CosineAnnealingLR(self.optimizer, spec.epochs, lowest)
        else:
            gamma = spec.decay ** (spec.paper_epochs / spec.epochs)
            self.scheduler = lr_scheduler.ExponentialLR(self.optimizer, gamma)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    @property
    def learning_rate(self) -> float:
        """That of this epoch."""
        return float(self.scheduler.get_last_lr()[0])

    def start_epoch(self, epoch: int) -> None:
        """Get ready for ``epoch``, from 0."""
        for model in self.models:
            model.train()
        self.objective.start_epoch(epoch)

    def step(self, batch: Batch) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """A batch in, the weights one step on; nothing is read back from the device.

        Returns:
            The logits of each network, (B, K), the loss, and whether each gradient was clipped.
        """
        with self.autocast:
            inputs = self.pixels(batch.images)
            logits = [call(inputs).float() for call in self.calls]
        loss = self.objective(logits, batch.labels, batch.indices)
        self.optimizer.zero_grad()
        loss.backward()
        clipped, bound = [], self.spec.clip_norm
        if bound is not None:
            for model in self.models:
                clipped.append(nn.utils.clip_grad_norm_(model.parameters(), bound) > bound)
        self.optimizer.step()
        return logits, loss, clipped

    def end_epoch(self) -> None:
        """Take the learning rate and lambda one epoch further."""
        self.scheduler.step()
        self.objective.end_epoch()

    @torch.no_grad()
    def outputs(self, network: Any, batches: Batches) -> tuple[Tensor, Tensor]:
        """What ``network`` makes of all batches, float32, and their labels."""
        with self.autocast:
            pairs = [(network(self.pixels(images)).float(), labels) for images, labels in batches]
        logits, labels = zip(*pairs, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def test(self, source: Resident | Stream) -> tuple[dict[str, float], list[list[int]]]:
        """Figures on the test set, the mean of all networks, and the first one's confusion matrix.

        Raises:
            DivergedError: outputs are NaN or infinite.
        """
        tests: list[dict[str, float]] = []
        confusion: list[list[int]] = []
        for model in self.models:
            logits, labels = self.outputs(model.eval(), source.test_batches())
            if not logits.isfinite().all():  # the epoch's last step broke the weights
                epoch = self.scheduler.last_epoch + 1
                raise DivergedError(
                    f"{self.spec.id}: the test outputs of epoch {epoch} are not finite"
                )
            tests.append(accuracy_figures(logits, labels))
            confusion = confusion or confusion_matrix(logits, labels).tolist()
        figures = {name: sum(test[name] for test in tests) / len(tests) for name in tests[0]}
        return figures, confusion

    def state(self) -> dict[str, Any]:
        """What is needed to go on, as live tensors."""
        return {
            "models": [model.state_dict() for model in self.models],
            "objective": self.objective.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state back; whatever does not fit raises whatever PyTorch raises."""
        for model, weights in zip(self.models, state["models"], strict=True):
            model.load_state_dict(weights)
        self.objective.criterion.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def details(self, source: Resident | Stream, tally: Tally) -> dict[str, Tensor]:
        """Those of :class:`RunResult`: the trained network on every sample that has a place."""
        model: Any = self.models[0].eval()
        hidden, labels = self.outputs(model.features, source.test_batches())
        found = {"features": hidden, "test_labels": labels}
        parts = {"test": source.test_batches()}
        if isinstance(source, Resident):
            parts["train"] = source.train_batches()
        for part, batches in parts.items():
            logits, labels = self.outputs(model, batches)
            found[f"{part}_prediction"] = logits.argmax(dim=1)
            found[f"{part}_margin"] = margins(logits, labels)
        if len(tally.margins):
            found["train_mean_margin"] = tally.margins / self.spec.epochs
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
    places = state["places"]
    if not isinstance(places, list) or not places or {*map(type, places)} != {str}:
        raise StateError("the state's places are no list of names")
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
        ValueError: device or precision do not fit; no C++ compiler, for ``compiled``.
        StateError: the state does not.
        lnlsr_lib.data.DataError: the data set cannot be had.
    """
    target = resolve_device(device)
    resolved = resolve_precision(precision, target)
    if compiled and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++"))):
        raise ValueError("torch.compile needs a C++ compiler, and there is none: g++, c++, clang++")
    if target.type == "cpu":
        keep_freed_memory()
    if target.type == "cuda":  # float32 means it
        torch.backends.cudnn.allow_tf32 = False
    source = open_source(spec, data, target)
    learner = Learner(spec, source, target, resolved, compiled)
    # whether or not details are asked for: whoever goes on from a checkpoint may want them
    tally = Tally(len(source.labels) if isinstance(source, Resident) else 0, target)
    history: dict[str, list[float | None]] = {name: [] for name in HISTORY}
    confusion: list[list[int]] = []
    # not its build: a run may go on elsewhere
    made_with = f"lnlsr {version('lnlsr')}, torch {torch.__version__.partition('+')[0]}, "
    made_with += f"{source.origin.split(';')[0]}, {target.type}" + ", compiled" * compiled
    device_used, threads = device_name(target) + ", compiled" * compiled, torch.get_num_threads()
    places = [place_name(device_used, threads)]
    first = 0
    if state is not None:
        check_state(state, spec, resolved)
        if state["made_with"] != made_with:
            raise StateError(
                f"the state was made with {state['made_with']}, and this is {made_with}; "
                "delete it to train from the start"
            )
        try:
            learner.load_state(state)
            if tally.margins.shape != state["margins"].shape:
                raise ValueError("its margins are of other samples, or of none")
            tally.margins.copy_(state["margins"])
        except Exception as error:  # given any state, these raise anything
            raise StateError(f"the state does not fit: {error!r}") from error
        history = {name: list(values) for name, values in state["history"].items()}
        confusion, first = state["confusion"], state["epoch"]
        places = [*state["places"], *(one for one in places if one not in state["places"][-1:])]

    for epoch in range(first, spec.epochs):
        start = time.perf_counter()
        learner.start_epoch(epoch)
        tally.start_epoch()
        for batch in source.batches(epoch):
            try:
                tally.add(batch, *learner.step(batch))
            except ValueError as error:  # on the CPU the loss itself refuses NaN
                raise DivergedError(f"{spec.id}: in epoch {epoch + 1}, {error}") from error
            if on_batch is not None:
                on_batch()
        record: dict[str, float | None] = {
            "learning_rate": learner.learning_rate,
            "weight": learner.objective.weight,
            **tally.figures(len(learner.models)),
        }
        if not math.isfinite(record["train_loss"] or 0):
            raise DivergedError(
                f"{spec.id}: the loss of epoch {epoch + 1} is {record['train_loss']}"
            )
        figures, confusion = learner.test(source)
        record |= figures | {"seconds": time.perf_counter() - start}
        for name in HISTORY:
            history[name].append(record[name])
        learner.end_epoch()
        if on_epoch is not None:
            whose = {"id": spec.id, "digest": spec.digest, "precision": resolved}
            so_far = {"epoch": epoch + 1, "history": history, "confusion": confusion}
            made = {"made_with": made_with, "places": places, "margins": tally.margins}
            on_epoch(whose | so_far | made | learner.state())

    return RunResult(
        spec=spec,
        history=history,
        device=device_used,
        precision=resolved,
        threads=threads,
        origin=source.origin,
        realised_noise_rate=source.wrong,
        confusion=confusion,
        details=learner.details(source, tally) if details else None,
        places=places,
    )
