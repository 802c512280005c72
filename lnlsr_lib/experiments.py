"""Figure or table to the list of runs it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lnlsr_lib.protocol import PROFILES, Profile, make_spec
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import Store

__all__ = ["EXPERIMENTS", "Experiment", "best_profile", "experiment_specs"]


@dataclass(frozen=True)
class Experiment:
    """One figure or table: its title, and its runs for one profile and one seed."""

    title: str
    specs: Callable[[Profile, int], list[RunSpec]]


def _fig3(profile: Profile, seed: int) -> list[RunSpec]:
    methods = ("ce", "ce_sr", "fl", "fl_sr", "gce", "gce_sr")
    return [make_spec("mnist", method, 0.8, profile=profile, seed=seed) for method in methods]


def _precision(profile: Profile, seed: int) -> list[RunSpec]:
    return [
        make_spec("mnist", method, 0.8, profile=profile, seed=seed) for method in ("ce", "ce_sr")
    ]


EXPERIMENTS: dict[str, Experiment] = {
    "fig3": Experiment("Figure 3: sparse rate and test accuracy, MNIST, symmetric 0.8", _fig3),
    "precision": Experiment("bf16 beside float32, MNIST, symmetric 0.8", _precision),
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


def best_profile(
    name: str,
    store: Store,
    seeds: Sequence[int] = (1,),
    precisions: Sequence[str | None] = (None,),
) -> Profile | None:
    """The profile with the largest budget whose runs are all stored, or None.

    With ``precisions`` they must be stored in each of these; None is any.
    """
    for profile in PROFILES:
        specs = experiment_specs(name, profile, seeds)
        if not any(store.missing(specs, choice) for choice in precisions):
            return profile
    return None
