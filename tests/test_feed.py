"""From a spec and its data set to given labels and batches."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torchvision.transforms import v2

from lnlsr_lib import feed
from lnlsr_lib.augment import Augmentation, Draws
from lnlsr_lib.feed import Pixels, Resident, averaged_down, given_labels, open_source, selection
from lnlsr_lib.noise import noisy_labels, realised_transition
from lnlsr_lib.protocol import make_spec


def shown(spec, data):
    """The labels that the network is shown, of all training images."""
    return given_labels(spec, data, torch.arange(len(data.train_labels)))


def test_train_size_takes_a_balanced_part(digits, small_spec):
    spec = small_spec("ce", train_size=130, epochs=1, batch_size=65)
    index = selection(spec, digits.train_labels)
    assert digits.train_labels[index].bincount().tolist() == [13] * 10
    assert torch.equal(index, index.sort().values)
    assert torch.equal(selection(spec, digits.train_labels), index)
    source = Resident(spec, digits, torch.device("cpu"))
    assert [len(batch.indices) for batch in source.batches(0)] == [65, 65]
    with pytest.raises(ValueError, match="size must be a positive multiple of 10"):
        Resident(spec.model_copy(update={"train_size": 131}), digits, torch.device("cpu"))


def test_imbalance_comes_after_the_balanced_part(digits, small_spec):
    spec = small_spec("ce", train_size=500, imbalance="step", imbalance_ratio=0.1)
    index = selection(spec, digits.train_labels)
    assert digits.train_labels[index].bincount().tolist() == [50] * 5 + [5] * 5
    assert len(given_labels(spec, digits, index)) == 275


def test_a_transition_of_the_users_is_what_the_labels_follow(digits, small_spec):
    swap = torch.eye(10)
    swap[3] = torch.tensor([0.0, 0, 0, 0.5, 0, 0, 0, 0, 0.5, 0])
    changes = {"noise": "transition", "noise_rate": 0.0, "transition": swap.tolist()}
    labels = shown(small_spec("ce", **changes), digits)
    realised = realised_transition(digits.train_labels, labels, 10)
    assert (realised[3, [3, 8]] > 0.3).all()
    rest = [k for k in range(10) if k != 3]
    assert torch.equal(realised[rest], torch.eye(10, dtype=torch.float64)[rest])


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_labels_are_those_of_the_specs_variant_of_the_noise(digits, small_spec, variant):
    spec = small_spec("ce", noise_rate=0.4, noise_variant=variant)
    noise = (spec.noise, spec.noise_rate, spec.generator("noise"), variant)
    expected = noisy_labels(digits.train_labels, digits.name, 10, *noise)
    assert torch.equal(shown(spec, digits), expected)


def test_golden_draws(digits, small_spec):
    """What a seed draws belongs to the protocol: if this changes, its version has to."""
    spec = small_spec("ce", train_size=500, imbalance="step", imbalance_ratio=0.1)
    index = selection(spec, digits.train_labels)
    batches = Resident(spec, digits, torch.device("cpu")).batches(1)
    drawn = index, given_labels(spec, digits, index), torch.cat([b.indices for b in batches])
    found = [hashlib.sha256(values.numpy().tobytes()).hexdigest()[:8] for values in drawn]
    assert (spec.protocol, *found) == (2, "b0ee2775", "e07bd561", "926420c6")


def test_human_labels_are_those_of_the_images_used(digits, small_spec, monkeypatch):
    people = (digits.train_labels + 1) % 10
    monkeypatch.setattr(feed, "load_human_labels", lambda kind, name, labels: people)
    spec = small_spec("ce", train_size=100).model_copy(
        update={"noise": "human", "human_labels": "worse"}
    )
    index = selection(spec, digits.train_labels)
    assert torch.equal(given_labels(spec, digits, index), people[index])


def test_batches_are_augmented_each_epoch_anew(few, small_spec):
    spec = small_spec("ce", padding=4, flip=True, degrees=20.0)
    labels = shown(spec, few)
    source = Resident(spec, few, torch.device("cpu"))
    draws = Augmentation(4, True, 20.0).draw(few.train_images.shape, spec.generator("augment/1"))
    seen = []
    for images, given, truth, index in source.batches(1):
        theirs = Draws(*(drawn[index] for drawn in draws))
        expected = Augmentation(4, True, 20.0)(few.train_images[index], theirs)
        assert torch.equal(images, expected)
        assert torch.equal(given, labels[index])
        assert torch.equal(truth, few.train_labels[index])
        seen.append(index)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(192))
    (first, _, _, index), _ = source.batches(0)
    assert not torch.equal(first, few.train_images[index])
    plain = Resident(small_spec("ce"), few, torch.device("cpu"))
    (first, _, _, index), _ = plain.batches(0)
    assert torch.equal(first, few.train_images[index])


@pytest.mark.parametrize(("samples", "sizes"), [(129, [128]), (130, [128, 2]), (128, [128])])
def test_a_last_batch_of_one_image_is_left_out(few, small_spec, samples, sizes):
    parts = {name: getattr(few, name)[:samples] for name in ("train_images", "train_labels")}
    source = Resident(small_spec("ce"), replace(few, **parts), torch.device("cpu"))
    assert [len(batch.labels) for batch in source.batches(0)] == sizes


def test_images_are_tested_whole_and_in_order(few, small_spec, monkeypatch):
    monkeypatch.setattr(feed, "EVAL_BATCH", 50)
    source = Resident(small_spec("ce"), few, torch.device("cpu"))
    images, labels = zip(*source.test_batches(), strict=True)
    assert [len(part) for part in labels] == [50, 10]
    assert torch.equal(torch.cat(images), few.test_images)
    assert torch.equal(torch.cat(labels), few.test_labels)
    images, labels = zip(*source.train_batches(), strict=True)
    assert torch.equal(torch.cat(images), few.train_images)
    assert torch.equal(torch.cat(labels), shown(source.spec, few))


def test_the_share_of_wrong_labels_is_of_the_images_used(digits, small_spec):
    source = Resident(small_spec("ce", train_size=100), digits, torch.device("cpu"))
    assert source.wrong == (source.labels != source.truth).double().mean() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_scaled_and_normalised_as_torchvision_does_it(channels):
    mean, std = [0.1, 0.4, 0.5][:channels], [0.3, 0.2, 0.25][:channels]
    images = torch.randint(256, (4, channels, 5, 6), dtype=torch.uint8)
    expected = v2.functional.normalize(v2.functional.to_dtype(images, scale=True), mean, std)
    pixels = Pixels(mean, std, torch.device("cpu"))(images)
    torch.testing.assert_close(pixels, expected)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_other_data_than_the_specs_are_refused(few):
    with pytest.raises(ValueError, match="asks for mnist, but the data are digits"):
        open_source(make_spec("mnist", "ce", 0.4), few, torch.device("cpu"))


def test_images_are_averaged_in_whole_blocks():
    images = torch.arange(32, dtype=torch.uint8).view(1, 2, 4, 4)
    images[..., :2, :2] += torch.tensor([[0, 0], [0, 1]], dtype=torch.uint8)  # a mean of 2.75
    small = averaged_down(images, 2)
    assert small[0, 0, 0, 0] == 3
    assert small.dtype == torch.uint8
    blocks = images[0, 0].double().view(2, 2, 2, 2).mean(dim=(1, 3)).round()
    assert torch.equal(small[0, 0].double(), blocks)
    assert averaged_down(images, None) is images
    many = torch.randint(256, (2001, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(averaged_down(many, 4), many)
    with pytest.raises(ValueError, match="images of 4 pixels cannot be averaged to 3"):
        averaged_down(images, 3)


def test_cifar10s_reduced_runs_see_smaller_images_of_a_part():
    spec = make_spec("cifar10", "ce", 0.6, profile="lite")
    assert (spec.side, spec.padding, spec.train_size, spec.epochs) == (16, 2, 20_000, 60)
