"""Figure or table to the list of runs it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lnlsr_lib.protocol import METHODS, Profile, make_spec
from lnlsr_lib.spec import RunSpec

__all__ = ["EXPERIMENTS", "Experiment", "experiment_specs", "read_seeds"]

Condition = dict[str, Any]  # what else make_spec takes
Run = tuple[str, str, Condition]  # data set, method, condition

MOST_SEEDS = 1000
COMPARED = ("ce", "fl", "gce", "sce", "nlnl", "apl", "ce_sr", "fl_sr", "gce_sr")
CE = ("ce", "ce_sr")
PAIRED = ("ce", "ce_sr", "fl", "fl_sr", "gce", "gce_sr")
MNIST = ("mnist",)
CIFAR10 = ("cifar10",)
CIFARS = ("cifar10", "cifar100")
IMAGES = ("mnist", *CIFARS)
OTHER_LOSSES = ("mae", "rce", "nce", "nfl", "nce_rce", "nfl_rce", "nlnl_sr")


@dataclass(frozen=True)
class Experiment:
    """One figure or table: its title, and its runs, whatever the profile and the seed."""

    title: str
    runs: tuple[Run, ...]
    details: bool  # whether its pages want every sample's features or predictions

    def specs(self, profile: Profile, seed: int) -> list[RunSpec]:
        """Its runs for one profile and one seed; where two sweeps meet, once."""
        specs = (
            make_spec(dataset, method, **more, profile=profile, seed=seed)
            for dataset, method, more in self.runs
        )
        return list(dict.fromkeys(specs))


def _noise(noise: str, *rates: float) -> list[Condition]:
    return [{"noise": noise if rate else "clean", "noise_rate": rate} for rate in rates]


def _varied(rate: float, field: str, *values: Any) -> list[Condition]:
    """Symmetric noise, and one field of the specs at each of its values."""
    return [{"noise_rate": rate, field: value} for value in values]


def _sweep(rate: float, **values: Sequence[float]) -> list[Condition]:
    """One parameter of SR after another over its values, lambda constant through training."""
    steps = ({"growth": 1.0, name: value} for name in values for value in values[name])
    return _varied(rate, "sr", *steps)


def _grid(
    datasets: Sequence[str], methods: Sequence[str], conditions: Sequence[Condition]
) -> tuple[Run, ...]:
    """Every method in every condition on every data set."""
    return tuple((d, m, condition) for d in datasets for condition in conditions for m in methods)


def _pairs(dataset: str, noise: str) -> tuple[Run, ...]:
    """Figures 10, 11 and 12: four losses and rates, each without and with SR."""
    weaker = _grid([dataset], CE, _noise(noise, 0.2))
    return _grid([dataset], PAIRED, _noise(noise, 0.4)) + weaker


SYMMETRIC = _noise("symmetric", 0.0, 0.2, 0.4, 0.6, 0.8)
ASYMMETRIC = _noise("asymmetric", 0.1, 0.2, 0.3, 0.4)
EVERY = SYMMETRIC + ASYMMETRIC
AT_06, AT_08 = SYMMETRIC[3:4], SYMMETRIC[4:]
IMBALANCE = [
    {"imbalance": kind, "imbalance_ratio": ratio}
    for kind in ("long-tailed", "step")
    for ratio in (0.01, 0.1)
]
# Grids and conditions that the paper's text does not give are ours: those of figures 2, 4, 6 and
# 10 to 12. That lambda is constant while it, p or tau is swept is our reading: the paper turns to
# growth after the sweeps, as the remedy.
WEIGHTS = _sweep(0.6, weight=(0, 1, 2, 5, 10, 20, 30))
SWEPT = {"p": (0.01, 0.1, 0.3, 0.5, 0.7, 1.0), "temperature": (0.1, 0.3, 0.5, 0.7, 1.0)}
TAU_BESIDE_WEIGHT = [
    {"growth": 1.0, "temperature": tau, "weight": weight}
    for tau in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    for weight in (0, 2, 5, 20)
]
DETACHED = _varied(0.8, "loss_params", {"detach": True}, {"detach": False})
RUNS: dict[str, tuple[Run, ...]] = {
    "Figure 1: features on MNIST, symmetric 0.8": _grid(MNIST, PAIRED[2:], AT_08),
    "Figure 2: lambda, CIFAR-10, symmetric 0.6": _grid(CIFAR10, ["ce_sr"], WEIGHTS)
    + _grid(CIFAR10, ["fl_sr"], WEIGHTS),
    "Figure 3: sparse rate and test accuracy, MNIST, symmetric 0.8": _grid(MNIST, PAIRED, AT_08),
    "Figure 4: p and tau, CIFAR-10, symmetric 0.6": _grid(CIFAR10, ["ce_sr"], _sweep(0.6, **SWEPT)),
    "Figure 5: features on MNIST, CE and CE+SR": _grid(MNIST, CE, SYMMETRIC[1:]),
    "Figure 6: tau beside lambda, CIFAR-10, symmetric 0.6": _grid(
        CIFAR10, ["ce_sr"], _varied(0.6, "sr", *TAU_BESIDE_WEIGHT)
    ),
    "Figure 7: test accuracy by epoch, MNIST": _grid(MNIST, COMPARED, EVERY),
    "Figure 8: test accuracy by epoch, CIFAR-10": _grid(CIFAR10, COMPARED, EVERY),
    "Figure 9: test accuracy by epoch, CIFAR-100": _grid(["cifar100"], COMPARED, EVERY),
    "Figure 10: features on MNIST, asymmetric noise": _pairs("mnist", "asymmetric"),
    "Figure 11: features on CIFAR-10, symmetric noise": _pairs("cifar10", "symmetric"),
    "Figure 12: features on CIFAR-10, asymmetric noise": _pairs("cifar10", "asymmetric"),
    "Table 1: symmetric noise": _grid(IMAGES, COMPARED, SYMMETRIC),
    "Table 2: asymmetric noise": _grid(IMAGES, COMPARED, ASYMMETRIC[1:]),
    "Table 3: WebVision": _grid(["webvision"], ("ce", "fl", "sce", "apl", "ce_sr", "fl_sr"), [{}]),
    "Table 4: Co-teaching and PHuber-CE": _grid(
        CIFARS, ("ce", "co_teaching", "phuber_ce", "ce_sr"), SYMMETRIC[3:] + ASYMMETRIC[2:]
    ),
    "Table 5: class imbalance": _grid(CIFARS, CE, IMBALANCE),
    "Table 6: asymmetric noise, all rates": _grid(IMAGES, COMPARED, ASYMMETRIC),
    "sweeps: Lambda, p and tau, MNIST, symmetric 0.8": _grid(
        MNIST, ["ce_sr"], _sweep(0.8, weight=(0, 1, 2, 4, 6, 8, 10, 30, 100), **SWEPT)
    ),
    "warmup: CE+SR without and with an epoch of warm-up, MNIST, symmetric 0.8": _grid(
        MNIST, ["ce_sr"], _varied(0.8, "sr", {}, {"warmup": 1})
    ),
    "nlnl: At APL's budget of 720 epochs, MNIST, symmetric 0.6": _grid(
        MNIST, ["nlnl"], _varied(0.6, "budget", "nlnl")
    ),
    "focal: FL and FL+SR, factor in the gradient or not, MNIST, symmetric 0.8": _grid(
        MNIST, ["fl"], DETACHED
    )
    + _grid(MNIST, ["fl_sr"], DETACHED),
    "people: Labels that people gave, CIFAR-10N, worse": _grid(
        CIFAR10, CE, [{"noise": "human", "human_labels": "worse"}]
    ),
    "methods: Every method, MNIST, symmetric 0.6": _grid(MNIST, (*METHODS, *OTHER_LOSSES), AT_06),
    "memorising: Last epoch beside best, CIFAR-10, symmetric 0.6": _grid(CIFAR10, CE, AT_06),
    "precision: bf16 beside float32, MNIST, symmetric 0.8": _grid(MNIST, CE, AT_08),
    "gce_floor: GCE+SR without and with the floor of u_y, MNIST, symmetric 0.8": _grid(
        MNIST, ["gce_sr"], _varied(0.8, "loss_params", {"floor": 0.0}, {"floor": 1e-7})
    ),
}
DETAILED = ("fig1", "fig3", "fig5", "fig10", "fig11", "fig12")


def _name(title: str) -> str:
    """Such as fig3 for "Figure 3: ..."; the first word of what is not in the paper."""
    return title.partition(":")[0].replace("Figure ", "fig").replace("Table ", "table")


EXPERIMENTS = {
    _name(title): Experiment(title, runs, _name(title) in DETAILED) for title, runs in RUNS.items()
}


def read_seeds(value: object) -> list[int] | None:
    """Seeds out of "auto" (None: whichever are stored), 1, "1,2", "1-3" or [1, 2].

    Raises:
        ValueError: anything else.
    """
    if value == "auto":
        return None
    text, seeds = str(value), list[int]()
    text = text[1:-1] if text[:1] + text[-1:] == "[]" else text
    if re.fullmatch(r"(?a:\d{1,18}(-\d{1,18}|(, *\d{1,18})*))", text):
        first, dash, last = text.partition("-")
        some = range(int(first), int(last) + 1) if dash else [*map(int, text.split(","))]
        seeds = list(some[: MOST_SEEDS + 1])
    if not 0 < len(seeds) == len(set(seeds)) <= MOST_SEEDS:
        raise ValueError(
            "seeds must be auto, 1, 1,2 or 1-3: distinct integers of at most 18 digits, "
            f"{MOST_SEEDS} at most; got {text[:80]!r}"
        )
    return seeds


def experiment_specs(
    name: str, profile: Profile = "paper", seeds: Sequence[int] = (1,)
) -> list[RunSpec]:
    """The runs that a figure or table needs.

    Args:
        name: one of ``EXPERIMENTS``.
        profile: "paper", "lite" or "smoke".
        seeds: one or more, distinct, >= 0.

    Raises:
        ValueError: an unknown name or profile; no seeds, or one twice.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; there are: {', '.join(EXPERIMENTS)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be one or more distinct integers, got {list(seeds)}")
    return [spec for seed in seeds for spec in EXPERIMENTS[name].specs(profile, seed)]
