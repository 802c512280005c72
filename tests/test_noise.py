"""Label noise: rates within sampling error, impossible flips never drawn, seeds that matter.

And class imbalance: who is kept, and how many.
"""

import hashlib
from functools import partial
from itertools import chain, product
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lnlsr_lib.noise import (
    ASYMMETRIC_FLIPS,
    CIFAR100_SUPER_CLASSES,
    OFFICIAL_CIFAR100_FLIPS,
    OFFICIAL_MNIST_SEED,
    asymmetric_transition,
    corrupt_labels,
    expected_transition,
    imbalanced_counts,
    imbalanced_subset,
    noisy_labels,
    pair_transition,
    realised_transition,
    symmetric_transition,
)

CLASSES = {"mnist": 10, "digits": 10, "cifar10": 10, "cifar100": 100}
# fmt: off
CIFAR10_NAMES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]
# fmt: on
CIFAR100_NAMES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
# The coarse label of each fine class, as the data set's files have it.
# fmt: off
CIFAR100_COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
    6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
    5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]
# fmt: on
NOISES = list(product(CLASSES, ["symmetric", "asymmetric"], ["paper", "official"]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def balanced(k, per_class):
    return torch.arange(k).repeat_interleave(per_class)


@pytest.mark.parametrize("k", [2, 10, 100])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.8, 1.0])
def test_symmetric_transition_is_the_papers(k, rate):
    transition = symmetric_transition(k, rate)
    assert transition.dtype == torch.float64
    torch.testing.assert_close(transition.sum(dim=1), torch.ones(k, dtype=torch.float64))
    for i in range(k):
        for j in {0, 1, k - 1}:
            expected = 1 - rate if i == j else rate / (k - 1)
            assert transition[i, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8])
def test_realised_rates_are_within_sampling_error(rate, seed):
    k, per_class = 10, 4000
    labels = balanced(k, per_class)
    transition = symmetric_transition(k, rate)
    noisy = corrupt_labels(labels, transition, generator(seed))
    overall = (noisy != labels).double().mean().item()
    assert abs(overall - rate) < 4 * (rate * (1 - rate) / len(labels)) ** 0.5
    realised = realised_transition(labels, noisy, k)
    spread = (transition * (1 - transition) / per_class).sqrt()
    assert ((realised - transition).abs() < 5 * spread).all()  # 100 cells at once


def test_an_asymmetric_transition_goes_from_row_to_column():
    transition = torch.eye(4)
    transition[1] = torch.tensor([0.0, 0.25, 0.0, 0.75])
    labels = balanced(4, 10_000)
    realised = realised_transition(labels, corrupt_labels(labels, transition, generator()), 4)
    assert realised[0].tolist() == [1, 0, 0, 0]
    assert realised[1].tolist() == pytest.approx([0, 0.25, 0, 0.75], abs=5 * 0.0044)
    assert realised[1, 0] == realised[1, 2] == 0


def test_rate_0_changes_nothing_and_rate_1_everything():
    labels = balanced(10, 100)
    assert torch.equal(corrupt_labels(labels, symmetric_transition(10, 0.0), generator()), labels)
    noisy = corrupt_labels(labels, symmetric_transition(10, 1.0), generator())
    assert (noisy != labels).all()


def test_clean_labels_are_left_as_they_were():
    labels = balanced(10, 100)
    before = labels.clone()
    noisy = corrupt_labels(labels, symmetric_transition(10, 0.5), generator())
    assert torch.equal(labels, before)
    assert noisy.data_ptr() != labels.data_ptr()
    assert noisy.dtype == torch.int64
    assert noisy.shape == labels.shape


def test_seeds_matter_and_nothing_else_does():
    labels, transition = balanced(10, 100), symmetric_transition(10, 0.5)
    first = corrupt_labels(labels, transition, generator(1))
    torch.manual_seed(99)
    assert torch.equal(corrupt_labels(labels, transition, generator(1)), first)
    assert not torch.equal(corrupt_labels(labels, transition, generator(2)), first)


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    corrupt_labels(balanced(10, 10), symmetric_transition(10, 0.5), generator())
    assert torch.equal(torch.get_rng_state(), before)


