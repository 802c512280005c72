"""What the first cells of every notebook need: checked parameters, and a profile."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from lnlsr_lib.cost import duration, estimate
from lnlsr_lib.experiments import best_profile, experiment_specs
from lnlsr_lib.protocol import PROFILES, Profile
from lnlsr_lib.store import Store

__all__ = ["check_parameters", "choose_profile"]

# Names that IPython puts into every notebook.
_IPYTHON = {"In", "Out", "exit", "quit", "open", "get_ipython"}


def _fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the annotated type: a plain class, or ``list[...]`` of one."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check_parameters(namespace: Mapping[str, Any]) -> None:
    """Refuse parameters that a notebook does not have, or of another type than it declares.

    Call it with ``globals()`` right behind the cell tagged ``parameters``: the annotated names
    there are the parameters. Papermill itself injects any name and any type without a word.

    Raises:
        TypeError: a value is not of its annotated type.
        ValueError: a name is set that is not declared.
    """
    declared: dict[str, Any] = namespace.get("__annotations__", {})
    for name, value in namespace.items():
        hidden = name.startswith("_") or name in _IPYTHON
        code = isinstance(value, types.ModuleType | types.FunctionType | type)
        if name not in declared and not hidden and not code:
            raise ValueError(f"unknown parameter {name!r}; there are: {', '.join(declared)}")
    for name, kind in declared.items():
        if not _fits(namespace[name], kind):
            wanted = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
            raise TypeError(
                f"parameter {name!r} must be {wanted}, got "
                f"{type(namespace[name]).__name__}: {namespace[name]!r}"
            )


def choose_profile(
    name: str,
    profile: str,
    seeds: Sequence[int],
    store: Store,
    precisions: Sequence[str | None] = (None,),
    device: str = "auto",
) -> Profile:
    """The profile to show: the one that is asked for, or the best one whose runs are stored.

    With "auto" and nothing stored it is "smoke", said aloud: hours of training never start unasked.

    Args:
        name: the experiment, such as "fig3".
        profile: "auto", "paper", "lite" or "smoke".
        seeds: those wanted.
        store: the results.
        precisions: in which the runs must be stored, each; None or "auto" is any.
        device: where missing runs would be trained.

    Raises:
        ValueError: an unknown experiment or profile.
    """
    precisions = [None if choice == "auto" else choice for choice in precisions]
    if profile == "auto":
        best = best_profile(name, store, seeds, precisions)
        if best is None:
            print(
                f"NOTHING STORED for {name} with seeds {list(seeds)}: this is a SMOKE RUN on "
                "scikit-learn's digits. It shows that the code works, and nothing about the paper."
            )
        return best or "smoke"
    if profile not in PROFILES:
        raise ValueError(f"profile must be auto, {', '.join(PROFILES)}, got {profile!r}")
    specs = experiment_specs(name, profile, seeds)
    for choice in precisions:
        missing = store.missing(specs, choice)
        if missing and profile != "smoke":
            costs = estimate(missing, device=device, precision=choice or "auto")
            print(
                f"{len(missing)} runs of profile {profile} are not stored and will be trained now, "
                f"in about {duration(sum(cost.total for cost in costs))} on this machine."
            )
    return profile
