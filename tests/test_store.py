"""The results folder: whole files or none, verified when read, one process per run."""

import contextlib
import copy
import errno
import hashlib
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lnlsr_lib import store as store_module
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import PROTOCOL_VERSION, RunSpec
from lnlsr_lib.store import (
    BusyError,
    Store,
    StoreError,
    code_version,
    results_folder,
    write_atomically,
)
from lnlsr_lib.trainer import HISTORY, RunResult, train

PERCENT = ("test_accuracy", "lowest_recall")
SHARES = ("sparse_rate", "zero_rate", "memorised", "corrected", "fitted", "clipped")
forks = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs os.fork"
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def made_result(spec, *, precision="float32", accuracy=50.0):
    history = {
        name: [0.25] * spec.epochs if name in SHARES else [float(i) for i in range(spec.epochs)]
        for name in HISTORY
    }
    history["test_accuracy"] = [accuracy + 10, accuracy]
    confusion = (torch.eye(10, dtype=torch.int64) * 6).tolist()
    return RunResult(spec, history, "cpu (made up)", precision, 1, "made up", 0.4, confusion)


def signed(content, **changes):
    """A result file with changes and the checksum that goes with them."""
    whole = json.loads(content) | changes
    del whole["sha256"]
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return json.dumps(whole | {"sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


@pytest.fixture(scope="module")
def few_state(few):
    """A spec of three epochs of the digits, and the state after the first one."""
    fields = make_spec("mnist", "ce_sr", 0.4, profile="smoke").model_dump()
    spec = RunSpec(**fields | {"epochs": 3})
    states = []
    train(
        spec,
        few,
        device="cpu",
        precision="float32",
        on_epoch=lambda state: states.append(copy.deepcopy(state)),
    )
    return spec, states[0]


def leftovers(folder):
    """Everything under ``folder`` but results and checkpoints."""
    wanted = (".json", ".pt")
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix not in wanted]


# --- finished runs -------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(store, small_spec):
    spec = small_spec()
    assert store.load(spec) is None
    assert store.missing([spec]) == [spec]
    result = made_result(spec)
    path = store.save(result)
    assert path == store.folder / "runs" / f"{spec.id}.float32.json"
    run = store.load(spec)
    assert run.spec == spec
    assert run.history == result.history
    assert (run.final_accuracy, run.best_accuracy) == (50.0, 60.0)
    assert store.missing([spec]) == []
    assert store.runs() == [run]
    assert leftovers(store.folder) == []


def test_provenance_is_whole(store, small_spec):
    result = made_result(small_spec())
    result.threads, result.history["seconds"] = 7, [1.0, 0.52]
    store.save(result)
    provenance = store.load(small_spec()).provenance
    assert provenance["python"] == platform.python_version()
    assert provenance["torch"] == torch.__version__
    assert (provenance["device"], provenance["threads"]) == ("cpu (made up)", 7)
    assert provenance["seconds"] == 1.5
    assert provenance["realised_noise_rate"] == 0.4
    assert provenance["finished"].endswith("+00:00")
    assert set(code_version()) == {"lnlsr", "commit", "modified"}
    assert set(code_version()) < set(provenance)


def test_float32_is_preferred_and_either_precision_counts(store, small_spec):
    spec = small_spec()
    store.save(made_result(spec, precision="bf16", accuracy=10.0))
    assert store.load(spec).final_accuracy == 10.0
    assert store.load(spec, "float32") is None
    assert store.missing([spec]) == []
    assert store.missing([spec], "float32") == [spec]
    store.save(made_result(spec, precision="float32", accuracy=20.0))
    assert store.load(spec).final_accuracy == 20.0
    assert store.load(spec, "bf16").final_accuracy == 10.0


def test_saving_drops_the_checkpoint(store, small_spec, few_state):
    spec = small_spec()
    store.save_checkpoint(spec, "float32", few_state[1])
    store.save(made_result(spec))
    assert store.load_checkpoint(spec, "float32") is None


def broken(result, how):
    """``result`` as it must never be stored."""
    history = result.history
    changes = {
        "a history that is too short": lambda: history["train_loss"].pop(),
        "a history that is too long": lambda: history["seconds"].append(1.0),
        "a series that is missing": lambda: history.pop("fitted"),
        "a series too many": lambda: history.update(extra=[1.0, 2.0]),
        "an accuracy of 101%": lambda: history["test_accuracy"].append(
            history["test_accuracy"].pop() + 51
        ),
        "a share of 2": lambda: history.update(sparse_rate=[0.5, 2.0]),
        "no accuracy": lambda: history.update(test_accuracy=[None, 1.0]),
        "text": lambda: history.update(train_loss=["a", "b"]),
        "NaN": lambda: history.update(train_loss=[1.0, math.nan]),
        "no confusion": lambda: result.confusion.clear(),
        "a confusion that is not square": lambda: result.confusion.pop(),
        "a confusion of fractions": lambda: result.confusion[0].__setitem__(0, 0.5),
        "no device": lambda: setattr(result, "device", None),
        "a rate above 1": lambda: setattr(result, "realised_noise_rate", 1.5),
        "a precision of its own": lambda: setattr(result, "precision", "fp8"),
        "a tensor": lambda: setattr(result, "origin", torch.zeros(1)),
    }
    if how is not None:
        changes[how]()
    return list(changes)


BROKEN = broken(RunResult(None, {}, "", "", 1, "", None), None)


@pytest.mark.parametrize("how", BROKEN)
def test_what_would_be_no_result_is_refused_before_anything_is_dropped(
    store, small_spec, few_state, how
):
    result = made_result(small_spec())
    broken(result, how)
    store.save_checkpoint(result.spec, "float32", few_state[1])
    before = sorted(store.folder.rglob("*"))
    with pytest.raises(StoreError, match="is not stored, it would be no result"):
        store.save(result, {}, {"embedding": np.zeros(3)})
    assert sorted(store.folder.rglob("*")) == before
    assert store.missing([small_spec()])


@pytest.mark.parametrize("protocol", [PROTOCOL_VERSION - 1, 99])
def test_runs_of_another_protocol_are_left_out(store, small_spec, protocol):
    store.save(made_result(small_spec(protocol=protocol)))
    assert store.runs() == []
    assert store.load(small_spec(protocol=protocol)) is not None


# --- details -------------------------------------------------------------------------------------


def test_details_lie_beside_the_run_and_are_verified(store, small_spec):
    result = made_result(small_spec())
    arrays = {"embedding": np.arange(6, dtype=np.float16).reshape(3, 2)}
    path = store.save(result, {"knn_accuracy": 90.0}, arrays)
    run = store.load(result.spec)
    assert run.features == {"knn_accuracy": 90.0}
    found = store.details(run)
    assert found.keys() == arrays.keys()
    assert np.array_equal(found["embedding"], arrays["embedding"])
    beside = path.with_suffix(".npz")
    whole = beside.read_bytes()
    store.save(result, {"knn_accuracy": 90.0}, arrays)
    assert beside.read_bytes() == whole  # the same arrays, the same bytes
    beside.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=r"npz is missing, cut short or changed"):
        store.details(run)
    beside.unlink()
    with pytest.raises(StoreError, match=r"npz is missing, cut short or changed"):
        store.details(run)