@st.composite
def sparse_transitions(draw):
    """Square, row-stochastic, with exact zeros anywhere, in float32 or float64."""
    k = draw(st.integers(2, 8))
    entry = st.one_of(st.just(0.0), st.floats(1e-12, 1.0))
    row = st.lists(entry, min_size=k, max_size=k).filter(lambda values: sum(values) > 0)
    rows = torch.tensor([draw(row) for _ in range(k)], dtype=torch.float64)
    rows = rows / rows.sum(dim=1, keepdim=True)
    return rows.to(draw(st.sampled_from([torch.float32, torch.float64])))


@given(transition=sparse_transitions(), seed=st.integers(0, 2**32))
def test_exact_zeros_are_never_drawn(transition, seed):
    labels = balanced(len(transition), 50)
    noisy = corrupt_labels(labels, transition, generator(seed))
    assert (transition[labels, noisy] > 0).all()


@given(transition=sparse_transitions())
def test_exact_zeros_are_never_drawn_however_unlucky_the_draw(transition):
    """The smallest and the largest draw, and those that hit a boundary between classes."""
    edges = transition.double().cumsum(dim=1)
    edges = (edges / edges[:, -1:]).flatten()
    draws = torch.cat([torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), edges[edges < 1]])
    labels = torch.arange(len(transition)).repeat_interleave(len(draws))
    unlucky = draws.repeat(len(transition))[:, None]
    with mock.patch.object(torch, "rand", return_value=unlucky):
        noisy = corrupt_labels(labels, transition, generator())
    assert (transition[labels, noisy] > 0).all()


