"""The results folder: whole files or none, verified when read, one process per run."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lnlsr_lib import store as store_module
from lnlsr_lib.store import (
    BusyError,
    Store,
    StoreError,
    code_version,
    results_folder,
    write_atomically,
)
from lnlsr_lib.trainer import HISTORY, RunResult

forks = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs os.fork"
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def made_result(spec, *, precision="float32", accuracy=50.0):
    history = {name: [float(i) for i in range(spec.epochs)] for name in HISTORY}
    history["test_accuracy"] = [accuracy + 10, accuracy]
    return RunResult(spec, history, "cpu (made up)", precision, 1, "made up", 0.4)


def leftovers(folder):
    """Everything under ``folder`` but results, checkpoints and locks."""
    wanted = (".json", ".pt", ".lock")
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
    store.save(made_result(small_spec()))
    provenance = store.load(small_spec()).provenance
    assert provenance["torch"] == torch.__version__
    assert provenance["device"] == "cpu (made up)"
    assert provenance["seconds"] == 1.0
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


def test_saving_drops_the_checkpoint(store, small_spec):
    spec = small_spec()
    store.save_checkpoint(spec, "float32", {"epoch": 1})
    store.save(made_result(spec))
    assert store.load_checkpoint(spec, "float32") is None


def test_table_has_one_row_per_run(store, small_spec):
    assert len(store.table()) == 0
    for method in ("ce", "ce_sr"):
        store.save(made_result(small_spec(method), accuracy=33.0))
    table = store.table()
    assert sorted(table["method"]) == ["ce", "ce_sr"]
    assert (table["final_accuracy"] == 33.0).all()
    assert (table["profile"] == "smoke").all()
    assert set(table["id"]) == {small_spec("ce").id, small_spec("ce_sr").id}


def test_runs_of_another_protocol_are_left_out(store, small_spec):
    store.save(made_result(small_spec(protocol=99)))
    assert store.runs() == []
    assert store.load(small_spec(protocol=99)) is not None


def test_a_history_that_json_cannot_hold_is_refused(store, small_spec):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(made_result(small_spec(), accuracy=float("nan")))
    assert store.missing([small_spec()])


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
    with pytest.raises(StoreError, match=r"npz was cut short or changed"):
        store.details(run)
    beside.unlink()
    with pytest.raises(StoreError, match=r"npz cannot be read"):
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
    for read in (lambda: store.load(small_spec()), store.runs, store.table):
        with pytest.raises(StoreError, match="delete it and run again") as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_history_that_is_too_short_is_refused_even_with_a_right_checksum(store, small_spec):
    spec = small_spec()
    result = made_result(spec)
    result.history["train_loss"].pop()
    path = store.save(result)
    with pytest.raises(StoreError, match="cut short"):
        store.read(path)


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


@pytest.mark.parametrize("damage", ["empty", "cut in half", "garbage"])
def test_a_damaged_checkpoint_is_named(store, small_spec, damage):
    spec = small_spec()
    store.save_checkpoint(spec, "float32", {"epoch": 1, "model": {"w": torch.zeros(1000)}})
    (path,) = store.folder.rglob("*.pt")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(StoreError, match="delete it to train from the start") as caught:
        store.load_checkpoint(spec, "float32")
    assert str(path) in str(caught.value)


def test_checkpoints_run_no_code(store, small_spec, tmp_path):
    """A checkpoint is data: one that would execute something when unpickled is refused."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = store.folder / ".partial" / f"{small_spec().id}.float32.pt"
    path.parent.mkdir(parents=True)
    torch.save({"epoch": Evil()}, path)
    with pytest.raises(StoreError, match="is not readable"):
        store.load_checkpoint(small_spec(), "float32")
    assert not (tmp_path / "executed").exists()


# --- writing that fails --------------------------------------------------------------------------


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_failed_write_keeps_the_old_content_and_leaves_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(StoreError, match="cannot be written: No space left on device") as caught:
        write_atomically(path, b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


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
    path, temporary = tmp_path / "file", tmp_path / "temporary"
    write_atomically(path, b"old")

    def on_full_device(**arguments):
        temporary.touch()
        return os.open("/dev/full", os.O_WRONLY), str(temporary)

    monkeypatch.setattr(tempfile, "mkstemp", on_full_device)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        write_atomically(path, b"new" * 10_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_write_cut_off_in_its_middle(store, small_spec):
    """The system takes the first 4 kB of the checkpoint and refuses the rest."""
    spec = small_spec()
    store.save_checkpoint(spec, "float32", {"epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(StoreError, match="cannot be written: File too large"):
            store.save_checkpoint(spec, "float32", {"epoch": 2, "model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert store.load_checkpoint(spec, "float32") == {"epoch": 1}
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
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be written: (Not a directory|File exists)"):
        write(Store(tmp_path / "file"), small_spec())


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

    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    with pytest.raises(StoreError, match="cannot be written: Read-only file system") as caught:
        store.save(made_result(small_spec()))
    assert str(store.path(small_spec(), "float32")) in str(caught.value)


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
        end = time.monotonic() + chance.uniform(0.01, 0.08)
        while time.monotonic() < end:
            content = path.read_bytes()
            assert content == content[:1] * size
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


def test_an_error_lets_go_of_the_run(store, small_spec):
    with pytest.raises(RuntimeError, match="training failed"), store.locked(small_spec(), "bf16"):
        raise RuntimeError("training failed")
    with store.locked(small_spec(), "bf16"):
        pass


def _hold(folder, spec, ready):
    with Store(folder).locked(spec, "float32"):
        ready.set()
        time.sleep(60)


@forks
def test_a_killed_process_lets_go_of_its_run(store, small_spec):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(store.folder, small_spec(), ready))
    holder.start()
    assert ready.wait(30)
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
    monkeypatch.delenv("LNLSR_RESULTS")
    checkout = Path(store_module.__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        assert results_folder() == checkout / "results"
    else:
        assert results_folder() == Path.cwd() / "results"


def test_looking_makes_no_folder(store, small_spec):
    store.load(small_spec())
    store.missing([small_spec()])
    assert store.runs() == []
    assert not store.folder.exists()
