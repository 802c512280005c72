"""The paper's protocol: (data set, method, noise, profile, seed) to `RunSpec`.

Every constant stands in ``protocol.csv``, with its source beside it:
P, the paper's text or tables; C, the authors' public code (github.com/hitcszx/lnl_sr); A, the
public code of APL (Ma et al., ICML 2020); M, Menon et al., ICLR 2020; S, SCE's own code; ours.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lnlsr_lib.data import SHAPES
from lnlsr_lib.losses import LOSSES
from lnlsr_lib.spec import RunSpec

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


def _table() -> dict[tuple[str, str, str], dict[str, Any]]:
    """The values of ``protocol.csv`` by parameter, under each part, data set and method."""
    found: dict[tuple[str, str, str], dict[str, Any]] = defaultdict(dict)
    with Path(__file__).with_name("protocol.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            value: Any = row["value"]
            with contextlib.suppress(ValueError):  # a name
                value = json.loads(value)
            found[row["part"], row["dataset"], row["method"]][row["parameter"]] = value
    return dict(found)


# The parts: training, and what table 5 and NLNL's budget change of it; loss, in the form in which
# the published numbers were made; sr, and what some conditions change of it; lite and smoke.
CONSTANTS = _table()
TRAINING = {dataset: of for (part, dataset, _), of in CONSTANTS.items() if part == "training"}
BUDGETS = ("paper", "nlnl")
# Of the symmetric noise in the place of human labels, and of a matrix for other classes; ours.
SMOKE_HUMAN_RATE = 0.4


def _constants(part: str, dataset: str, *methods: str) -> dict[str, Any]:
    """Those of the first method that has any, on this data set or else on every; or none."""
    places = ((part, name, method) for method in methods or [""] for name in (dataset, "every"))
    return next((dict(CONSTANTS[place]) for place in places if place in CONSTANTS), {})


def _datasets(part: str) -> list[str]:
    return [dataset for name, dataset, _ in CONSTANTS if name == part]


def method_name(method: str) -> str:
    """How a method is written: "CE+SR" for "ce_sr"."""
    base = method.removesuffix("_sr")
    return METHODS.get(method, base.upper().replace("_", "+") + "+SR" * (base != method))


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
        budget: "paper", or "nlnl" for the epochs and rates of APL's runs of NLNL, from which
            13 of the paper's 27 cells come: 8 to 14 times the epochs of the other methods.
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
    _known("budget", budget, BUDGETS)
    if budget == "nlnl" and (method != "nlnl" or dataset not in _datasets("nlnl")):
        on = ", ".join(_datasets("nlnl"))
        raise ValueError(f"budget {budget!r} goes with method 'nlnl' on {on}")
    fields: dict[str, Any] = {
        "dataset": dataset,
        "method": method,
        "loss": loss,
        "loss_params": _constants("loss", dataset, method, loss) | dict(loss_params or {}),
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
        fields["sr"] = _constants("sr", dataset, method, "ce_sr")  # ours for other losses
        if noise == "asymmetric":
            fields["sr"] |= _constants("sr, asymmetric", dataset)
        if imbalance is not None:
            fields["sr"] |= _constants("sr, imbalance", dataset)
        fields["sr"] |= sr or {}
    elif sr:
        raise ValueError(f"method {method!r} has no SR whose parameters could be changed")
    if method == "co_teaching":
        if noise in ("human", "transition") and profile != "smoke":
            raise ValueError(f"Co-teaching has to know the noise rate, and {noise} noise has none")
        fields["forget_rate"] = noise_rate  # Han et al., NeurIPS 2018
    if imbalance is not None:
        if dataset not in _datasets("sr, imbalance"):
            on = " and ".join(_datasets("sr, imbalance"))
            raise ValueError(f"imbalance goes with {on}, got {dataset!r}")
        fields |= _constants("imbalance", dataset)
    if budget == "nlnl":
        fields |= _constants("nlnl", dataset)
        fields["paper_epochs"] = fields["epochs"]
    fields |= _constants(profile, dataset)
    unfit = transition is not None and len(transition) != SHAPES["digits"][-1]
    if profile == "smoke" and (noise == "human" or unfit):
        fields |= {"noise": "symmetric", "noise_rate": SMOKE_HUMAN_RATE}
        fields |= {"human_labels": None, "transition": None}
    return RunSpec(**TRAINING[dataset] | fields)
