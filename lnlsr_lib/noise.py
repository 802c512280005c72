"""Label noise and class imbalance: who gets a wrong label, and which images are left out.

Convention throughout: ``transition[i, j]`` is the probability that true class i gets label j, so
rows sum to 1. Everything here lives on the CPU and draws from a generator that is handed in.

:func:`corrupt_labels` draws from any transition matrix. :func:`noisy_labels` knows the paper's
kinds of noise by name, in two variants: "paper", as the paper says it, and "official", as the
authors' public code does it, which is not the same thing:

- CIFAR-10, asymmetric: the flips come one source class after another, each on the labels that the
  one before left behind, so some cats become dogs and then cats again. At rate 0.4, 24% of the
  cats and 40% of the dogs end up wrong, and 18.4% of all labels (each on average), not 20%.
- CIFAR-100, asymmetric: a super-class is taken to be five consecutive class ids. The ids are in
  alphabetical order, so 6 of the 100 flips stay inside a true super-class.
- MNIST, symmetric and asymmetric: the run's seed does not reach the noise, so all runs at one rate
  share the same labels.
- CIFAR, symmetric: a fixed number of labels flips in every class, rather than each label by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lnlsr_lib.checks import check_generator, check_labels, check_range, check_whole

__all__ = [
    "ASYMMETRIC_FLIPS",
    "CIFAR100_SUPER_CLASSES",
    "OFFICIAL_CIFAR100_FLIPS",
    "OFFICIAL_MNIST_SEED",
    "ImbalanceKind",
    "NoiseKind",
    "NoiseVariant",
    "asymmetric_transition",
    "corrupt_labels",
    "expected_transition",
    "imbalanced_counts",
    "imbalanced_subset",
    "noisy_labels",
    "pair_transition",
    "realised_transition",
    "symmetric_transition",
]

#: Kind of label noise.
NoiseKind = Literal["clean", "symmetric", "asymmetric"]
#: The noise as the paper says it, or as its authors' code does it.
NoiseVariant = Literal["paper", "official"]
#: Kind of class imbalance.
ImbalanceKind = Literal["long-tailed", "step"]

# fmt: off
#: The 20 super-classes of CIFAR-100, five class ids each, in the order of the data set's own page.
#: Ids follow the alphabet; the first super-class has beaver, dolphin, otter, seal and whale.
#:
#: :meta hide-value:
CIFAR100_SUPER_CLASSES: tuple[tuple[int, ...], ...] = (
    # aquatic mammals, fish, flowers, food containers
    (4, 30, 55, 72, 95), (1, 32, 67, 73, 91), (54, 62, 70, 82, 92), (9, 10, 16, 28, 61),
    # fruit and vegetables, household electrical devices, household furniture, insects
    (0, 51, 53, 57, 83), (22, 39, 40, 86, 87), (5, 20, 25, 84, 94), (6, 7, 14, 18, 24),
    # large carnivores, large man-made outdoor things, large natural outdoor scenes, large omnivores
    # and herbivores
    (3, 42, 43, 88, 97), (12, 17, 37, 68, 76), (23, 33, 49, 60, 71), (15, 19, 21, 31, 38),
    # medium-sized mammals, non-insect invertebrates, people, reptiles
    (34, 63, 64, 66, 75), (26, 45, 77, 79, 99), (2, 11, 35, 46, 98), (27, 29, 44, 78, 93),
    # small mammals, trees, vehicles 1, vehicles 2
    (36, 50, 65, 74, 80), (47, 52, 56, 59, 96), (8, 13, 48, 58, 90), (41, 69, 81, 85, 89),
)
# fmt: on


def _cycles(groups: Iterable[Sequence[int]]) -> dict[int, int]:
    """Each class to the next of its group, the last to the first."""
    return {group[i - 1]: group[i] for group in groups for i in range(len(group))}


_MNIST_FLIPS = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}

#: The paper's asymmetric flips (appendix B), source class to target class, by data set.
#: scikit-learn's digits stand in for MNIST. The flips of CIFAR-10 are in the order in which the
#: authors' code applies them (truck to automobile, bird to airplane, cat to dog, dog to cat, deer
#: to horse).
#:
#: :meta hide-value:
ASYMMETRIC_FLIPS: dict[str, dict[int, int]] = {
    "mnist": _MNIST_FLIPS,
    "digits": _MNIST_FLIPS,
    "cifar10": {9: 1, 2: 0, 3: 5, 5: 3, 4: 7},
    "cifar100": _cycles(CIFAR100_SUPER_CLASSES),
}

#: The flips that the authors' code applies to CIFAR-100 instead.
#:
#: :meta hide-value:
OFFICIAL_CIFAR100_FLIPS = _cycles(range(first, first + 5) for first in range(0, 100, 5))

#: Stands in for the run's generator where the authors' code ignores the seed. The number is theirs,
#: the random numbers that follow from it are not.
OFFICIAL_MNIST_SEED = 0


def _check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def symmetric_transition(num_classes: int, noise_rate: float) -> Tensor:
    """Symmetric noise: 1 - eta on the diagonal, eta / (K - 1) off it.

    Args:
        num_classes: K >= 2.
        noise_rate: eta in [0, 1], the probability that a label is wrong.

    Returns:
        (K, K), float64, rows sum to 1.

    Raises:
        TypeError, ValueError: K < 2 or eta outside [0, 1].

    Source: the paper, section 2.1.
    """
    num_classes = check_whole("num_classes", num_classes, 2)
    noise_rate = check_range("noise_rate", noise_rate, 0.0, 1.0)
    off = noise_rate / (num_classes - 1)
    transition = torch.full((num_classes, num_classes), off, dtype=torch.float64)
    return transition.fill_diagonal_(1.0 - noise_rate)


def pair_transition(num_classes: int, flips: Mapping[int, int], noise_rate: float) -> Tensor:
    """Asymmetric noise: a source class goes to its one target with probability eta, or stays.

    Args:
        num_classes: K >= 2.
        flips: source class to target class, both in [0, K - 1] and different. The others stay.
        noise_rate: eta in [0, 1].

    Returns:
        (K, K), float64, rows sum to 1; exactly 0 where there is no flip.

    Raises:
        TypeError, ValueError: K < 2, a flip that is none, or eta outside [0, 1].

    Source: the paper, appendix B.
    """
    num_classes = check_whole("num_classes", num_classes, 2)
    noise_rate = check_range("noise_rate", noise_rate, 0.0, 1.0)
    transition = torch.eye(num_classes, dtype=torch.float64)
    for source, target in flips.items():
        whole = all(type(k) is int or isinstance(k, np.integer) for k in (source, target))
        if not whole or source == target or not {source, target} <= set(range(num_classes)):
            raise ValueError(
                f"flips must go from one class in [0, {num_classes - 1}] to another, "
                f"got {source!r} to {target!r}"
            )
        transition[source, source] = 1.0 - noise_rate
        transition[source, target] = noise_rate
    return transition


def asymmetric_transition(dataset: str, noise_rate: float) -> Tensor:
    """The paper's asymmetric noise of one data set: :data:`ASYMMETRIC_FLIPS` with probability eta.

    Args:
        dataset: "mnist", "digits", "cifar10" or "cifar100".
        noise_rate: eta in [0, 1]: of the classes that flip, not of all labels.

    Returns:
        (K, K), float64, rows sum to 1.

    Raises:
        TypeError, ValueError: another data set, or eta outside [0, 1].

    Source: the paper, appendix B. Its text leaves open in which order a CIFAR-100 super-class is
    gone around; the order of class ids is ours.
    """
    _check_choice("dataset", dataset, ASYMMETRIC_FLIPS)
    num_classes = 100 if dataset == "cifar100" else 10
    return pair_transition(num_classes, ASYMMETRIC_FLIPS[dataset], noise_rate)


def expected_transition(
    dataset: str,
    num_classes: int,
    kind: NoiseKind,
    noise_rate: float,
    variant: NoiseVariant = "paper",
) -> Tensor:
    """What :func:`realised_transition` of :func:`noisy_labels` is on average.

    The official CIFAR-10 matrix is the product of the five single flips in order. Where the authors
    flip exact counts, a count that is not whole is cut off, and the rate ends up lower by less than
    one label per class.

    Args:
        dataset, num_classes, kind, noise_rate, variant: as for :func:`noisy_labels`.

    Returns:
        (K, K), float64, rows sum to 1.

    Raises:
        TypeError, ValueError: as for :func:`noisy_labels`.
    """
    _check_choice("kind", kind, get_args(NoiseKind))
    _check_choice("variant", variant, get_args(NoiseVariant))
    if kind == "clean":
        check_range("noise_rate of clean labels", noise_rate, 0.0, 0.0)
    elif variant == "official":
        _check_choice("dataset of the official variant", dataset, ASYMMETRIC_FLIPS)
    if kind != "asymmetric":
        return symmetric_transition(num_classes, noise_rate)
    transition = asymmetric_transition(dataset, noise_rate)
    if len(transition) != num_classes:
        raise ValueError(f"{dataset} has {len(transition)} classes, got num_classes={num_classes}")
    if variant == "official" and dataset == "cifar100":
        return pair_transition(100, OFFICIAL_CIFAR100_FLIPS, noise_rate)
    if variant == "official" and dataset == "cifar10":
        transition = torch.eye(10, dtype=torch.float64)
        for source, target in ASYMMETRIC_FLIPS["cifar10"].items():
            transition = transition @ pair_transition(10, {source: target}, noise_rate)
    return transition


def _check_transition(transition: Tensor) -> None:
    if not isinstance(transition, Tensor) or not transition.is_floating_point():
        raise ValueError(f"transition must be a (K, K) tensor, floating; got {transition!r}")
    if transition.ndim != 2 or not 2 <= transition.shape[0] == transition.shape[1]:
        raise ValueError(f"transition must be (K, K), K >= 2, got {tuple(transition.shape)}")
    sums = transition.double().sum(dim=1)
    # ``not (... >= 0).all()`` rather than ``(... < 0).any()``: it refuses NaN as well.
    if not bool((transition >= 0).all()) or not bool(((sums - 1).abs() < 1e-6).all()):
        raise ValueError("transition must be row-stochastic: entries >= 0, every row sums to 1")


def corrupt_labels(labels: Tensor, transition: Tensor, generator: torch.Generator | int) -> Tensor:
    """Draw each sample's noisy label from its true class's row, independently.

    An entry of ``transition`` that is exactly 0 is never drawn.

    Args:
        labels: true labels, (N,), int64, on the CPU.
        transition: (K, K), floating, row-stochastic; ``[i, j]`` = P(label j | true class i).
        generator: a CPU generator, or a seed; the draws come from it alone.

    Returns:
        Noisy labels, (N,), int64; ``labels`` is left as it was.

    Raises:
        TypeError, ValueError: bad labels, or a transition that is not row-stochastic.
    """
    _check_transition(transition)
    check_labels(labels, len(transition))
    cumulative = transition.double().cumsum(dim=1)
    # Dividing by the last entry makes it, and any trailing ones of probability 0, exactly 1.
    cumulative = cumulative / cumulative[:, -1:]
    generator = check_generator(generator)
    draws = torch.rand(len(labels), 1, dtype=torch.float64, generator=generator)[:, 0]
    noisy = torch.empty_like(labels)
    counts = labels.bincount(minlength=len(transition)).tolist()
    # class by class, so that no row is ever copied to each of its samples
    for row, places in zip(cumulative, labels.argsort().split(counts), strict=True):
        noisy[places] = torch.searchsorted(row, draws[places], right=True)
    return noisy


def realised_transition(labels: Tensor, noisy_labels: Tensor, num_classes: int) -> Tensor:
    """The share of each true class that carries each label: what the noise came out as.

    Args:
        labels: true labels, (N,), int64.
        noisy_labels: given labels, (N,), int64.
        num_classes: their number, K.

    Returns:
        (K, K), float64; a class with no sample has a row of zeros.

    Raises:
        TypeError, ValueError: bad labels.
    """
    check_labels(labels, num_classes)
    check_labels(noisy_labels, num_classes, len(labels))
    cells = (labels * num_classes + noisy_labels).bincount(minlength=num_classes**2)
    counts = cells.view(num_classes, num_classes).double()
    return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)


def _draw_share(labels: Tensor, source: int, share: float, generator: torch.Generator) -> Tensor:
    """Where ``share`` of the labels ``source`` are, drawn without replacement; cut off to whole."""
    places = (labels == source).nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)[: int(share * len(places))]]


def noisy_labels(
    labels: Tensor,
    dataset: str,
    num_classes: int,
    kind: NoiseKind,
    noise_rate: float,
    generator: torch.Generator | int,
    variant: NoiseVariant = "paper",
) -> Tensor:
    """Corrupt labels with the noise of the paper, or with that of its authors' code.

    The paper's noise is drawn by :func:`corrupt_labels`, each label on its own. The module's first
    lines say how the official variant differs.

    Args:
        labels: true labels, (N,), int64, on the CPU.
        dataset: a key of :data:`ASYMMETRIC_FLIPS`; any name for clean labels, and for symmetric
            noise of the paper's variant.
        num_classes: K >= 2.
        kind: "clean" (a copy comes back), "symmetric" or "asymmetric".
        noise_rate: eta in [0, 1]; 0 for clean labels.
        generator: a CPU generator, or a seed; the draws come from it alone. The official noise of
            MNIST and of digits leaves it as it is and starts from :data:`OFFICIAL_MNIST_SEED`.
        variant: "paper" or "official".

    Returns:
        Noisy labels, (N,), int64; ``labels`` is left as it was.

    Raises:
        TypeError, ValueError: bad labels, a kind, variant or data set that is none of these, or a
            rate or a number of classes that does not fit.

    Source: the paper, appendix B, and the authors' code. Exact counts are int(eta n), cut off as
    theirs; for symmetric noise n is the class's own count (ours), where they take the mean count,
    the same on CIFAR.
    """
    transition = expected_transition(dataset, num_classes, kind, noise_rate, variant)
    check_labels(labels, num_classes)
    generator = check_generator(generator)
    noisy = labels.clone()
    if kind == "clean":
        return noisy
    if variant == "official" and dataset in ("mnist", "digits"):
        generator = torch.Generator().manual_seed(OFFICIAL_MNIST_SEED)
    elif variant == "official" and kind == "symmetric":
        for source in range(num_classes):
            places = _draw_share(labels, source, noise_rate, generator)
            steps = torch.randint(1, num_classes, (len(places),), generator=generator)
            noisy[places] = (source + steps) % num_classes
        return noisy
    elif variant == "official" and dataset == "cifar10":
        for source, target in ASYMMETRIC_FLIPS["cifar10"].items():
            noisy[_draw_share(noisy, source, noise_rate, generator)] = target
        return noisy
    return corrupt_labels(labels, transition, generator)


def imbalanced_counts(counts: Sequence[int], kind: ImbalanceKind, ratio: float) -> list[int]:
    """How many images of each class an imbalanced data set keeps.

    Long-tailed: int(n mu^(k / (K - 1))) of class k. Step: all of the first K // 2 classes,
    int(n mu) of the others.

    Args:
        counts: the images of each class, n, one number per class; every one at least 1.
        kind: "long-tailed" or "step".
        ratio: mu in (0, 1], the share that the last class keeps.

    Returns:
        One number per class; 0 where n mu is below 1.

    Raises:
        TypeError, ValueError: fewer than two classes, a class without images, another kind, or mu
            outside (0, 1].

    Source: the authors' code, int() included; that n is each class's own count is ours, theirs is
    the mean (the same on CIFAR).
    """
    _check_choice("kind", kind, get_args(ImbalanceKind))
    ratio = check_range("ratio", ratio, 0.0, 1.0, open_low=True)
    classes = len(counts)
    if classes < 2 or not all(isinstance(n, (int, np.integer)) and n >= 1 for n in counts):
        raise ValueError(f"counts must be two ints or more, each >= 1; got {list(counts)}")
    if kind == "step":
        return [n if k < classes // 2 else int(n * ratio) for k, n in enumerate(counts)]
    return [int(n * ratio ** (k / (classes - 1))) for k, n in enumerate(counts)]


def imbalanced_subset(
    labels: Tensor, kind: ImbalanceKind, ratio: float, generator: torch.Generator | int
) -> Tensor:
    """Which images an imbalanced data set keeps, at random within each class.

    Args:
        labels: (N,), int64, on the CPU, with at least one of every class; K is the highest plus 1.
        kind, ratio: as for :func:`imbalanced_counts`, which says how many.
        generator: a CPU generator, or a seed; the draws come from it alone.

    Returns:
        Indices into ``labels``, ascending, int64.

    Raises:
        TypeError, ValueError: as for :func:`imbalanced_counts`, or bad labels.
    """
    check_labels(labels, len(labels))  # with one of every class at least, K <= N
    kept = imbalanced_counts(labels.bincount().tolist(), kind, ratio)
    order = torch.randperm(len(labels), generator=check_generator(generator))
    chosen = [order[labels[order] == k][:count] for k, count in enumerate(kept)]
    return torch.cat(chosen).sort().values
