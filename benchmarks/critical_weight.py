"""How many classes SR keeps, by lambda over `critical_weight`, for twelve losses.

    python benchmarks/critical_weight.py [--data digits mnist made_up] [--epochs 25]

A perceptron of one hidden layer on scikit-learn's digits (K = 10), on 1,200 images of MNIST, and
on made-up data of 100 classes, points around 100 centres. tau = 0.5, plain logits, lambda constant.
For each loss, exponent p and optimiser, all noise rates, weights and seeds are trained at once, as
one batch of networks. The seconds are those of the processor, a run's share of its group.
Rows are appended to ``results/critical_weight/critical_weight.csv.gz`` as such a group finishes,
and groups that are there are not made again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import time
from typing import Any

import torch
from report import commit
from sklearn.datasets import load_digits
from torch import Tensor

from lnlsr_lib.data import load_dataset
from lnlsr_lib.device import device_name
from lnlsr_lib.losses import build_loss
from lnlsr_lib.noise import corrupt_labels, symmetric_transition
from lnlsr_lib.regularization import critical_weight, lp_norm, sharpen
from lnlsr_lib.store import results_folder

# Those of the paper's protocol on MNIST, but for PHuber-CE, whose curvature is 0 for t <= K.
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "gce": {"q": 0.7},
    "fl": {"gamma": 0.5},
    "sce": {"alpha": 0.1, "beta": 1.0},
    "phuber_ce": {},
    "mae": {},
    "rce": {},
    "nce": {},
    "nfl": {"gamma": 0.5},
    "apl": {"alpha": 1.0, "beta": 1.0},
    "nce_rce": {"alpha": 1.0, "beta": 1.0},
    "nfl_rce": {"alpha": 1.0, "beta": 1.0},
}
NOISE = (0.0, 0.5, 0.8)
# lambda over lambda_crit; where that is 0, over lambda_crit of CE
MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SEEDS = (1, 2, 3, 4, 5)
HIDDEN, BATCH, TEMPERATURE = 64, 100, 0.5
RATES = {"Adam": 3e-3, "SGD": 0.05}  # SGD with momentum 0.9
FIELDS = (
    "data", "loss", "parameters", "classes", "p", "optimizer", "noise_rate", "multiple", "seed",
    "weight", "critical_weight", "classes_kept", "classes_predicted", "test_accuracy", "epochs",
    "seconds", "device", "threads", "precision", "torch", "commit",
)  # fmt: skip


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,200 images to train and 597 to test: inputs and labels of each."""
    bunch = load_digits()
    x, y = torch.tensor(bunch.data).float() / 16, torch.tensor(bunch.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,200 images to train, as many as digits has, and 1,000 of the test images."""
    data = load_dataset("mnist")
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(data.train_labels), generator=generator)[:1200]
    x, test_x = data.train_images[index], data.test_images[:1000]
    x, test_x = (images.flatten(1).float() / 255 for images in (x, test_x))
    return x, data.train_labels[index], test_x, data.test_labels[:1000]


def made_up() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """100 classes in 64 dimensions, 20 points of each to train and 10 to test."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(100, 64, generator=generator)
    y = torch.arange(100).repeat(30)
    x = centres[y] + 0.7 * torch.randn(len(y), 64, generator=generator)
    return x[:2000], y[:2000], x[2000:], y[2000:]


def train(
    loss: Any, data: Any, p: float, optimizer: str, weights: Tensor, epochs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Train a network for each seed, noise rate and weight at once.

    Returns:
        Classes kept (recall above 0.05), classes predicted and test accuracy in percent, each
        (seeds, rates x weights).
    """
    x, y, test_x, test_y = data
    classes, runs = int(y.max()) + 1, len(NOISE) * len(weights)
    given, start, generators = [], [], []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        rates = [corrupt_labels(y, symmetric_transition(classes, e), generator) for e in NOISE]
        given.append(torch.stack(rates).repeat_interleave(len(weights), dim=0))  # (runs, N)
        first = torch.randn(x.shape[1], HIDDEN, generator=generator) * (2 / x.shape[1]) ** 0.5
        second = torch.randn(HIDDEN, classes, generator=generator) / HIDDEN**0.5
        start.append((first.expand(runs, -1, -1), second.expand(runs, -1, -1)))
        generators.append(generator)
    labels = torch.stack(given)  # (seeds, runs, N)
    seeds = len(SEEDS)
    first, second = (torch.stack([pair[i] for pair in start]).flatten(0, 1) for i in (0, 1))
    layers = [first, torch.zeros(seeds * runs, 1, HIDDEN), second]
    layers.append(torch.zeros(seeds * runs, 1, classes))
    layers = [layer.clone().requires_grad_() for layer in layers]
    strength = weights.repeat(len(NOISE)).repeat(seeds)  # lambda of each network
    steps = {"lr": RATES[optimizer]} | ({"momentum": 0.9} if optimizer == "SGD" else {})
    update = getattr(torch.optim, optimizer)(layers, **steps)

    def outputs(inputs: Tensor) -> Tensor:  # (seeds, B, D) to (networks, B, K)
        # The networks of a seed see the same inputs: one product with all their first layers.
        side_by_side = layers[0].view(seeds, runs, -1, HIDDEN).transpose(1, 2).flatten(2)
        first = (inputs @ side_by_side).unflatten(2, (runs, HIDDEN)).transpose(1, 2)
        hidden = (layers[1] + first.flatten(0, 1)).relu()
        return torch.baddbmm(layers[3], hidden, layers[2])

    for _ in range(epochs):
        orders = torch.stack([torch.randperm(len(y), generator=g) for g in generators])
        for index in orders.split(BATCH, dim=1):  # (seeds, B)
            picked = labels.gather(2, index[:, None].expand(-1, runs, -1)).flatten()
            z = sharpen(outputs(x[index]).flatten(0, 1), TEMPERATURE)
            norm = lp_norm(z.softmax(dim=1), p).view(seeds * runs, -1).mean(dim=1)
            fit = loss(z, picked).view(seeds * runs, -1).mean(dim=1)
            update.zero_grad()
            (fit + strength * norm).sum().backward()
            update.step()
    with torch.no_grad():
        predicted = outputs(test_x.expand(seeds, -1, -1)).argmax(dim=2)
    hits = (predicted == test_y).float()
    truth = torch.nn.functional.one_hot(test_y, classes).float()
    recall = hits @ truth / truth.sum(dim=0)
    found = torch.nn.functional.one_hot(predicted, classes).sum(dim=1) > 0
    figures = ((recall > 0.05).sum(dim=1), found.sum(dim=1), 100 * hits.mean(dim=1))
    return tuple(figure.view(seeds, runs) for figure in figures)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=["digits", "mnist", "made_up"])
    parser.add_argument("--p", nargs="+", type=float, default=[0.1, 0.01])
    parser.add_argument("--optimizers", nargs="+", default=["Adam", "SGD"])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--epochs", type=int, default=25)
    args = parser.parse_args()
    path = results_folder() / "critical_weight" / "critical_weight.csv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if path.exists():
        with gzip.open(path, "rt") as lines:
            done = {
                (r["data"], r["loss"], float(r["p"]), r["optimizer"]) for r in csv.DictReader(lines)
            }
    else:
        path.write_bytes(gzip.compress((",".join(FIELDS) + "\n").encode()))
    groups = itertools.product(args.data, args.optimizers, args.p, args.losses)
    for name, optimizer, p, loss_name in groups:
        if (name, loss_name, p, optimizer) in done:
            continue
        data = {"digits": digits, "mnist": mnist, "made_up": made_up}[name]()
        classes = int(data[1].max()) + 1
        params = {"t": 2.0 * classes} if loss_name == "phuber_ce" else LOSSES[loss_name]
        loss = build_loss(loss_name, reduction="none", **params)
        critical = critical_weight(loss, classes, p)
        unit = critical or critical_weight(build_loss("ce"), classes, p)
        weights = unit * torch.tensor(MULTIPLES)
        begin = time.process_time()
        kept, predicted, accuracy = train(loss, data, p, optimizer, weights, args.epochs)
        seconds = (time.process_time() - begin) / kept.numel()
        rows = []
        for (i, seed), (j, (rate, multiple)) in itertools.product(
            enumerate(SEEDS), enumerate(itertools.product(NOISE, MULTIPLES))
        ):
            row = {
                "data": name,
                "loss": loss_name,
                "parameters": ";".join(f"{key}={value}" for key, value in params.items()),
                "classes": classes,
                "p": p,
                "optimizer": optimizer,
                "noise_rate": rate,
                "multiple": multiple,
                "seed": seed,
                "weight": f"{multiple * unit:.6g}",
                "critical_weight": f"{critical:.6g}",
                "classes_kept": int(kept[i, j]),
                "classes_predicted": int(predicted[i, j]),
                "test_accuracy": f"{accuracy[i, j]:.2f}",
                "epochs": args.epochs,
                "seconds": f"{seconds:.3f}",
                "device": device_name(torch.device("cpu")),
                "threads": torch.get_num_threads(),
                "precision": "float32",
                "torch": torch.__version__,
                "commit": commit(),
            }
            rows.append([row[field] for field in FIELDS])
        with gzip.open(path, "at", newline="") as lines:
            csv.writer(lines, lineterminator="\n").writerows(rows)
        print(f"{name} {loss_name} p={p} {optimizer}: {seconds * kept.numel():.0f} s", flush=True)


if __name__ == "__main__":
    main()
