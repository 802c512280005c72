"""WebVision as a stream: whole, repeatable with any number of workers, and open about bad files."""

import itertools

import pytest
import torch
from PIL import Image

from lnlsr_lib.data import DataError
from lnlsr_lib.webvision import WebVisionStream

SIZES = [(300, 260), (224, 224), (500, 231), (90, 120), (256, 256), (260, 700)]
MODES = ["RGB", "L", "CMYK", "RGB", "RGB"]
BAD = {
    "google/q0003/missing.jpg": "FileNotFoundError",
    "google/q0003/page.jpg": "UnidentifiedImageError",
    "google/q0003/truncated.jpg": "OSError",
}

# What newer Pythons say of a fork beside threads, and a machine of one core of two workers.
workers = pytest.mark.filterwarnings(
    "ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)


def halves(label, size, mode):
    """An image whose left half has a brightness of its class, and whose right half is black."""
    image = Image.new("L", size)
    image.paste(40 + 60 * label, (0, 0, size[0] // 2, size[1]))
    return image.convert("RGB").convert(mode)


def write(root, name, label, size=(256, 256), mode="RGB"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    halves(label, size, mode).save(path, "jpeg")


def listed(root, name, entries):
    (root / "info").mkdir(exist_ok=True)
    text = "".join(f"{path} {label}\n" for path, label in entries)
    (root / "info" / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """20 training images of classes 0 to 3, of many sizes and modes, and 8 for validation."""
    root = tmp_path_factory.mktemp("webvision")
    train = [(f"google/q000{i % 4}/an image {i}.jpg", i % 4) for i in range(20)]
    for (name, label), size, mode in zip(
        train, itertools.cycle(SIZES), itertools.cycle(MODES), strict=False
    ):
        write(root, name, label, size, mode)
    listed(root, "train_filelist_google.txt", train)
    val = [(f"val{i:06}.jpg", i % 4) for i in range(8)]
    for name, label in val:
        write(root, f"val_images_256/{name}", label)
    listed(root, "val_filelist.txt", val)
    return root


@pytest.fixture
def with_bad(clean):
    """The same with three bad files in the list."""
    (clean / "google/q0003").mkdir(exist_ok=True)
    whole = (clean / "google/q0003/an image 3.jpg").read_bytes()
    (clean / "google/q0003/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (clean / "google/q0003/page.jpg").write_text("<html>404</html>")
    file_list = clean / "info" / "train_filelist_google.txt"
    before = file_list.read_text()
    file_list.write_text("".join(f"{name} 3\n" for name in BAD) + before)
    yield clean
    file_list.write_text(before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def whole_pass(stream, *, batch_size=6, seed=0, num_workers=0):
    """All images and all labels of a pass."""
    batches = list(stream.batches(batch_size, seeded(seed), num_workers))
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


@workers
@pytest.mark.parametrize("train", [True, False])
def test_batches_do_not_depend_on_the_number_of_workers(clean, train):
    stream = WebVisionStream(clean, train=train)
    alone = list(stream.batches(6, seeded()))
    assert [len(labels) for _, labels in alone] == ([6, 6, 6, 2] if train else [6, 2])
    together = list(stream.batches(6, seeded(), num_workers=2))
    for (images, labels), (other_images, other_labels) in zip(alone, together, strict=True):
        assert images.shape == (len(labels), 3, 224, 224)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@workers
def test_skipping_does_not_depend_on_the_number_of_workers(with_bad):
    stream = WebVisionStream(with_bad, train=True)
    with pytest.warns(UserWarning, match="3 files skipped"):
        alone = whole_pass(stream)
    skipped = stream.skipped
    with pytest.warns(UserWarning, match="3 files skipped"):
        together = whole_pass(stream, num_workers=2)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])
    assert skipped == stream.skipped
    assert len(skipped) == 3


def test_every_pass_has_each_image_once_in_another_order(clean):
    stream = WebVisionStream(clean, train=True)
    images, labels = whole_pass(stream, seed=1)
    again_images, again = whole_pass(stream, seed=1, batch_size=20)
    other_images, other = whole_pass(stream, seed=2)
    assert torch.equal(images, again_images)
    assert torch.equal(labels, again)
    assert not torch.equal(labels, other)
    assert not torch.equal(images, other_images)
    for seen in (labels, other):
        assert seen.bincount().tolist() == [5, 5, 5, 5]


def test_a_generator_that_goes_on_gives_other_epochs(clean):
    stream, generator = WebVisionStream(clean, train=True), seeded()
    first, second = (next(stream.batches(20, generator)) for _ in range(2))
    assert not torch.equal(first[0], second[0])


def test_validation_images_keep_their_order_and_are_cropped_at_the_centre(clean):
    images, labels = whole_pass(WebVisionStream(clean, train=False))
    assert labels.tolist() == [0, 1, 2, 3] * 2
    left, right = images[..., :110].float(), images[..., 114:].float()  # 16 are cut off each side
    assert (left.mean(dim=(1, 2, 3)) - (40 + 60 * labels)).abs().max() < 2
    assert right.mean(dim=(1, 2, 3)).max() < 2
    assert images[0, 0, 0, 100] > 30
    assert torch.equal(images, whole_pass(WebVisionStream(clean, train=False), seed=5)[0])


def test_large_validation_images_are_resized_by_their_shorter_side(tmp_path):
    image = Image.new("RGB", (1024, 512))
    image.paste((220, 220, 220), (0, 0, 448, 512))
    (tmp_path / "val_images_256").mkdir()
    image.save(tmp_path / "val_images_256" / "wide.jpg")
    listed(tmp_path, "val_filelist.txt", [("wide.jpg", 3)])
    images, _ = whole_pass(WebVisionStream(tmp_path, train=False))
    # 512x256 then, bright up to column 224, and of that the columns from 144 on stay.
    assert images[0, :, :, :76].float().mean() > 215
    assert images[0, :, :, 84:].float().mean() < 5


def test_training_images_are_flipped_cropped_and_recoloured(tmp_path):
    entries = [(f"google/{i}.jpg", 1) for i in range(40)]
    for name, label in entries:
        write(tmp_path, name, label)
    listed(tmp_path, "train_filelist_google.txt", entries)
    images, _ = whole_pass(WebVisionStream(tmp_path, train=True))
    pixels = images.float().mean(dim=1)  # (40, 224, 224)
    left, right = pixels[:, :, :20].mean(dim=(1, 2)), pixels[:, :, -20:].mean(dim=(1, 2))
    assert (left > right + 20).sum() >= 5  # as they were
    assert (right > left + 20).sum() >= 5  # flipped
    share = (pixels > 30).double().mean(dim=(1, 2))  # of the bright half: a half, uncropped
    assert share.min() < 0.4
    assert share.max() > 0.6
    brightness = pixels.amax(dim=(1, 2))
    assert brightness.min() < 80  # 100, before the colours jitter
    assert brightness.max() > 120


def test_labels_stay_with_their_images(clean):
    """The classes differ in brightness by more than colour jitter can undo, 40 and 220."""
    images, labels = whole_pass(WebVisionStream(clean, train=True), seed=3)
    brightness = images.float().mean(dim=1).flatten(1).amax(dim=1)
    assert brightness[labels == 0].max() < brightness[labels == 3].min()


def test_bad_files_are_skipped_and_reported(with_bad):
    stream = WebVisionStream(with_bad, train=True)
    assert len(stream.names) == len(stream.labels) == 23
    with pytest.warns(UserWarning, match="3 files skipped") as caught:
        images, labels = whole_pass(stream)
    assert len(images) == 20
    assert labels.bincount().tolist() == [5, 5, 5, 5]
    assert sorted(stream.skipped) == [f"{name} ({why})" for name, why in BAD.items()]
    for name in BAD:
        assert name in str(caught[0].message)


def test_a_pass_without_bad_files_does_not_warn(clean):
    stream = WebVisionStream(clean, train=True)
    whole_pass(stream)  # a warning would be an error
    assert stream.skipped == []


def test_a_batch_of_bad_files_alone_is_left_out(with_bad):
    stream = WebVisionStream(with_bad, train=True)
    with pytest.warns(UserWarning, match="3 files skipped"):
        sizes = [len(labels) for _, labels in stream.batches(1, seeded())]
    assert sizes == [1] * 20


@pytest.mark.parametrize("num_workers", [0, 2])
@workers
def test_too_many_bad_files_end_the_pass(with_bad, num_workers):
    stream = WebVisionStream(with_bad, train=True)
    stream.max_bad = 2
    with pytest.raises(DataError, match=r"3 files skipped.*; at most 2 are allowed") as caught:
        whole_pass(stream, batch_size=23, num_workers=num_workers)
    assert "google/q0003/missing.jpg (FileNotFoundError)" in str(caught.value)
    stream.max_bad = 3
    with pytest.warns(UserWarning, match="3 files skipped"):
        assert len(whole_pass(stream)[0]) == 20


def test_one_in_a_hundred_may_be_bad_and_ten_of_few_but_never_all(tmp_path):
    for n, allowed in ((5, 4), (11, 10), (500, 10), (5000, 50)):
        listed(tmp_path, "train_filelist_google.txt", [("google/no.jpg", 0)] * n)
        assert WebVisionStream(tmp_path, train=True).max_bad == allowed
    listed(tmp_path, "train_filelist_google.txt", [("google/no.jpg", 0)] * 5)
    with pytest.raises(DataError, match=r"5 files skipped.*; at most 4 are allowed"):
        whole_pass(WebVisionStream(tmp_path, train=True))


def test_only_the_first_classes_are_taken(tmp_path):
    lines = [("a.jpg", 0), ("b.jpg", 50), ("c.jpg", 49), ("d.jpg", 999)]
    listed(tmp_path, "train_filelist_google.txt", lines)
    stream = WebVisionStream(tmp_path, train=True)
    assert stream.labels.tolist() == [0, 49]
    assert stream.names == ["a.jpg", "c.jpg"]


def test_the_global_generator_is_left_alone(clean):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    whole_pass(WebVisionStream(clean, train=True))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    first, _ = whole_pass(WebVisionStream(clean, train=True))
    torch.manual_seed(9)
    assert torch.equal(whole_pass(WebVisionStream(clean, train=True))[0], first)


@pytest.mark.parametrize(
    ("train", "file_list", "images"),
    [(True, "train_filelist_google.txt", "."), (False, "val_filelist.txt", "val_images_256")],
)
def test_a_missing_list_is_named(tmp_path, train, file_list, images):
    with pytest.raises(DataError) as caught:
        WebVisionStream(tmp_path, train=train)
    message = str(caught.value)
    assert str(tmp_path / "info" / file_list) in message
    assert f"in {tmp_path / images}" in message
    assert "'image label'" in message


@pytest.mark.parametrize(
    "line", ["", "a.jpg", "a.jpg dog", "a.jpg -1", " 3", "a.jpg 1.5", "a " + "9" * 5000]
)
def test_a_malformed_list_is_refused(tmp_path, line):
    listed(tmp_path, "val_filelist.txt", [("a.jpg", 0), ("b.jpg", f"1\n{line}")])
    with pytest.raises(DataError, match=r"val_filelist\.txt, line 3 should be 'image label'"):
        WebVisionStream(tmp_path, train=False)


def test_a_list_without_these_classes_is_refused(tmp_path):
    listed(tmp_path, "val_filelist.txt", [("a.jpg", 50), ("b.jpg", 999)])
    with pytest.raises(DataError, match="no image with a label below 50"):
        WebVisionStream(tmp_path, train=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, seeded()), "batch_size"), ((4, seeded(), -1), "num_workers")],
)
def test_impossible_batches_are_refused(clean, arguments, message):
    with pytest.raises(ValueError, match=message):
        next(WebVisionStream(clean, train=True).batches(*arguments))
