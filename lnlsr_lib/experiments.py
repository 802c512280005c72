"""Figure or table to the list of runs it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lnlsr_lib.protocol import METHODS, Profile, make_spec
from lnlsr_lib.spec import RunSpec

__all__ = ["EXPERIMENTS", "Experiment", "experiment_specs"]

Run = tuple[str, str, dict[str, Any]]  # data set, method, and what else make_spec takes

COMPARED = ("ce", "fl", "gce", "sce", "nlnl", "apl", "ce_sr", "fl_sr", "gce_sr")
PAIRS = ("ce", "ce_sr", "fl", "fl_sr", "gce", "gce_sr")
CIFARS = ("cifar10", "cifar100")
OTHER_LOSSES = ("mae", "rce", "nce", "nfl", "nce_rce", "nfl_rce", "nlnl_sr")


@dataclass(frozen=True)
class Experiment:
    """One figure or table: its title, and its runs, whatever the profile and the seed."""

    title: str
    runs: tuple[Run, ...]
    details: bool = False  # whether its pages want every sample's features or predictions

    def specs(self, profile: Profile, seed: int) -> list[RunSpec]:
        """Its runs for one profile and one seed; where two sweeps meet, once."""
        specs = (
            make_spec(dataset, method, **more, profile=profile, seed=seed)
            for dataset, method, more in self.runs
        )
        return list(dict.fromkeys(specs))


def _noise(noise: str, *rates: float) -> list[dict[str, Any]]:
    return [{"noise": noise if rate else "clean", "noise_rate": rate} for rate in rates]


def _grid(
    datasets: Iterable[str], methods: Iterable[str], conditions: Iterable[dict[str, Any]]
) -> tuple[Run, ...]:
    """Every method in every condition on every data set."""
    methods, conditions = tuple(methods), tuple(conditions)
    return tuple((d, m, condition) for d in datasets for condition in conditions for m in methods)


SYMMETRIC = _noise("symmetric", 0.0, 0.2, 0.4, 0.6, 0.8)
MNIST_08 = _noise("symmetric", 0.8)
IMBALANCE = [
    {"imbalance": kind, "imbalance_ratio": ratio}
    for kind in ("long-tailed", "step")
    for ratio in (0.01, 0.1)
]


def _all_curves(dataset: str) -> tuple[Run, ...]:
    """Figures 7, 8 and 9: all methods, clean, every symmetric and asymmetric rate."""
    return _grid([dataset], COMPARED, SYMMETRIC + _noise("asymmetric", 0.1, 0.2, 0.3, 0.4))


def _sweep(dataset: str, rate: float, method: str, **values: Sequence[float]) -> tuple[Run, ...]:
    """One parameter of SR after another over its values, lambda constant through training."""
    return tuple(
        (dataset, method, {"noise_rate": rate, "sr": {"growth": 1.0, name: value}})
        for name, several in values.items()
        for value in several
    )


# Grids and conditions that the paper's text does not give are ours: those of figures 2, 4, 6 and
# 10 to 12. That lambda is constant while it, p or tau is swept is our reading: the paper turns to
# growth after the sweeps, as the remedy.
SWEPT = {"p": (0.01, 0.1, 0.3, 0.5, 0.7, 1.0), "temperature": (0.1, 0.3, 0.5, 0.7, 1.0)}
EXPERIMENTS: dict[str, Experiment] = {
    "fig1": Experiment(
        "Figure 1: features on MNIST, symmetric 0.8",
        _grid(["mnist"], ("fl", "fl_sr", "gce", "gce_sr"), MNIST_08),
        details=True,
    ),
    "fig2": Experiment(
        "Figure 2: lambda, CIFAR-10, symmetric 0.6",
        _sweep("cifar10", 0.6, "ce_sr", weight=(0, 1, 2, 5, 10, 20, 30))
        + _sweep("cifar10", 0.6, "fl_sr", weight=(0, 1, 2, 5, 10, 20, 30)),
    ),
    "fig3": Experiment(
        "Figure 3: sparse rate and test accuracy, MNIST, symmetric 0.8",
        _grid(["mnist"], PAIRS, MNIST_08),
        details=True,
    ),
    "fig4": Experiment(
        "Figure 4: p and tau, CIFAR-10, symmetric 0.6",
        _sweep("cifar10", 0.6, "ce_sr", p=SWEPT["p"], temperature=SWEPT["temperature"]),
    ),
    "fig5": Experiment(
        "Figure 5: features on MNIST, CE and CE+SR",
        _grid(["mnist"], ("ce", "ce_sr"), _noise("symmetric", 0.2, 0.4, 0.6, 0.8)),
        details=True,
    ),
    "fig6": Experiment(
        "Figure 6: tau beside lambda, CIFAR-10, symmetric 0.6",
        tuple(
            ("cifar10", "ce_sr", {"noise_rate": 0.6, "sr": {"growth": 1.0, **values}})
            for tau in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
            for values in ({"temperature": tau, "weight": weight} for weight in (0, 2, 5, 20))
        ),
    ),
    "fig7": Experiment("Figure 7: test accuracy by epoch, MNIST", _all_curves("mnist")),
    "fig8": Experiment("Figure 8: test accuracy by epoch, CIFAR-10", _all_curves("cifar10")),
    "fig9": Experiment("Figure 9: test accuracy by epoch, CIFAR-100", _all_curves("cifar100")),
    "fig10": Experiment(
        "Figure 10: features on MNIST, asymmetric noise",
        _grid(["mnist"], PAIRS, _noise("asymmetric", 0.4))
        + _grid(["mnist"], ("ce", "ce_sr"), _noise("asymmetric", 0.2)),
        details=True,
    ),
    "fig11": Experiment(
        "Figure 11: features on CIFAR-10, symmetric noise",
        _grid(["cifar10"], PAIRS, _noise("symmetric", 0.4))
        + _grid(["cifar10"], ("ce", "ce_sr"), _noise("symmetric", 0.2)),
        details=True,
    ),
    "fig12": Experiment(
        "Figure 12: features on CIFAR-10, asymmetric noise",
        _grid(["cifar10"], PAIRS, _noise("asymmetric", 0.4))
        + _grid(["cifar10"], ("ce", "ce_sr"), _noise("asymmetric", 0.2)),
        details=True,
    ),
    "table1": Experiment(
        "Table 1: symmetric noise", _grid(("mnist", *CIFARS), COMPARED, SYMMETRIC)
    ),
    "table2": Experiment(
        "Table 2: asymmetric noise",
        _grid(("mnist", *CIFARS), COMPARED, _noise("asymmetric", 0.2, 0.3, 0.4)),
    ),
    "table3": Experiment(
        "Table 3: WebVision",
        _grid(["webvision"], ("ce", "fl", "sce", "apl", "ce_sr", "fl_sr"), [{}]),
    ),
    "table4": Experiment(
        "Table 4: Co-teaching and PHuber-CE",
        _grid(
            CIFARS,
            ("ce", "co_teaching", "phuber_ce", "ce_sr"),
            _noise("symmetric", 0.6, 0.8) + _noise("asymmetric", 0.3, 0.4),
        ),
    ),
    "table5": Experiment("Table 5: class imbalance", _grid(CIFARS, ("ce", "ce_sr"), IMBALANCE)),
    "table6": Experiment(
        "Table 6: asymmetric noise, all rates",
        _grid(("mnist", *CIFARS), COMPARED, _noise("asymmetric", 0.1, 0.2, 0.3, 0.4)),
    ),
    "sweeps": Experiment(
        "Lambda, p and tau, MNIST, symmetric 0.8",
        _sweep("mnist", 0.8, "ce_sr", weight=(0, 1, 2, 4, 10, 30, 100), **SWEPT),
    ),
    "warmup": Experiment(
        "CE+SR without and with an epoch of warm-up, MNIST, symmetric 0.8",
        (
            ("mnist", "ce_sr", {"noise_rate": 0.8}),
            ("mnist", "ce_sr", {"noise_rate": 0.8, "sr": {"warmup": 1}}),
        ),
    ),
    "nlnl": Experiment(
        "NLNL at the budget behind the paper's number, MNIST, symmetric 0.6",
        (("mnist", "nlnl", {"noise_rate": 0.6, "budget": "nlnl"}),),
    ),
    "focal": Experiment(
        "FL and FL+SR, factor in the gradient or not, MNIST, symmetric 0.8",
        tuple(
            ("mnist", method, {"noise_rate": 0.8, "loss_params": {"detach": detach}})
            for method in ("fl", "fl_sr")
            for detach in (True, False)
        ),
    ),
    "people": Experiment(
        "Labels that people gave: CIFAR-10N, worse",
        _grid(["cifar10"], ("ce", "ce_sr"), [{"noise": "human", "human_labels": "worse"}]),
    ),
    "methods": Experiment(
        "Every method, MNIST, symmetric 0.6",
        _grid(["mnist"], (*METHODS, *OTHER_LOSSES), _noise("symmetric", 0.6)),
    ),
    "memorising": Experiment(
        "Last epoch beside best, CIFAR-10, symmetric 0.6",
        _grid(["cifar10"], ("ce", "ce_sr"), _noise("symmetric", 0.6)),
    ),
    "precision": Experiment(
        "bf16 beside float32, MNIST, symmetric 0.8", _grid(["mnist"], ("ce", "ce_sr"), MNIST_08)
    ),
    "gce_floor": Experiment(
        "GCE+SR without and with the floor of u_y, MNIST, symmetric 0.8",
        tuple(
            ("mnist", "gce_sr", {"noise_rate": 0.8, "loss_params": {"floor": floor}})
            for floor in (0.0, 1e-7)
        ),
    ),
}


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