def test_realised_transition_counts_and_leaves_absent_classes_at_zero():
    labels = torch.tensor([0, 0, 0, 0, 2])
    noisy = torch.tensor([0, 0, 0, 1, 1])
    expected = torch.tensor([[0.75, 0.25, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    assert torch.equal(realised_transition(labels, noisy, 3), expected)


BAD_TRANSITIONS = {
    "no tensor": ([[1.0, 0.0], [0.0, 1.0]], r"must be a \(K, K\) tensor"),
    "rank 1": (torch.ones(2), r"must be \(K, K\), K >= 2"),
    "not square": (torch.full((2, 3), 1 / 3), r"must be \(K, K\), K >= 2"),
    "one class": (torch.ones(1, 1), r"must be \(K, K\), K >= 2"),
    "integers": (torch.eye(2, dtype=torch.int64), "floating"),
    "column-stochastic": (torch.tensor([[0.9, 0.2], [0.1, 0.8]]), "row-stochastic"),
    "negative": (torch.tensor([[1.1, -0.1], [0.0, 1.0]]), "row-stochastic"),
    "nan": (torch.tensor([[float("nan"), 0.5], [0.0, 1.0]]), "row-stochastic"),
    "row of zeros": (torch.tensor([[0.0, 0.0], [0.0, 1.0]]), "row-stochastic"),
}


@pytest.mark.parametrize("case", BAD_TRANSITIONS)
def test_bad_transitions_are_refused(case):
    transition, message = BAD_TRANSITIONS[case]
    with pytest.raises(ValueError, match=message):
        corrupt_labels(torch.tensor([0]), transition, generator())


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (torch.tensor([0, 2]), ValueError),
        (torch.tensor([-1]), ValueError),
        (torch.tensor([0.0]), TypeError),
    ],
)
def test_bad_labels_are_refused(labels, error):
    with pytest.raises(error, match="labels must be"):
        corrupt_labels(labels, torch.eye(2), generator())
    with pytest.raises(error, match="labels must be"):
        realised_transition(labels, torch.zeros(len(labels), dtype=torch.int64), 2)


@pytest.mark.parametrize("k", [1, 0, 2.0, True])
def test_bad_number_of_classes_is_refused(k):
    with pytest.raises(ValueError, match="num_classes must be an int >= 2"):
        symmetric_transition(k, 0.2)


def noisy(labels, dataset, kind, rate, variant="paper", seed=0):
    return noisy_labels(labels, dataset, CLASSES[dataset], kind, rate, generator(seed), variant)


def test_mnist_flips_are_the_papers():
    expected = torch.eye(10, dtype=torch.float64)
    for source, target in [(7, 1), (2, 7), (5, 6), (6, 5), (3, 8)]:
        expected[source, source], expected[source, target] = 0.75, 0.25
    assert torch.equal(asymmetric_transition("mnist", 0.25), expected)
    assert torch.equal(asymmetric_transition("digits", 0.25), expected)


def test_cifar10_flips_are_the_papers():
    flips = [
        (CIFAR10_NAMES[source], CIFAR10_NAMES[target])
        for source, target in ASYMMETRIC_FLIPS["cifar10"].items()
    ]
    assert flips == [  # in the order that the authors' code takes
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("cat", "dog"),
        ("dog", "cat"),
        ("deer", "horse"),
    ]


def test_cifar100_super_classes_hold_the_classes_of_their_names():
    groups = [names.split() for names in CIFAR100_NAMES.values()]
    ids = {name: number for number, name in enumerate(sorted(chain(*groups)))}
    assert len(ids) == 100
    assert [ids[name] for name in groups[0]] == [4, 30, 55, 72, 95]
    assert [[ids[name] for name in group] for group in groups] == [
        *map(list, CIFAR100_SUPER_CLASSES)
    ]


def test_cifar100_super_classes_are_the_coarse_labels_of_its_files():
    members = [tuple(i for i in range(100) if CIFAR100_COARSE[i] == k) for k in range(20)]
    assert members == list(CIFAR100_SUPER_CLASSES)


def test_cifar100_flips_go_around_their_super_class_in_order_of_ids():
    flips = ASYMMETRIC_FLIPS["cifar100"]
    for group in CIFAR100_SUPER_CLASSES:
        assert [flips[source] for source in group] == [*group[1:], group[0]]
    assert sorted(flips) == sorted(flips.values()) == list(range(100))


def test_6_of_the_100_official_cifar100_flips_stay_inside_a_super_class():
    flips = OFFICIAL_CIFAR100_FLIPS
    assert sorted(flips) == sorted(flips.values()) == list(range(100))
    assert [flips[source] for source in range(5)] == [1, 2, 3, 4, 0]
    assert all(source // 5 == target // 5 for source, target in flips.items())
    inside = [s for s, t in flips.items() if CIFAR100_COARSE[s] == CIFAR100_COARSE[t]]
    assert len(inside) == 6
    paper = ASYMMETRIC_FLIPS["cifar100"].items()
    assert all(CIFAR100_COARSE[source] == CIFAR100_COARSE[target] for source, target in paper)


@st.composite
def flips_of_some_classes(draw):
    k = draw(st.integers(2, 12))
    classes = st.integers(0, k - 1)
    flips = draw(st.dictionaries(classes, classes))
    return k, {source: target for source, target in flips.items() if source != target}


@given(case=flips_of_some_classes(), rate=st.floats(0, 1))
def test_pair_transition_moves_the_rate_from_each_source_to_its_target(case, rate):
    k, flips = case
    transition = pair_transition(k, flips, rate)
    assert transition.dtype == torch.float64
    torch.testing.assert_close(transition.sum(dim=1), torch.ones(k, dtype=torch.float64))
    for i, j in product(range(k), range(k)):
        if i == j:
            assert transition[i, i] == (1 - rate if i in flips else 1)
        else:
            assert transition[i, j] == (rate if flips.get(i) == j else 0)


@given(noise=st.sampled_from(NOISES), rate=st.floats(0, 1))
def test_expected_rows_sum_to_1(noise, rate):
    dataset, kind, variant = noise
    transition = expected_transition(dataset, CLASSES[dataset], kind, rate, variant)
    assert transition.dtype == torch.float64
    assert (transition >= 0).all()
    expected = torch.ones(CLASSES[dataset], dtype=torch.float64)
    torch.testing.assert_close(transition.sum(dim=1), expected)


def test_expected_transitions_of_the_two_variants_differ_for_asymmetric_cifar_alone():
    different = {
        (dataset, kind)
        for dataset, kind in product(CLASSES, ["clean", "symmetric", "asymmetric"])
        if not torch.equal(
            *(
                expected_transition(dataset, CLASSES[dataset], kind, 0.4 * (kind != "clean"), v)
                for v in ("paper", "official")
            )
        )
    }
    assert different == {("cifar10", "asymmetric"), ("cifar100", "asymmetric")}


@pytest.mark.parametrize("dataset", CLASSES)
def test_the_papers_variant_is_the_papers_flips(dataset):
    found = expected_transition(dataset, CLASSES[dataset], "asymmetric", 0.3)
    assert torch.equal(found, asymmetric_transition(dataset, 0.3))


def test_official_cifar100_flips_in_cycles_of_five_labels():
    found = expected_transition("cifar100", 100, "asymmetric", 0.3, "official")
    for label in range(100):
        following = label + 1 if label % 5 < 4 else label - 4
        assert found[label, label] == 0.7
        assert found[label, following] == 0.3


def test_golden_noise():
    """What a seed draws belongs to the protocol: if this changes, its version has to.

    Symmetric, then asymmetric, each as in the paper and as in the authors' code.
    """
    found = {}
    for dataset, kind, variant in NOISES:
        drawn = noisy(balanced(CLASSES[dataset], 20), dataset, kind, 0.4, variant)
        found.setdefault(dataset, []).append(hashlib.sha256(drawn.numpy().tobytes()).hexdigest())
    assert {name: [digest[:8] for digest in digests] for name, digests in found.items()} == {
        "mnist": ["b0fcc3b6", "b0fcc3b6", "5a2575cb", "5a2575cb"],
        "digits": ["b0fcc3b6", "b0fcc3b6", "5a2575cb", "5a2575cb"],
        "cifar10": ["b0fcc3b6", "d6fbf5f5", "b89c05d3", "f23af497"],
        "cifar100": ["85304713", "8581ea63", "0d228aa4", "51443b16"],
    }


@pytest.mark.parametrize("noise", NOISES, ids="-".join)
def test_realised_noise_is_the_expected_one_within_sampling_error(noise):
    dataset, kind, variant = noise
    k = CLASSES[dataset]
    per_class = 20_000 // k
    labels = balanced(k, per_class)
    expected = expected_transition(dataset, k, kind, 0.4, variant)
    realised = realised_transition(labels, noisy(labels, dataset, kind, 0.4, variant), k)
    spread = (expected * (1 - expected) / per_class).sqrt()
    slack = 5 * spread + 5 / per_class * (expected > 0)  # a cell of few samples is skewed
    assert ((realised - expected).abs() <= slack).all()
    assert (realised[expected == 0] == 0).all()
    assert ((realised != expected) & (expected > 0)).any()


@pytest.mark.parametrize("noise", NOISES, ids="-".join)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_rate_0_changes_nothing_and_no_rate_changes_the_true_labels(noise, rate):
    dataset, kind, variant = noise
    labels = balanced(CLASSES[dataset], 20)
    before = labels.clone()
    state = torch.get_rng_state()
    given_labels = noisy(labels, dataset, kind, rate, variant)
    assert torch.equal(labels, before)
    assert given_labels.data_ptr() != labels.data_ptr()
    assert given_labels.dtype == torch.int64
    assert torch.equal(given_labels, labels) == (rate == 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("noise", NOISES, ids="-".join)
def test_seeds_matter_except_to_the_official_mnist_noise(noise):
    dataset, kind, variant = noise
    labels = balanced(CLASSES[dataset], 20)
    first, again, other = (noisy(labels, dataset, kind, 0.4, variant, seed) for seed in (1, 1, 2))
    ignored = variant == "official" and dataset in ("mnist", "digits")
    assert torch.equal(first, again)
    assert torch.equal(first, other) == ignored


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_official_mnist_noise_is_the_papers_from_a_fixed_seed(kind):
    labels = balanced(10, 100)
    untouched = generator(7)
    official = noisy_labels(labels, "mnist", 10, kind, 0.4, untouched, "official")
    assert torch.equal(official, noisy(labels, "mnist", kind, 0.4, seed=OFFICIAL_MNIST_SEED))
    assert torch.equal(untouched.get_state(), generator(7).get_state())


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_clean_labels_come_back_as_a_copy_and_draw_nothing(variant):
    labels = balanced(10, 10)
    untouched = generator(7)
    clean = noisy_labels(labels, "no data set known here", 10, "clean", 0, untouched, variant)
    assert torch.equal(clean, labels)
    assert clean.data_ptr() != labels.data_ptr()
    assert torch.equal(untouched.get_state(), generator(7).get_state())
    identity = expected_transition("no data set known here", 10, "clean", 0, variant)
    assert torch.equal(identity, torch.eye(10, dtype=torch.float64))


@pytest.mark.parametrize("dataset", ["mnist", "no data set known here"])
def test_the_papers_symmetric_noise_keeps_its_bits(dataset):
    """Stored results were trained on these labels."""
    labels = balanced(10, 3)
    stored = [
        0,
        0,
        0,
        1,
        3,
        1,
        2,
        5,
        3,
        3,
        3,
        3,
        5,
        4,
        1,
        1,
        5,
        2,
        6,
        6,
        8,
        9,
        8,
        8,
        8,
        2,
        2,
        9,
        9,
        6,
    ]
    transition = symmetric_transition(10, 0.6)
    assert corrupt_labels(labels, transition, generator(1)).tolist() == stored
    drawn = noisy_labels(labels, dataset, 10, "symmetric", 0.6, generator(1))
    assert drawn.tolist() == stored


def test_official_cifar10_expects_24_percent_of_cats_and_40_of_dogs_wrong():
    transition = expected_transition("cifar10", 10, "asymmetric", 0.4, "official")
    wrong = dict(zip(CIFAR10_NAMES, (1 - transition.diag()).tolist(), strict=True))
    assert wrong["cat"] == pytest.approx(0.24)
    assert wrong["dog"] == pytest.approx(0.4)
    assert sum(wrong.values()) / 10 == pytest.approx(0.184)
    cat, dog = CIFAR10_NAMES.index("cat"), CIFAR10_NAMES.index("dog")
    assert transition[cat, dog].item() == pytest.approx(0.24)
    assert transition[dog, cat].item() == pytest.approx(0.4)
    paper = expected_transition("cifar10", 10, "asymmetric", 0.4)
    assert (1 - paper.diag()).mean().item() == pytest.approx(0.2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_official_cifar10_flips_exact_counts_one_class_after_another(seed):
    labels = balanced(10, 5000)
    given_labels = noisy(labels, "cifar10", "asymmetric", 0.4, "official", seed)
    counts = dict(zip(CIFAR10_NAMES, given_labels.bincount().tolist(), strict=True))
    # 2000 of 5000 go each time, but dogs are 7000 when their turn comes: 2800 of them go.
    assert counts["truck"] == counts["bird"] == counts["deer"] == 3000
    assert counts["automobile"] == counts["airplane"] == counts["horse"] == 7000
    assert (counts["cat"], counts["dog"]) == (5800, 4200)
    assert counts["frog"] == counts["ship"] == 5000
    # Of those 2800, the ones that are cats by truth follow a hypergeometric law of mean 800.
    back = 2800 - int(((labels == 5) & (given_labels == 3)).sum())
    spread = (2800 * 2 / 7 * 5 / 7 * 4200 / 6999) ** 0.5
    assert abs(back - 800) < 5 * spread
    assert int((given_labels != labels).sum()) == 6000 + (2000 - back) + (2800 - back)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=10, max_size=10),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_official_symmetric_noise_flips_an_exact_count_of_every_class(sizes, rate, seed):
    labels = torch.arange(10).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator(seed))]
    wrong = noisy(labels, "cifar10", "symmetric", rate, "official", seed) != labels
    flipped = [int(wrong[labels == k].sum()) for k in range(10)]
    assert flipped == [int(rate * size) for size in sizes]


def test_the_papers_symmetric_noise_flips_no_exact_count():
    labels = balanced(10, 5000)
    wrong = noisy(labels, "cifar10", "symmetric", 0.4) != labels
    assert len(set(wrong.view(10, 5000).sum(dim=1).tolist())) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pairflip"}, "kind must be one of clean, symmetric, asymmetric; got 'pairflip'"),
        ({"variant": "authors"}, "variant must be one of paper, official; got 'authors'"),
        (
            {"dataset": "svhn"},
            "dataset must be one of mnist, digits, cifar10, cifar100; got 'svhn'",
        ),
        (
            {"dataset": "svhn", "kind": "symmetric", "variant": "official"},
            "dataset of the official variant must be one of mnist, .*; got 'svhn'",
        ),
        ({"num_classes": 100}, "cifar10 has 10 classes, got num_classes=100"),
        ({"noise_rate": 1.1}, r"noise_rate must be in \[0, 1\], got 1.1"),
        ({"noise_rate": float("nan")}, r"noise_rate must be in \[0, 1\], got nan"),
        ({"kind": "clean"}, r"noise_rate of clean labels must be in \[0, 0\], got 0.4"),
        ({"kind": "symmetric", "num_classes": 1}, "num_classes must be an int >= 2, got 1"),
        ({"labels": torch.tensor([0, 10])}, r"labels must be in \[0, 9\], got 0 to 10"),
        ({"labels": torch.tensor([[0]])}, r"labels must be \(N,\), got shape \(1, 1\)"),
    ],
)
def test_noise_that_does_not_exist_is_refused(change, message):
    good = {
        "labels": torch.tensor([0]),
        "dataset": "cifar10",
        "num_classes": 10,
        "kind": "asymmetric",
        "noise_rate": 0.4,
        "generator": generator(),
    }
    noisy_labels(**good)
    with pytest.raises(ValueError, match=f"^{message}$"):
        noisy_labels(**good | change)


