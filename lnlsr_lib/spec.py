"""`RunSpec`: one training run, whole: frozen, validated, hashable, JSON."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator

from lnlsr_lib.data import HUMAN_LABELS, SHAPES
from lnlsr_lib.losses import build_loss
from lnlsr_lib.regularization import SparseRegularization

__all__ = ["PROTOCOL_VERSION", "RunSpec", "SparseSpec"]

# Bumped whenever what the trainer computes changes by more than its rounding (that changes with
# PyTorch and the machine, too), so that old results never pass for new ones.
PROTOCOL_VERSION = 2

# What each network takes, by the channels of its images.
CHANNELS = {"cnn4": 1, "cnn8": 3, "resnet34": 3, "resnet50": 3}
LARGEST_WEIGHT = 1e30  # of lambda, at the end of its path: float32 ends at 3.4e38

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]
Whole = Annotated[int, Field(ge=0, le=10**9, strict=True)]


def checksum(content: Any) -> str:
    """SHA-256 of anything that JSON can hold, however it is laid out there."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class SparseSpec(BaseModel, frozen=True, extra="forbid"):
    """Parameters of SR; see :class:`lnlsr_lib.regularization.SparseRegularization`.

    ``every`` (r) counts epochs of the paper's schedule; a run with fewer epochs follows the same
    path over the share of training done. ``warmup`` counts the run's own.
    """

    temperature: Positive
    p: Annotated[float, Field(gt=0, le=1)]
    weight: NonNegative
    growth: Positive
    every: Count
    unit_logits: bool
    warmup: Whole = 0


