"""The paper's protocol as data: (data set, method, noise, profile, seed) to `RunSpec`.

Every constant has its source beside it:
P, the paper's text or tables; C, the authors' public code (github.com/hitcszx/lnl_sr); ours.
"""

from __future__ import annotations

from typing import Any, Literal

from lnlsr_lib.spec import RunSpec, SparseSpec

__all__ = ["METHODS", "PROFILES", "Profile", "make_spec"]

Profile = Literal["paper", "lite", "smoke"]
PROFILES: tuple[Profile, ...] = ("paper", "lite", "smoke")

# The paper's name of each method, in the order of its tables.
METHODS = {
    "ce": "CE",
    "fl": "FL",
    "gce": "GCE",
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
}

LOSS_PARAMS: dict[str, dict[str, dict[str, float]]] = {
    "mnist": {
        "ce": {},
        "fl": {"gamma": 0.5},  # C
        "gce": {"q": 0.7, "floor": 1e-7},  # C
        "ce_sr": {},
        "fl_sr": {"gamma": 0.5},  # C
        "gce_sr": {"q": 0.01, "floor": 1e-7},  # C
    },
}

_MNIST_SR = SparseSpec(temperature=0.1, p=0.1, weight=4, growth=2, every=5, unit_logits=False)  # C
SPARSE: dict[str, dict[str, SparseSpec]] = {
    "mnist": {
        "ce_sr": _MNIST_SR,  # C
        "fl_sr": _MNIST_SR,  # C
        "gce_sr": _MNIST_SR.model_copy(update={"temperature": 0.5, "weight": 3.0}),  # C
    },
}

# What a reduced profile changes; all of it ours.
REDUCED: dict[str, dict[str, dict[str, Any]]] = {
    "lite": {"mnist": {"train_size": 10_000, "epochs": 20}},
    "smoke": {"mnist": {"dataset": "digits", "epochs": 3}},
}


def make_spec(
    dataset: str,
    method: str,
    noise_rate: float,
    *,
    noise: str = "symmetric",
    profile: Profile = "paper",
    seed: int = 1,
) -> RunSpec:
    """The run that the paper's protocol asks for.

    Args:
        dataset: "mnist".
        method: one of ``METHODS``.
        noise_rate: in [0, 1]; 0 gives clean labels.
        noise: "symmetric".
        profile: "paper" (all data, the paper's epochs), "lite" (10,000 images, 20 epochs) or
            "smoke" (scikit-learn's digits in the data set's place, 3 epochs).
        seed: of everything random, >= 0.

    Raises:
        ValueError: an unknown data set, method, noise or profile, or a value out of its range.
    """
    for what, name, known in (
        ("data set", dataset, TRAINING),
        ("method", method, METHODS),
        ("noise", noise, ("clean", "symmetric")),
        ("profile", profile, PROFILES),
    ):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; there are: {', '.join(known)}")
    training = TRAINING[dataset]
    fields: dict[str, Any] = {
        "dataset": dataset,
        "method": method,
        "loss": method.removesuffix("_sr"),
        "loss_params": LOSS_PARAMS[dataset][method],
        "sr": SPARSE[dataset].get(method),
        "noise": noise if noise_rate else "clean",
        "noise_rate": noise_rate,
        "epochs": training["paper_epochs"],
        "profile": profile,
        "seed": seed,
    }
    return RunSpec(**training | fields | REDUCED.get(profile, {}).get(dataset, {}))