@pytest.mark.parametrize("flips", [{0: 0}, {0: 3}, {3: 0}, {-1: 0}, {0: 1.0}, {True: 0}, {0: True}])
def test_flips_that_are_none_are_refused(flips):
    with pytest.raises(
        ValueError, match=r"flips must go from one class in \[0, 2\] to another, got"
    ):
        pair_transition(3, flips, 0.4)


def test_bad_arguments_of_pairs_are_refused():
    with pytest.raises(ValueError, match="num_classes must be an int >= 2"):
        pair_transition(1, {}, 0.4)
    with pytest.raises(ValueError, match="noise_rate must be in"):
        pair_transition(3, {}, -0.1)
    with pytest.raises(ValueError, match="dataset must be one of mnist, digits, cifar10, cifar100"):
        asymmetric_transition("svhn", 0.4)


@pytest.mark.parametrize(
    ("kind", "ratio", "expected"),
    [
        ("long-tailed", 0.1, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        ("long-tailed", 0.01, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        ("step", 0.1, [5000] * 5 + [500] * 5),
        ("step", 0.01, [5000] * 5 + [50] * 5),
    ],
)
def test_imbalanced_counts_of_cifar10(kind, ratio, expected):
    assert imbalanced_counts([5000] * 10, kind, ratio) == expected


def test_each_class_is_cut_from_its_own_count():
    assert imbalanced_counts([100, 300, 40], "long-tailed", 0.25) == [100, 150, 10]
    assert imbalanced_counts([100, 300, 40], "step", 0.25) == [100, 75, 10]
    assert imbalanced_counts([9, 9], "step", 0.1) == [9, 0]


@st.composite
def unequal_labels(draw):
    sizes = draw(st.lists(st.integers(1, 30), min_size=2, max_size=12))
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return sizes, labels[torch.randperm(len(labels), generator=generator())]


KINDS = st.sampled_from(["long-tailed", "step"])


@given(case=unequal_labels(), kind=KINDS, ratio=st.floats(0.001, 1), seed=st.integers(0, 2**32))
def test_a_subset_has_the_imbalanced_counts_in_ascending_order(case, kind, ratio, seed):
    sizes, labels = case
    kept = imbalanced_subset(labels, kind, ratio, generator(seed))
    counts = imbalanced_counts(sizes, kind, ratio)
    assert kept.dtype == torch.int64
    assert (kept.diff() > 0).all()
    assert labels[kept].bincount(minlength=len(sizes)).tolist() == counts
    assert counts[0] == sizes[0]
    assert all(
        int(size * ratio) <= count <= size for size, count in zip(sizes, counts, strict=True)
    )
    assert counts[-1] == int(sizes[-1] * ratio)


@given(case=unequal_labels(), kind=KINDS)
def test_ratio_1_keeps_everything(case, kind):
    sizes, labels = case
    assert imbalanced_counts(sizes, kind, 1.0) == sizes
    kept = imbalanced_subset(labels, kind, 1.0, generator())
    assert torch.equal(kept, torch.arange(len(labels)))


@pytest.mark.parametrize("kind", ["long-tailed", "step"])
def test_a_subset_is_drawn_from_its_generator_alone(kind):
    labels = balanced(10, 100)
    state = torch.get_rng_state()
    first, again, other = (imbalanced_subset(labels, kind, 0.1, generator(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Not simply the first images of the class: any of the hundred may be kept.
    last_class = torch.cat(
        [imbalanced_subset(labels, kind, 0.1, generator(seed))[-10:] for seed in range(100)]
    )
    assert len(last_class.unique()) == 100


@pytest.mark.parametrize("ratio", [0, -0.1, 1.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got"):
        imbalanced_counts([10, 10], "step", ratio)


@pytest.mark.parametrize("counts", [[], [10], [10, 0], [10, 2.5]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="counts must be two ints or more, each >= 1; got"):
        imbalanced_counts(counts, "step", 0.1)


def test_other_imbalance_and_bad_labels_are_refused():
    with pytest.raises(ValueError, match="kind must be one of long-tailed, step; got 'exp'"):
        imbalanced_counts([10, 10], "exp", 0.1)
    with pytest.raises(ValueError, match=r"counts must be .*; got \[2, 0, 1\]"):
        imbalanced_subset(torch.tensor([0, 2, 0]), "step", 0.1, generator())
    with pytest.raises(ValueError, match="labels must be in"):
        imbalanced_subset(torch.tensor([0, 10**12]), "step", 0.1, generator())
    with pytest.raises(TypeError, match="labels must be int64"):
        imbalanced_subset(torch.tensor([0.0, 1.0]), "step", 0.1, generator())


# --- memory, and where the draws come from --------------------------------------------------------


def test_memory_grows_with_the_labels_alone():
    """No tensor of samples by classes: 20,000 labels of 500 classes have 10 million such cells."""

    class Largest(TorchDispatchMode):
        cells = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.cells = max(self.cells, out.numel())
            return out

    labels = torch.arange(20_000) % 500
    transition = symmetric_transition(500, 0.4)
    with Largest() as largest:
        noisy = corrupt_labels(labels, transition, generator(0))
    assert largest.cells <= max(len(labels), transition.numel())
    assert (noisy != labels).double().mean().item() == pytest.approx(0.4, abs=0.02)


def test_each_label_is_drawn_from_its_own_row_as_if_alone():
    labels = torch.randint(7, (500,), generator=generator(3))
    weights = torch.rand(7, 7, generator=generator(4), dtype=torch.float64)
    transition = weights / weights.sum(dim=1, keepdim=True)
    draws = torch.rand(500, 1, generator=generator(5), dtype=torch.float64)
    cumulative = transition.cumsum(dim=1)[labels]
    expected = (cumulative / cumulative[:, -1:] <= draws).sum(dim=1)
    assert torch.equal(corrupt_labels(labels, transition, generator(5)), expected)


@pytest.mark.parametrize("kind", ["clean", "symmetric", "asymmetric"])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_seed_stands_for_its_generator_and_others_are_refused(kind, variant):
    labels = torch.arange(400) % 10
    rate = 0.0 if kind == "clean" else np.float32(0.5)
    draw = partial(noisy_labels, labels, "cifar10", np.int64(10), kind, rate, variant=variant)
    assert torch.equal(draw(7), draw(generator(7)))
    for other in (None, np.random.default_rng(0), 0.5):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator of the CPU"):
            draw(other)
    assert torch.equal(
        imbalanced_subset(labels, "step", np.float64(0.5), 3),
        imbalanced_subset(labels, "step", 0.5, generator(3)),
    )