def test_a_run_without_details_says_so(store, small_spec):
    store.save(made_result(small_spec()))
    run = store.load(small_spec())
    assert (run.features, run.details) == (None, None)
    with pytest.raises(StoreError, match="was stored without details"):
        store.details(run)


# --- damaged files -------------------------------------------------------------------------------


def edited(content, **changes):
    return json.dumps(json.loads(content) | changes).encode()


DAMAGES = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "last bytes lost": lambda content: content[:-4],
    "garbage": lambda content: bytes(range(256)),
    "zeros": lambda content: bytes(len(content)),
    "a web page": lambda content: b"<html></html>",
    "a list": lambda content: b"[]",
    "a number": lambda content: b"42",
    "null": lambda content: b"null",
    "deep nesting": lambda content: b"[" * 200_000,
    "a digit changed": lambda content: content.replace(b"50.0", b"99.0", 1),
    "NaN for a number": lambda content: content.replace(b"50.0", b"NaN", 1),
    "another rate": lambda content: content.replace(b'"noise_rate": 0.4', b'"noise_rate": 0.5'),
    "an unknown field": lambda content: content.replace(b'"seed"', b'"sead"', 1),
    "no checksum": lambda content: edited(content, sha256=None),
    "no history": lambda content: edited(content, history=None),
    "no spec": lambda content: edited(content, spec=[]),
    "an extra key": lambda content: edited(content, note="hello"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_named_and_not_believed(store, small_spec, damage):
    path = store.save(made_result(small_spec()))
    content = path.read_bytes()
    damaged = DAMAGES[damage](content)
    assert damaged != content
    path.write_bytes(damaged)
    for read in (lambda: store.load(small_spec()), store.runs):
        with pytest.raises(StoreError, match="delete it and run again") as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [how for how in BROKEN if how not in ("NaN", "a tensor")])