class RunSpec(BaseModel, frozen=True, extra="forbid"):
    """What is to be trained. Same spec, precision, CPU, threads and versions: same bits.

    Attributes:
        dataset: name in :data:`lnlsr_lib.data.SHAPES`.
        train_size: class-balanced subset of the training set; None for all of it.
        side: of the images, in pixels, averaged down to it; None for the data set's own.
        model: name in :data:`lnlsr_lib.models.MODELS`.
        method: the paper's name for the combination, such as "ce_sr": at most 40 small letters,
            digits and underscores.
        loss, loss_params: base loss, by name, and its parameters.
        sr: sparse regularisation around it, or None.
        noise: kind of label noise: "symmetric" and "asymmetric" with a rate; "clean", "human"
            (labels that people gave) and "transition" (a matrix of the user's) with rate 0.
        noise_rate: in [0, 1].
        noise_variant: "paper", or "official" for what the authors' code does.
        human_labels: which ones, for noise "human": a name such as "worse".
        transition: for noise "transition": K rows of K probabilities, K the data set's classes.
        imbalance: None, "long-tailed" or "step".
        imbalance_ratio: share of images that the rarest class keeps, in (0, 1]; 1 without.
        epochs: to train for.
        paper_epochs: of the paper's run; stretches the schedule of lambda over ``epochs``.
        batch_size, learning_rate, momentum, nesterov, weight_decay: of SGD.
        decay: factor of the learning rate after each of the paper's epochs, stretched like lambda;
            None for cosine annealing to ``final_learning_rate``.
        clip_norm: bound of the gradient's l2 norm; None for no bound.
        padding, flip, degrees: of :class:`lnlsr_lib.augment.Augmentation`.
        mean, std: of the pixels, for normalisation; None for the data set's own.
        forget_rate: share of samples that Co-teaching leaves out in the end; None for one network.
        forget_epochs: of the paper's, until it is reached.
        profile: the budget it belongs to: "paper", "lite" or "smoke".
        seed: of everything random.
        protocol: version of the trainer's numerics.
    """

    dataset: Annotated[str, Field(pattern=f"^({'|'.join(SHAPES)})$")]
    train_size: Count | None = None
    side: Count | None = None
    model: Annotated[str, Field(pattern=f"^({'|'.join(CHANNELS)})$")]
    method: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    loss: str
    loss_params: dict[str, bool | float] = Field(default_factory=dict)
    sr: SparseSpec | None = None
    noise: Literal["clean", "symmetric", "asymmetric", "human", "transition"]
    noise_rate: Annotated[float, Field(ge=0, le=1)]
    noise_variant: Literal["paper", "official"] = "paper"
    human_labels: str | None = None
    transition: tuple[tuple[NonNegative, ...], ...] | None = None
    imbalance: Literal["long-tailed", "step"] | None = None
    imbalance_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    epochs: Count
    paper_epochs: Count
    batch_size: Annotated[int, Field(ge=2, le=10**9, strict=True)]
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool = False
    weight_decay: NonNegative
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    final_learning_rate: NonNegative = 0.0
    clip_norm: Positive | None
    padding: Whole = 0
    flip: bool = False
    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    mean: tuple[Finite, ...] | None = None
    std: tuple[Positive, ...] | None = None
    forget_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    forget_epochs: Count = 10
    profile: Literal["paper", "lite", "smoke"]
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    protocol: Count = PROTOCOL_VERSION

    @model_validator(mode="after")
    def _fitting(self) -> RunSpec:
        """Network, labels and numbers fit the data set and one another."""
        images, _, channels, side, classes = SHAPES[self.dataset]
        human = HUMAN_LABELS.get(self.dataset, {})
        moments = [len(values) for values in (self.mean, self.std) if values is not None]
        rows = self.transition or ()
        rated, plain = self.noise in ("symmetric", "asymmetric"), self.loss != "nlnl"
        asis = plain and self.noise == "clean"
        asis &= not (self.imbalance or self.train_size or self.side)
        rules = {
            f"model must take {channels} channels": CHANNELS[self.model] == channels,
            f"train_size must be a multiple of {classes}, at most {images}": (
                (self.train_size or classes) in range(classes, images + 1, classes)
            ),
            f"side must be a multiple of 8 that divides {side}": (
                self.side is None or self.side % 8 == side % self.side == 0
            ),
            f"padding must be at most {side}": self.padding <= side,
            f"mean and std go together, each of {channels}": moments in ([], [channels] * 2),
            f"human_labels are {', '.join(human) or 'none'} with noise 'human', None without": (
                self.human_labels in (human if self.noise == "human" else (None,))
            ),
            "transition goes with noise 'transition', and with no other": (
                (self.noise == "transition") == (self.transition is not None)
            ),
            f"transition must have a row for each of {classes} classes": (
                self.transition is None or {len(rows), *map(len, rows)} == {classes}
            ),
            "transition must have rows that sum to 1": all(abs(sum(r) - 1) < 1e-6 for r in rows),
            "noise_rate must be above 0 for symmetric and asymmetric noise, and 0 for clean labels "
            "and the other kinds": rated == (self.noise_rate > 0),
            "noise_variant goes with noise; clean labels have none": (
                self.noise != "clean" or self.noise_variant == "paper"
            ),
            "imbalance_ratio must be 1 without imbalance, and below 1 with it": (
                (self.imbalance is None) == (self.imbalance_ratio == 1)
            ),
            "nesterov needs a momentum above 0": self.momentum > 0 or not self.nesterov,
            "nlnl cannot trust outputs that unit_logits keeps below 1/2": (
                self.loss_params.get("phases") != 3 or self.sr is None or not self.sr.unit_logits
            ),
            "webvision is streamed as it is: no noise, imbalance, train_size, side or nlnl": (
                self.dataset != "webvision" or asis
            ),
            "Co-teaching (forget_rate) goes with a plain base loss alone": (
                self.forget_rate is None or (self.sr is None and plain)
            ),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            about = [f"{k}={v!r}" for k, v in self if any(k in rule for rule in broken)]
            raise ValueError(
                f"for {self.dataset}, {'; '.join(broken)}; got {', '.join(about)[:200]}"
            )
        return self

    @model_validator(mode="after")
    def _buildable(self) -> RunSpec:
        """The loss takes its parameters, and lambda stays a number."""
        loss = build_loss(self.loss, **self.loss_params)
        if self.sr is not None:
            SparseRegularization(loss, **self.sr.model_dump())
            growths = (self.paper_epochs - 1) // self.sr.every
            last = math.log(self.sr.weight or 1.0) + growths * math.log(self.sr.growth)
            if last > math.log(LARGEST_WEIGHT):
                raise ValueError(f"lambda, weight * growth^{growths} at the end, is too large")
        return self

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 over the fields that differ from their defaults, so that a new field with a
        default leaves old ids as they are."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return checksum(fields | {"protocol": self.protocol})

    @property
    def id(self) -> str:
        """Readable, unique: ``mnist-sym0.8-ce_sr-seed1-3f2a9c1b``."""
        return f"{self.dataset}-{self.condition}-{self.method}-seed{self.seed}-{self.digest[:8]}"

    @property
    def condition(self) -> str:
        """Noise and imbalance, such as ``sym0.8`` or ``clean-lt0.1``."""
        kind = {"symmetric": "sym", "asymmetric": "asym"}.get(self.noise, self.noise)
        kind += f"{self.noise_rate:g}" if self.noise_rate else ""
        kind += f"-{self.human_labels}" if self.human_labels else ""
        kind += "-official" if self.noise_variant == "official" else ""
        if self.imbalance:
            short = {"long-tailed": "lt"}.get(self.imbalance, self.imbalance)
            kind += f"-{short}{self.imbalance_ratio:g}"
        return kind

    def draw_seed(self, purpose: str) -> int:
        """The seed of one purpose ("noise", "weights", "order/3", ...), in [0, 2^63).

        It depends on ``seed`` and ``purpose`` alone, so methods compared at one seed share their
        noisy labels, initial weights and batches.
        """
        text = f"lnlsr/{self.seed}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator seeded with :meth:`draw_seed`."""
        return torch.Generator().manual_seed(self.draw_seed(purpose))
