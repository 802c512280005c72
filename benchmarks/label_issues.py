"""How well wrong labels are found: on MNIST with CE and CE+SR, our margins beside cleanlab.

    python benchmarks/label_issues.py [--noise symmetric asymmetric] [--rate 0.4]
    python benchmarks/label_issues.py --stored

Trains CE and CE+SR at the lite budget, takes the margins of the training images after every epoch,
and compares what is flagged with the truth. cleanlab gets the last epoch's outputs, the same that
our margin is taken from; with CE+SR both the softmax of the logits and the sharpened one, which is
what was trained. Writes ``results/benchmarks/label_issues.csv`` and, for the first k of each
ranking, ``label_issues_curves.csv``.

With ``--stored`` nothing is trained: the margins of every training image are those that the stored
runs kept, on MNIST and CIFAR-10N. Probabilities they did not keep, so cleanlab has no part in it.
Writes ``results/benchmarks/label_issues_stored.csv``.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues as cleanlab_issues
from cleanlab.rank import get_label_quality_scores
from report import write_rows
from sklearn.metrics import average_precision_score
from torch import Tensor

from lnlsr_book.report import follows_protocol
from lnlsr_lib.data import Dataset, load_dataset
from lnlsr_lib.feed import given_labels, selection
from lnlsr_lib.label_issues import find_label_issues, margins
from lnlsr_lib.models import build_model
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import PROTOCOL_VERSION, RunSpec
from lnlsr_lib.store import Store
from lnlsr_lib.trainer import train

POINTS = 100  # of a curve


@torch.no_grad()
def outputs(spec: RunSpec, weights: dict[str, Any], data: Dataset, images: Tensor) -> Tensor:
    """Logits of ``images``, (N, K), in test mode."""
    model = build_model(spec.model, data.num_classes, 0)
    model.load_state_dict(weights)
    model.eval()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return torch.cat([model((part.float() / 255 - mean) / std) for part in images.split(500)])


def detectors(spec: RunSpec, data: Dataset, index: Tensor, labels: Tensor) -> dict[str, Any]:
    """Train, and return what each way flags and how it ranks: {name: (flagged, suspicion)}."""
    images, total, last = data.train_images[index], torch.zeros(len(index)), torch.empty(0)

    def record(state: dict[str, Any]) -> None:
        nonlocal last
        last = outputs(spec, state["models"][0], data, images)
        total.add_(margins(last, labels))

    train(spec, data, device="cpu", on_epoch=record)
    found: dict[str, Any] = {
        "margin": (find_label_issues(margins(last, labels)), -margins(last, labels)),
        "mean margin": (find_label_issues(total), -total),
    }
    shown = {"cleanlab": last}
    if spec.sr is not None:
        shown["cleanlab, sharpened"] = last / spec.sr.temperature
    for name, logits in shown.items():
        probabilities = logits.double().softmax(dim=1).numpy()
        flagged = cleanlab_issues(
            labels.numpy(), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
        quality = get_label_quality_scores(labels.numpy(), probabilities)
        found[name] = torch.from_numpy(flagged), -torch.from_numpy(quality)
    return found


def quality(name: str, flagged: Tensor, suspicion: Tensor, wrong: Tensor) -> dict[str, object]:
    """What is right of one way's list, and its average precision, beside the truth."""
    hits = int(wrong[flagged].sum())
    shares = {
        "precision": hits / max(1, len(flagged)),
        "recall": hits / int(wrong.sum()),
        "average_precision": average_precision_score(wrong.numpy(), suspicion.numpy()),
    }
    rounded = {key: round(float(value), 4) for key, value in shares.items()}
    return {"detector": name, "flagged": len(flagged)} | rounded


def stored() -> list[dict[str, object]]:
    """The rows of the runs by the paper's protocol that kept margins; two of each."""
    load, store = cache(load_dataset), Store()
    rows: list[dict[str, object]] = []
    for run in store.runs():
        spec = run.spec
        kept = {} if run.details is None else store.details(run)
        if "train_mean_margin" not in kept or spec.noise == "clean" or spec.profile == "smoke":
            continue
        if not follows_protocol(spec):  # sweeps, variants
            continue
        data = load(spec.dataset)
        index = selection(spec, data.train_labels)
        wrong = given_labels(spec, data, index) != data.train_labels[index]
        about = {
            "dataset": spec.dataset, "noise": spec.noise, "rate": spec.noise_rate,
            "method": spec.method, "profile": spec.profile,
            "images": len(index), "wrong": int(wrong.sum()), "epochs": spec.epochs,
            "seed": spec.seed, "run": spec.id,
            "precision_of_run": run.provenance["precision"], "protocol": PROTOCOL_VERSION,
        }  # fmt: skip
        for name, key in (("margin", "train_margin"), ("mean margin", "train_mean_margin")):
            margin = torch.from_numpy(kept[key]).float()
            rows.append(about | quality(name, find_label_issues(margin), -margin, wrong))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stored", action="store_true", help="of the stored runs; no training")
    parser.add_argument("--noise", nargs="+", default=["symmetric", "asymmetric"])
    parser.add_argument("--rate", type=float, default=0.4)
    args = parser.parse_args()
    if args.stored:
        write_rows("label_issues_stored", stored())
        return
    data = load_dataset("mnist")
    rows: list[dict[str, object]] = []
    curves: list[dict[str, object]] = []
    for noise in args.noise:
        for method in ("ce", "ce_sr"):
            spec = make_spec("mnist", method, args.rate, noise=noise, profile="lite")
            index = selection(spec, data.train_labels)
            labels = given_labels(spec, data, index)
            wrong = labels != data.train_labels[index]
            start = time.perf_counter()
            found = detectors(spec, data, index, labels)
            run = {
                "noise": noise,
                "rate": args.rate,
                "method": method,
                "images": len(index),
                "wrong": int(wrong.sum()),
                "epochs": spec.epochs,
                "seed": spec.seed,
                "run": spec.id,
                "protocol": PROTOCOL_VERSION,
                "seconds": round(time.perf_counter() - start, 1),
                "cleanlab": version("cleanlab"),
            }
            for name, (flagged, suspicion) in found.items():
                rows.append(run | quality(name, flagged, suspicion, wrong))
                ranked = wrong[suspicion.argsort(descending=True, stable=True)].cumsum(0)
                for k in np.linspace(len(index) / POINTS, len(index), POINTS).astype(int):
                    curves.append(
                        {
                            "noise": noise,
                            "method": method,
                            "detector": name,
                            "first": int(k),
                            "precision": round(int(ranked[k - 1]) / int(k), 4),
                            "recall": round(int(ranked[k - 1]) / int(wrong.sum()), 4),
                        }
                    )
            print(*rows[-len(found) :], sep="\n", flush=True)
        write_rows("label_issues", rows)
        write_rows("label_issues_curves", curves)


if __name__ == "__main__":
    main()