def test_a_signed_but_senseless_result_is_refused(store, small_spec, how):
    """As :meth:`Store.save` would not write it, but with the right checksum."""
    result = made_result(small_spec())
    path = store.save(result)
    broken(result, how)
    provenance = json.loads(path.read_bytes())["provenance"] | {
        "device": result.device,
        "precision": result.precision,
        "realised_noise_rate": result.realised_noise_rate,
    }
    content = {"history": result.history, "confusion": result.confusion, "provenance": provenance}
    path.write_bytes(signed(path.read_bytes(), **content))
    for read in (lambda: store.load(small_spec()), store.runs):
        with pytest.raises(StoreError, match="delete it and run again"):
            read()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "mnist-clean-ce-seed1-00000000"},
        {"provenance": {}},
        {"provenance": None},
        {"details": "none"},
        {"features": [1.0]},
        {"spec": {}},
        {"note": "hello"},
    ],
    ids=repr,
)
def test_a_signed_result_with_other_fields_is_refused(store, small_spec, changes):
    path = store.save(made_result(small_spec()))
    path.write_bytes(signed(path.read_bytes(), **changes))
    with pytest.raises(StoreError, match="delete it and run again"):
        store.runs()


@pytest.mark.parametrize(
    "facts",
    [{"finished": "2026-01-01T12:00:00"}, {"finished": "today"}, {"threads": 0}, {"seconds": -1.0}],
    ids=repr,
)
def test_a_signed_result_that_was_made_as_none_can_be_is_refused(store, small_spec, facts):
    path = store.save(made_result(small_spec()))
    provenance = json.loads(path.read_bytes())["provenance"] | facts
    path.write_bytes(signed(path.read_bytes(), provenance=provenance))
    with pytest.raises(StoreError, match=next(iter(facts))):
        store.runs()


PIECES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
attacked = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@attacked
@given(data=st.data())
def test_whatever_a_signed_result_says_it_is_read_whole_or_refused(tmp_path, small_spec, data):
    """Any part of it, at any depth, taken away or replaced by anything that JSON can hold."""
    store = Store(tmp_path)
    path = store.save(made_result(small_spec()))
    content = json.loads(path.read_bytes())
    place, key = content, data.draw(st.sampled_from(sorted(set(content) - {"sha256"})))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(PIECES)
    path.write_bytes(signed(json.dumps(content)))
    try:
        run = store.read(path)
    except StoreError:
        return
    finally:
        path.unlink()
    assert 0 <= run.final_accuracy <= run.best_accuracy <= 100
    assert all(len(values) == run.spec.epochs for values in run.history.values())
    assert {"device", "commit", "torch", "seconds"} <= set(run.provenance)


