"""`RunSpec`: one training run, whole: frozen, validated, hashable, JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lnlsr_lib.losses import build_loss

__all__ = ["PROTOCOL_VERSION", "RunSpec", "SparseSpec"]

# Bumped whenever the trainer's numerics change, so that old results never pass for new ones.
PROTOCOL_VERSION = 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, strict=True)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SparseSpec(_Frozen):
    """Parameters of SR; see :class:`lnlsr_lib.regularization.SparseRegularization`.

    ``every`` (r) counts epochs of the paper's schedule; a run with fewer epochs follows the same
    path over the share of training done.
    """

    temperature: Positive
    p: Annotated[float, Field(gt=0, le=1)]
    weight: NonNegative
    growth: Positive
    every: Count
    unit_logits: bool


class RunSpec(_Frozen):
    """What is to be trained. Same spec, same machine, same precision: same bits.

    Attributes:
        dataset: name in :data:`lnlsr_lib.data.DATASETS`.
        train_size: class-balanced subset of the training set; None for all of it.
        model: name in :data:`lnlsr_lib.models.MODELS`.
        method: the paper's name for the combination, such as "ce_sr".
        loss, loss_params: base loss, by name, and its parameters.
        sr: sparse regularisation around it, or None.
        noise: kind of label noise, or "clean" with rate 0.
        noise_rate: in [0, 1].
        epochs: to train for.
        paper_epochs: of the paper's run; stretches the schedule of lambda over ``epochs``.
        batch_size, learning_rate, momentum, weight_decay: of SGD; cosine annealing to 0.
        clip_norm: bound of the gradient's l2 norm.
        profile: the budget it belongs to: "paper", "lite" or "smoke".
        seed: of everything random.
        protocol: version of the trainer's numerics.
    """

    dataset: str
    train_size: Count | None = None
    model: str
    method: str
    loss: str
    loss_params: dict[str, float] = Field(default_factory=dict)
    sr: SparseSpec | None = None
    noise: Literal["clean", "symmetric"]
    noise_rate: Annotated[float, Field(ge=0, le=1)]
    epochs: Count
    paper_epochs: Count
    batch_size: Annotated[int, Field(ge=2, strict=True)]
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    clip_norm: Positive
    profile: Literal["paper", "lite", "smoke"]
    seed: Annotated[int, Field(ge=0, strict=True)]
    protocol: int = PROTOCOL_VERSION

    @model_validator(mode="after")
    def _consistent(self) -> RunSpec:
        build_loss(self.loss, **self.loss_params)
        if (self.noise == "clean") != (self.noise_rate == 0):
            raise ValueError("noise_rate must be 0 for clean labels, and above 0 otherwise")
        return self

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 over the fields that differ from their defaults, so that a new field with a
        default leaves old ids as they are."""
        fields = self.model_dump(mode="json", exclude_defaults=True) | {"protocol": self.protocol}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def id(self) -> str:
        """Readable, unique: ``mnist-sym0.8-ce_sr-seed1-3f2a9c1b``."""
        kind = {"clean": "clean", "symmetric": "sym"}[self.noise]
        rate = "" if self.noise == "clean" else f"{self.noise_rate:g}"
        return f"{self.dataset}-{kind}{rate}-{self.method}-seed{self.seed}-{self.digest[:8]}"

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
