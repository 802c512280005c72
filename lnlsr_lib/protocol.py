"""The paper's protocol as data: (data set, method, noise, profile, seed) to `RunSpec`.

Every constant has its source beside it:
P, the paper's text or tables; C, the authors' public code (github.com/hitcszx/lnl_sr); A, the
public code of APL (Ma et al., ICML 2020); M, Menon et al., ICLR 2020; S, SCE's own code; ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lnlsr_lib.data import SHAPES
from lnlsr_lib.losses import LOSSES
from lnlsr_lib.spec import RunSpec, SparseSpec

__all__ = ["METHODS", "NOISES", "PROFILES", "Profile", "make_spec", "method_name"]

Profile = Literal["paper", "lite", "smoke"]
PROFILES: tuple[Profile, ...] = ("paper", "lite", "smoke")
NOISES = ("clean", "symmetric", "asymmetric", "human", "transition")

# The paper's name of each method, in the order of its tables.
METHODS = {
    "ce": "CE",
    "fl": "FL",
    "gce": "GCE",
    "sce": "SCE",
    "nlnl": "NLNL",
    "apl": "APL",
    "co_teaching": "Co-teaching",
    "phuber_ce": "PHuber-CE",
    "ce_sr": "CE+SR",
    "fl_sr": "FL+SR",
    "gce_sr": "GCE+SR",
}

TRAINING: dict[str, dict[str, Any]] = {
    "mnist": {
        "model": "cnn4",  # P: appendix B
        "paper_epochs": 50,  # P: appendix B
        "batch_size": 128,  # P: appendix B
        "learning_rate": 0.01,  # C (the paper's text has CIFAR's alone)
        "momentum": 0.9,  # P: appendix B
        "weight_decay": 1e-3,  # C (the value is lost in the paper's text)
        "clip_norm": 5.0,  # C
    },
    "cifar10": {
        "model": "cnn8",  # P: appendix B
        "paper_epochs": 120,  # P: appendix B
        "batch_size": 128,  # P: appendix B
        "learning_rate": 0.01,  # P: appendix B
        "momentum": 0.9,  # P: appendix B
        "weight_decay": 1e-4,  # C
        "clip_norm": 5.0,  # C
        "padding": 4,  # C
        "flip": True,  # C
    },
    "cifar100": {
        "model": "resnet34",  # P: appendix B
        "paper_epochs": 200,  # P: appendix B
        "batch_size": 128,  # P: appendix B
        "learning_rate": 0.1,  # P: appendix B
        "momentum": 0.9,  # P: appendix B
        "weight_decay": 1e-5,  # C
        "clip_norm": 5.0,  # C
        "padding": 4,  # C
        "flip": True,  # C
        "degrees": 20.0,  # C
    },
    "webvision": {  # its augmentation belongs to the stream, see lnlsr_lib.webvision
        "model": "resnet50",  # P: section 3.3
        "paper_epochs": 250,  # P: section 3.3
        "batch_size": 512,  # P: section 3.3
        "learning_rate": 0.4,  # P: section 3.3
        "momentum": 0.9,  # P: section 3.3
        "nesterov": True,  # P: section 3.3
        "weight_decay": 3e-5,  # A (the value is lost in the paper's text)
        "decay": 0.97,  # P: section 3.3
        "clip_norm": 5.0,  # A
    },
}
# C, for table 5: no clipping, no rotation, other deviations.
IMBALANCED: dict[str, Any] = {
    "clip_norm": None,
    "degrees": 0.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}

# By data set, then by method or else by its loss; what is not there has no parameters. Losses have
# the form in which the published numbers were made: C for the floor and for the detached factor.
LOSS_PARAMS: dict[str, dict[str, dict[str, bool | float]]] = {
    "every": {
        "fl": {"gamma": 0.5, "detach": True},  # C; on webvision A
        "nfl": {"gamma": 0.5, "detach": True},  # A; detach, C
        "gce": {"q": 0.7, "floor": 1e-7},  # C; on webvision A
    },
    "mnist": {
        "gce_sr": {"q": 0.01, "floor": 1e-7},  # C
        "sce": {"alpha": 0.01, "beta": 1.0},  # S, A (C has 1, 1)
        "apl": {"alpha": 1.0, "beta": 100.0},  # C (A has 1, 10)
        "nce_rce": {"alpha": 1.0, "beta": 100.0},  # A
        "phuber_ce": {"t": 10.0},  # M
    },
    "cifar10": {
        "gce_sr": {"q": 0.01, "floor": 1e-7},  # C
        "sce": {"alpha": 0.1, "beta": 1.0},  # C, S, A
        "apl": {"alpha": 1.0, "beta": 1.0},  # C
        "nce_rce": {"alpha": 1.0, "beta": 1.0},  # A
        "phuber_ce": {"t": 2.0},  # M
    },
    "cifar100": {
        "gce_sr": {"q": 0.001, "floor": 1e-7},  # C
        "sce": {"alpha": 6.0, "beta": 0.1},  # C, S, A
        "apl": {"alpha": 10.0, "beta": 1.0},  # C
        "nce_rce": {"alpha": 10.0, "beta": 0.1},  # A
        "nlnl": {"complementary": 110},  # A
        "phuber_ce": {"t": 10.0},  # M
    },
    "webvision": {
        "gce_sr": {"q": 0.001, "floor": 1e-7},  # ours: that of CIFAR-100
        "sce": {"alpha": 10.0, "beta": 1.0},  # A
        "apl": {"alpha": 50.0, "beta": 1.0},  # A
        "nce_rce": {"alpha": 50.0, "beta": 0.1},  # A
        "phuber_ce": {"t": 10.0},  # ours: that of CIFAR-100
    },
}
# A: the budget behind the paper's rows of NLNL, which are APL's own runs. What the data set's
# training has and these do not name is the same there.
NLNL_BUDGET: dict[str, dict[str, Any]] = {
    "mnist": {"epochs": 720, "final_learning_rate": 0.001},
    "cifar10": {"epochs": 1000},
    "cifar100": {"epochs": 2000},
}
BUDGETS = ("paper", "nlnl")

# By data set, then by method; around a loss that is not there, the line of CE+SR, by our choice.
SPARSE: dict[str, dict[str, SparseSpec]] = {
    "mnist": {
        "ce_sr": SparseSpec(  # C, as for FL+SR
            temperature=0.1, p=0.1, weight=4, growth=2, every=5, unit_logits=False
        ),
        "gce_sr": SparseSpec(  # C
            temperature=0.5, p=0.1, weight=3, growth=2, every=5, unit_logits=False
        ),
    },
    "cifar10": {
        "ce_sr": SparseSpec(  # C, as for FL+SR and GCE+SR
            temperature=0.5, p=0.1, weight=1.2, growth=1.03, every=1, unit_logits=True
        ),
    },
    "cifar100": {
        "ce_sr": SparseSpec(  # C, as for FL+SR and GCE+SR
            temperature=0.5, p=0.01, weight=4, growth=1.02, every=1, unit_logits=True
        ),
    },
    "webvision": {
        "ce_sr": SparseSpec(  # ours: the values are lost in the paper's text
            temperature=0.5, p=0.01, weight=2, growth=1.02, every=1, unit_logits=True
        ),
    },
}
ASYMMETRIC_SR: dict[str, dict[str, float]] = {"cifar100": {"weight": 10.0}}  # C
IMBALANCED_SR: dict[str, dict[str, Any]] = {  # C
    "cifar10": {"weight": 1.0, "unit_logits": False},
    "cifar100": {"weight": 1.0},
}

# In the place of every data set and network: a smoke run shows that the code works, no more.
_SMOKE = {"dataset": "digits", "model": "cnn4", "epochs": 3, "mean": None, "std": None}
# What a reduced profile changes; all of it ours.
REDUCED: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "lite": {
        "mnist": {"train_size": 10_000, "epochs": 20},
        "cifar10": {"train_size": 20_000, "epochs": 60, "side": 16, "padding": 2},
        "cifar100": {"train_size": 10_000, "epochs": 50},
        "webvision": {"epochs": 25},
    },
    "smoke": dict.fromkeys(TRAINING, _SMOKE),
}
# Of the symmetric noise in the place of human labels, and of a matrix for other classes; ours.
SMOKE_HUMAN_RATE = 0.4


def method_name(method: str) -> str:
    """How a method is written: "CE+SR" for "ce_sr"."""
    base = method.removesuffix("_sr")
    return METHODS.get(method, base.upper().replace("_", "-") + "+SR" * (base != method))


def _known(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; there are: {', '.join(names)}")


def make_spec(
    dataset: str,
    method: str,
    noise_rate: float = 0.0,
    *,
    noise: str | None = None,
    variant: str = "paper",
    human_labels: str | None = None,
    transition: Sequence[Sequence[float]] | None = None,
    imbalance: str | None = None,
    imbalance_ratio: float = 1.0,
    sr: Mapping[str, float] | None = None,
    loss_params: Mapping[str, float] | None = None,
    budget: str = "paper",
    profile: Profile = "paper",
    seed: int = 1,
) -> RunSpec:
    """The run that the paper's protocol asks for.

    Args:
        dataset: "mnist", "cifar10", "cifar100" or "webvision".
        method: one of ``METHODS``, or any loss in :data:`lnlsr_lib.losses.LOSSES`, or one of those
            with "_sr" behind it.
        noise_rate: in [0, 1]; 0 gives clean labels.
        noise: "symmetric" (the default where there is a rate) or "asymmetric", "human",
            "transition", "clean".
        variant: "paper", or "official" for the noise of the authors' code.
        human_labels, transition: for noise of that kind, see :class:`lnlsr_lib.spec.RunSpec`.
        imbalance, imbalance_ratio: "long-tailed" or "step", and the share that the rarest keeps.
        sr: parameters of SR that differ from the protocol's, for sweeps.
        loss_params: parameters of the loss that differ from the protocol's.
        budget: "paper", or "nlnl" for the epochs and rates behind the paper's numbers of NLNL, 8 to
            14 times those of the other methods.
        profile: "paper" (all data, the paper's epochs), "lite" (fewer images and epochs) or
            "smoke" (scikit-learn's digits and CNN-4 in every data set's place, 3 epochs).
        seed: of everything random, >= 0.

    Raises:
        ValueError: an unknown data set, method, noise or profile, or a value out of its range.
    """
    _known("data set", dataset, list(TRAINING))
    loss = "ce" if method == "co_teaching" else method.removesuffix("_sr")
    if loss not in LOSSES:
        _known("method", method, [*METHODS, *(name for name in LOSSES if name not in METHODS)])
    _known("profile", profile, PROFILES)
    noise = ("symmetric" if noise_rate else "clean") if noise is None else noise
    _known("noise", noise, NOISES)
    known = LOSS_PARAMS["every"] | LOSS_PARAMS[dataset]
    params = known.get(method, known.get(loss, {}))
    if loss == "nfl_rce":
        params = known["nce_rce"] | {"detach": True}  # A; detach, C
    _known("budget", budget, BUDGETS)
    if budget != "paper" and (method != "nlnl" or dataset not in NLNL_BUDGET):
        raise ValueError(f"budget {budget!r} goes with method 'nlnl' on {', '.join(NLNL_BUDGET)}")
    fields: dict[str, Any] = {
        "dataset": dataset,
        "method": method,
        "loss": loss,
        "loss_params": {**params, **(loss_params or {})},
        "noise": noise,
        "noise_rate": noise_rate,
        "noise_variant": variant if noise != "clean" else "paper",
        "human_labels": human_labels,
        "transition": transition,
        "imbalance": imbalance,
        "imbalance_ratio": imbalance_ratio,
        "epochs": TRAINING[dataset]["paper_epochs"],
        "profile": profile,
        "seed": seed,
    }
    if method.endswith("_sr"):
        changes: dict[str, Any] = {}
        if noise == "asymmetric":
            changes |= ASYMMETRIC_SR.get(dataset, {})
        if imbalance is not None:
            changes |= IMBALANCED_SR.get(dataset, {})
        line = SPARSE[dataset].get(method, SPARSE[dataset]["ce_sr"])
        fields["sr"] = line.model_dump() | changes | dict(sr or {})
    elif sr:
        raise ValueError(f"method {method!r} has no SR whose parameters could be changed")
    if method == "co_teaching":
        if noise in ("human", "transition") and profile != "smoke":
            raise ValueError(f"Co-teaching has to know the noise rate, and {noise} noise has none")
        fields["forget_rate"] = noise_rate  # Han et al., NeurIPS 2018
    if imbalance is not None:
        if dataset not in IMBALANCED_SR:
            raise ValueError(f"imbalance goes with {' and '.join(IMBALANCED_SR)}, got {dataset!r}")
        fields |= IMBALANCED
    if budget == "nlnl":
        fields |= NLNL_BUDGET[dataset] | {"paper_epochs": NLNL_BUDGET[dataset]["epochs"]}
    fields |= REDUCED[profile].get(dataset, {})
    unfit = transition is not None and len(transition) != SHAPES["digits"][-1]
    if profile == "smoke" and (noise == "human" or unfit):
        fields |= {"noise": "symmetric", "noise_rate": SMOKE_HUMAN_RATE}
        fields |= {"human_labels": None, "transition": None}
    return RunSpec(**TRAINING[dataset] | fields)