@attacked
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_result_with_any_bit_flipped_or_cut_anywhere_is_refused(
    tmp_path, small_spec, place, bit, cut
):
    """But for white space, which the checksum leaves out, since JSON does."""
    store = Store(tmp_path)
    run = made_result(small_spec())
    path = store.save(run)
    content = bytearray(path.read_bytes())
    where = int(place * len(content))
    if cut:
        del content[where:]
    else:
        content[where] ^= 1 << bit
    path.write_bytes(content)
    try:
        assert store.read(path).history == run.history
        assert not content[where:].strip() or not cut
    except StoreError:
        pass


@pytest.mark.parametrize("change", ["method", "precision"])
def test_a_renamed_result_does_not_pass_for_another(store, small_spec, change):
    path = store.save(made_result(small_spec("ce")))
    other = (
        store.path(small_spec("ce_sr"), "float32")
        if change == "method"
        else store.path(small_spec("ce"), "bf16")
    )
    path.rename(other)
    with pytest.raises(StoreError, match="renamed") as caught:
        store.load(small_spec("ce_sr" if change == "method" else "ce"))
    assert str(other) in str(caught.value)


def test_a_result_that_cannot_be_opened_is_named(store, small_spec):
    path = store.path(small_spec(), "float32")
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="is not a readable result") as caught:
        store.load(small_spec())
    assert str(path) in str(caught.value)


@attacked
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_checkpoint_with_any_bit_flipped_or_cut_anywhere_is_refused(
    tmp_path, few_state, place, bit, cut
):
    store, (spec, state) = Store(tmp_path), few_state
    path = store.checkpoint(spec, "float32")
    if not path.exists():
        store.save_checkpoint(spec, "float32", state)
    whole = path.read_bytes()
    content = bytearray(whole)
    where = int(place * len(content))
    if cut:
        del content[where:]
    else:
        content[where] ^= 1 << bit
    path.write_bytes(content)
    try:
        with pytest.raises(StoreError, match=r"its checksum is wrong\); delete it to") as caught:
            store.load_checkpoint(spec, "float32")
    finally:
        path.write_bytes(whole)
    assert str(path) in str(caught.value)
    assert store.load_checkpoint(spec, "float32")["epoch"] == 1


@pytest.mark.parametrize("content", [b"", bytes(31), b"<html></html>"])
def test_a_checkpoint_that_is_none_is_named(store, small_spec, content):
    path = store.checkpoint(small_spec(), "float32")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="delete it to train from the start") as caught:
        store.load_checkpoint(small_spec(), "float32")
    assert str(path) in str(caught.value)


STATES = {
    "epoch 0": {"epoch": 0},
    "epoch -2": {"epoch": -2},
    "epoch 99": {"epoch": 99},
    "epoch 2 of a history of 1": {"epoch": 2},
    "half an epoch": {"epoch": 0.5},
    "an epoch of text": {"epoch": "1"},
    "no history": {"history": {}},
    "another run's": {"digest": "0" * 64},
    "another precision's": {"precision": "bf16"},
    "no confusion": {"confusion": []},
    "no scheduler": {"scheduler": None},
    "another scheduler": {"scheduler": {"last_epoch": 2}},
    "a key too many": {"extra": 1},
}


@pytest.mark.parametrize("case", STATES)
def test_a_checkpoint_whose_content_cannot_be_is_refused_when_loaded(store, few_state, case):
    spec, state = few_state
    store.save_checkpoint(spec, "float32", state | STATES[case])
    with pytest.raises(StoreError, match=r"is not usable \(.*delete it to train from the start"):
        store.load_checkpoint(spec, "float32")


@pytest.mark.parametrize("key", ["id", "epoch", "history", "models", "optimizer", "made_with"])
def test_a_checkpoint_without_a_key_is_refused_when_loaded(store, few_state, key):
    spec, state = few_state
    store.save_checkpoint(spec, "float32", {k: v for k, v in state.items() if k != key})
    with pytest.raises(StoreError, match=r"a state is a dict of confusion, digest, epoch"):
        store.load_checkpoint(spec, "float32")


@pytest.mark.parametrize("state", [[], None, 1, {}])
def test_a_checkpoint_that_is_no_state_is_refused_when_loaded(store, few_state, state):
    store.save_checkpoint(few_state[0], "float32", state)
    with pytest.raises(StoreError, match=r"a state is a dict of"):
        store.load_checkpoint(few_state[0], "float32")


@attacked
@given(
    name=st.sampled_from(sorted(HISTORY)),
    values=st.lists(st.floats() | st.none() | st.text(max_size=2) | st.booleans(), max_size=3),
)
def test_a_checkpoints_history_is_one_possible_number_an_epoch_or_refused(
    tmp_path, few_state, name, values
):
    store, (spec, state) = Store(tmp_path), few_state
    state = state | {"history": state["history"] | {name: values}}
    store.save_checkpoint(spec, "float32", state)
    try:
        loaded = store.load_checkpoint(spec, "float32")["history"][name]
    except StoreError:
        return
    (value,) = loaded
    if value is None:
        assert name in ("memorised", "corrected", "fitted")
    else:
        assert math.isfinite(value)
        assert name == "train_loss" or value >= 0
        assert value <= (100 if name in PERCENT else 1 if name in SHARES else math.inf)


def test_checkpoints_run_no_code(store, small_spec, tmp_path):
    """A checkpoint is data: one that would execute something when unpickled is refused."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    store.save_checkpoint(small_spec(), "float32", {"epoch": Evil()})
    with pytest.raises(StoreError, match=r"is not usable \(Weights only load failed"):
        store.load_checkpoint(small_spec(), "float32")
    assert not (tmp_path / "executed").exists()


# --- writing that fails --------------------------------------------------------------------------


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_content_and_leaves_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(StoreError, match="cannot be written: No space left on device") as caught:
        write_atomically(path, b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_all_of_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    synced, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    monkeypatch.setattr(os, "replace", lambda *paths: replace(*paths) or synced.append("replaced"))
    write_atomically(tmp_path / "file", b"small")
    assert synced == [5, "replaced"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_keeps_the_old_content_and_leaves_nothing(
    tmp_path, monkeypatch, error
):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(*arguments):
        raise error

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(error):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_really_full(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def on_full_device(self, mode):
        self.touch()
        return open("/dev/full", "wb")

    with monkeypatch.context() as full:
        full.setattr(Path, "open", on_full_device)
        with pytest.raises(StoreError, match="cannot be written: No space left on device"):
            write_atomically(path, b"new" * 10_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_write_cut_off_in_its_middle(store, few_state):
    """The system takes the first 4 kB of the checkpoint and refuses the rest."""
    spec, state = few_state
    store.save_checkpoint(spec, "float32", state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(StoreError, match="cannot be written: File too large"):
            store.save_checkpoint(spec, "float32", state | {"id": "the next one"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert store.load_checkpoint(spec, "float32")["id"] == spec.id
    assert leftovers(store.folder) == []


@pytest.mark.parametrize(
    "write",
    [
        lambda store, spec: store.save(made_result(spec)),
        lambda store, spec: store.save_checkpoint(spec, "float32", {}),
        lambda store, spec: store.locked(spec, "float32").__enter__(),
    ],
    ids=["save", "save_checkpoint", "locked"],
)
def test_a_folder_that_cannot_be_made_is_named(tmp_path, small_spec, write):
    (tmp_path / "results").mkdir()
    for name in ("runs", ".partial"):
        (tmp_path / "results" / name).write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be written: (Not a directory|File exists)"):
        write(Store(tmp_path / "results"), small_spec())


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-has-this-name/x", "", "a\0b"])
def test_what_cannot_be_a_folder_is_refused_at_once(name):
    with pytest.raises(ValueError, match="the results folder cannot be"):
        Store(name)


def test_a_file_is_no_results_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises((ValueError, StoreError), match=r"cannot be"):
            Store(place).save_checkpoint(make_spec("mnist", "ce"), "float32", {})


@pytest.mark.skipif(
    os.name != "posix" or getattr(os, "geteuid", int)() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_named(tmp_path, small_spec):
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "results" / "runs").chmod(0o555)
    with pytest.raises(StoreError, match="cannot be written: Permission denied"):
        Store(tmp_path / "results").save(made_result(small_spec()))


def test_a_read_only_file_system_is_named(store, small_spec, monkeypatch):
    def read_only(*arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(StoreError, match="cannot be written: Read-only file system") as caught:
        store.save(made_result(small_spec()))
    assert str(store.path(small_spec(), "float32")) in str(caught.value)


# --- what killed processes leave ------------------------------------------------------------------


def left_behind(store, spec):
    """What kills leave, at their worst: both kinds of temporary files, a lock, a checkpoint."""
    scratch = store.folder / ".partial"
    scratch.mkdir(parents=True, exist_ok=True)
    for suffix in ("json.x1.tmp", "pt.x2.tmp", "npz.x3.tmp", "lock", "pt"):
        path = scratch / f"{spec.id}.float32.{suffix}"
        path.write_bytes(b"half")
        os.utime(path, (0, 0))  # before any result


@pytest.mark.parametrize("stored", [True, False])
def test_what_a_killed_process_left_goes_when_its_run_is_locked(store, small_spec, stored):
    spec = small_spec()
    if stored:
        store.save(made_result(spec))
    left_behind(store, spec)
    left_behind(store, small_spec(seed=2))
    others = len(list((store.folder / ".partial").glob("*seed2*")))
    with store.locked(spec, "float32"):
        names = [path.name for path in (store.folder / ".partial").glob(f"{spec.id}*")]
        assert sorted(names) == sorted(
            [f"{spec.id}.float32.lock"] + [f"{spec.id}.float32.pt"] * (not stored)
        )
    assert len(list((store.folder / ".partial").glob(f"{spec.id}*"))) == (not stored)
    assert len(list((store.folder / ".partial").glob("*seed2*"))) == others


@pytest.mark.parametrize(("newer", "stays"), [(0, False), (10**6, True)])
def test_a_state_of_a_stored_run_that_is_repeated_for_its_details_stays(
    store, small_spec, newer, stays
):
    """It is newer than the result, if only by nanoseconds."""
    spec = small_spec()
    made = store.save(made_result(spec))
    left_behind(store, spec)
    state = store.checkpoint(spec, "float32")
    os.utime(made, ns=(10**9, 10**9))
    os.utime(state, ns=(10**9 + newer, 10**9 + newer))
    with store.locked(spec, "float32"):
        assert state.exists() is stays
    assert list((store.folder / ".partial").iterdir()) == [state] * stays


def test_what_a_process_leaves_of_its_run_goes_when_it_lets_go(store, small_spec):
    with store.locked(small_spec(), "float32"):
        left_behind(store, small_spec())
    left = [store.checkpoint(small_spec(), "float32")]
    assert list((store.folder / ".partial").iterdir()) == left


def test_details_in_another_precision_are_found(store, small_spec):
    spec = small_spec()
    store.save(made_result(spec))
    assert store.load(spec, details=True) is None
    assert store.missing([spec], details=True) == [spec]
    half = made_result(spec)
    half.precision = "bf16"
    store.save(half, {"knn_accuracy": 90.0}, {"embedding": np.zeros((2, 2))})
    assert store.load(spec).provenance["precision"] == "float32"
    assert store.load(spec, details=True).provenance["precision"] == "bf16"
    assert store.load(spec, "float32", details=True) is None
    assert store.missing([spec], "float32", details=True) == [spec]
    assert store.missing([spec], details=True) == store.missing([spec]) == []
    assert len(store.runs()) == 2
    assert [run.provenance["precision"] for run in store.preferred_runs()] == ["float32"]
    store.path(spec, "float32").unlink()
    assert [run.provenance["precision"] for run in store.preferred_runs()] == ["bf16"]


def test_tidying_leaves_nothing_but_what_is_needed(store, small_spec):
    stored, unfinished, busy = (small_spec(seed=seed) for seed in (1, 2, 3))
    store.save(made_result(stored))
    for spec in (stored, unfinished, busy):
        left_behind(store, spec)
    foreign = store.folder / ".partial" / "notes.txt"
    foreign.write_text("mine")
    (store.folder / ".partial" / f"{stored.id}.bf16.pt.x.tmp").write_bytes(b"half")
    with Store(store.folder).locked(busy, "float32"):
        (store.folder / ".partial" / f"{busy.id}.float32.pt.now.tmp").write_bytes(b"half")
        store.tidy()
        left = {path.name for path in (store.folder / ".partial").iterdir()}
    assert left == {
        "notes.txt",
        f"{unfinished.id}.float32.pt",
        *(f"{busy.id}.float32.{suffix}" for suffix in ("lock", "pt", "pt.now.tmp")),
    }


def test_temporary_files_lie_where_git_does_not_look(store, small_spec, monkeypatch):
    """A kill inside any write leaves its file in the folder that is not for git."""
    left = []

    def killed(source, target):
        left.append(Path(source))
        os.unlink(source)

    monkeypatch.setattr(os, "replace", killed)
    store.save_checkpoint(small_spec(), "float32", {})
    store.save(made_result(small_spec()), {}, {"embedding": np.zeros(3)})
    assert [path.suffixes[-3] for path in left] == [".pt", ".npz", ".json"]
    assert {path.parent for path in left} == {store.folder / ".partial"}


# --- several processes ---------------------------------------------------------------------------


def _write_for_ever(path, size):
    letter = 0
    while True:
        write_atomically(path, bytes([65 + letter % 26]) * size)
        letter += 1


@forks
def test_a_writer_killed_at_any_moment_never_leaves_half_a_file(tmp_path):
    path, size = tmp_path / "file", 300_000
    chance = random.Random(0)
    contents = set()
    for _ in range(8):
        writer = multiprocessing.get_context("fork").Process(
            target=_write_for_ever, args=(path, size)
        )
        writer.start()
        while not path.exists():
            time.sleep(0.001)
        seen, wanted = set(), chance.randint(1, 5)
        while len(seen) < wanted:
            content = path.read_bytes()
            assert content == content[:1] * size
            seen.add(content[:1])
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        content = path.read_bytes()
        assert content == content[:1] * size
        contents.add(content[:1])
    assert len(contents) > 1
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_a_second_handle_finds_the_run_busy(store, small_spec):
    spec = small_spec()
    with store.locked(spec, "float32"):
        with (
            pytest.raises(BusyError, match=f"{spec.id} is being trained by another process"),
            Store(store.folder).locked(spec, "float32"),
        ):
            pass
        with Store(store.folder).locked(small_spec(seed=2), "float32"):
            pass
        with Store(store.folder).locked(spec, "bf16"):
            pass
    with Store(store.folder).locked(spec, "float32"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a file that is held cannot be removed")
def test_who_takes_a_run_in_the_moment_it_is_let_go_has_it_alone(store, small_spec, monkeypatch):
    held, release = contextlib.ExitStack(), filelock.FileLock.release

    def release_to_another(lock, *arguments, **more):
        release(lock, *arguments, **more)
        monkeypatch.undo()
        held.enter_context(Store(store.folder).locked(small_spec(), "float32"))

    with store.locked(small_spec(), "float32"):
        monkeypatch.setattr(filelock.FileLock, "release", release_to_another)
    with (
        held,
        pytest.raises(BusyError, match="another process"),
        store.locked(small_spec(), "float32"),
    ):
        pass


def test_an_error_lets_go_of_the_run(store, small_spec):
    with pytest.raises(RuntimeError, match="training failed"), store.locked(small_spec(), "bf16"):
        raise RuntimeError("training failed")
    with store.locked(small_spec(), "bf16"):
        pass


def _hold(folder, spec, ready):
    with Store(folder).locked(spec, "float32"):
        ready.set()
        signal.pause()


@forks
def test_a_killed_process_lets_go_of_its_run(store, small_spec):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(store.folder, small_spec(), ready))
    holder.start()
    ready.wait()
    with (
        pytest.raises(BusyError, match="another process"),
        store.locked(small_spec(), "float32"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with store.locked(small_spec(), "float32"):
        pass


def test_concurrent_saves_and_reads_see_whole_results(store, small_spec):
    spec = small_spec()
    store.save(made_result(spec, accuracy=0.0))
    problems = []

    def save(accuracy):
        try:
            for _ in range(15):
                Store(store.folder).save(made_result(spec, accuracy=accuracy))
                assert Store(store.folder).load(spec).final_accuracy in (0.0, 1.0, 2.0, 3.0)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=save, args=(float(n),)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(store.runs()) == 1
    assert leftovers(store.folder) == []


# --- where ---------------------------------------------------------------------------------------


def test_results_folder_is_the_one_named_else_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.setenv("LNLSR_RESULTS", str(tmp_path))
    assert results_folder() == tmp_path.resolve()
    assert Store().folder == tmp_path.resolve()
    monkeypatch.setenv("LNLSR_RESULTS", "")  # as if it were not there
    monkeypatch.chdir(tmp_path)
    place = tmp_path.resolve() / "place"
    (place / "lnlsr_lib").mkdir(parents=True)
    monkeypatch.setattr(store_module, "__file__", str(place / "lnlsr_lib" / "store.py"))
    assert results_folder() == tmp_path.resolve() / "results"  # installed
    (place / "pyproject.toml").touch()
    assert results_folder() == place / "results"


def test_looking_makes_no_folder(store, small_spec):
    store.load(small_spec())
    store.missing([small_spec()])
    assert store.runs() == []
    assert not store.folder.exists()


def test_a_copy_that_git_does_not_have_names_no_commit(monkeypatch, tmp_path):
    def git(*command):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "other.py").write_text("1")
    copy = tmp_path / "site-packages" / "store.py"
    copy.parent.mkdir()
    copy.write_text("2")
    git("init")
    git("add", "other.py")
    git("commit", "-m", "other")
    monkeypatch.setattr(store_module, "__file__", str(copy))
    code_version.cache_clear()
    assert (code_version()["commit"], code_version()["modified"]) == (None, None)
    git("add", ".")
    git("commit", "-m", "store")
    code_version.cache_clear()
    assert len(code_version()["commit"]) == 40
    assert code_version()["modified"] is False
    new = copy.with_name("new.py")
    for changed, modified in ((tmp_path / "other.py", False), (new, True), (copy, True)):
        changed.write_text("3")
        code_version.cache_clear()
        assert code_version()["modified"] is modified  # the library's files alone count
        new.unlink(missing_ok=True)
    code_version.cache_clear()


def test_the_commit_is_the_one_when_the_store_was_opened(tmp_path):
    code_version.cache_clear()
    Store(tmp_path)
    assert code_version.cache_info().currsize == 1


def test_a_run_that_goes_on_under_other_code_names_both_commits(
    tmp_path, few, few_state, monkeypatch
):
    def under(commit):
        found = {"lnlsr": "0", "commit": commit, "modified": False}
        monkeypatch.setattr(store_module, "code_version", lambda: found)
        return Store(tmp_path)

    spec, first = few_state
    under("a").save_checkpoint(spec, "float32", first)
    for commit in ("a", "b", "b", "a"):
        store = under(commit)
        state = store.load_checkpoint(spec, "float32")
        assert set(state) == set(first)
        store.save_checkpoint(spec, "float32", state)
    result = train(spec, few, device="cpu", precision="float32")
    run = store.read(store.save(result))
    assert (run.provenance["commit"], run.provenance["commits"]) == ("a", ["a", "b", "a"])
    assert run.places == [f"{run.provenance['device']}, 1 thread"]
    assert "places" not in run.provenance
    alone = under("c")
    assert "commits" not in alone.read(alone.save(result)).provenance
