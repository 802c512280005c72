"""Sweeps: what is stored is not trained again, and a killed sweep goes on to the same bits."""

import contextlib
import copy
import json
import multiprocessing
import os
import random
import signal
from dataclasses import replace

import kills
import pytest
import torch

from lnlsr_lib import sweep
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.store import BusyError, Store, StoreError
from lnlsr_lib.sweep import run_all, run_one
from lnlsr_lib.trainer import DivergedError, train

QUIET = {"device": "cpu", "precision": "float32", "progress": False}
forks = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs os.fork"
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture(scope="module")
def tiny(few):
    """64 train and 20 test digits."""
    return replace(
        few,
        train_images=few.train_images[:64],
        train_labels=few.train_labels[:64],
        test_images=few.test_images[:20],
        test_labels=few.test_labels[:20],
    )


@pytest.fixture
def tiny_spec(small_spec):
    return lambda method="ce_sr", **changes: small_spec(method, **{"batch_size": 16} | changes)


def numbers(run):
    return {name: values for name, values in run.history.items() if name != "seconds"}


def test_a_missing_run_is_trained_stored_and_not_trained_again(store, tiny, tiny_spec, monkeypatch):
    spec = tiny_spec()
    run = run_one(spec, store, data=tiny, **QUIET)
    assert run == Store(store.folder).load(spec)
    assert numbers(run) == numbers(train(spec, tiny, device="cpu", precision="float32"))

    def never(*arguments, **more):
        raise AssertionError("trained again")

    monkeypatch.setattr(sweep, "train", never)
    monkeypatch.setattr(sweep, "load_dataset", never)
    assert run_one(spec, store, **QUIET) == run
    assert run_one(spec, store, progress=False) == run
    assert run_all([spec, spec], store, **QUIET) == [run, run]
    assert list((store.folder / ".partial").iterdir()) == []


def test_each_precision_is_a_run_of_its_own(store, tiny, tiny_spec, monkeypatch):
    monkeypatch.setattr(sweep, "load_dataset", lambda name: tiny)
    spec = tiny_spec(epochs=1, batch_size=64)
    for precision in ("bf16", "float32"):
        (run,) = run_all([spec], store, device="cpu", precision=precision, progress=False)
        assert run.provenance["precision"] == precision
        assert run_one(spec, store, device="cpu", progress=False) == run  # either counts
    assert len(store.runs()) == 2


def test_what_is_asked_for_reaches_the_trainer(store, tiny, tiny_spec, monkeypatch):
    asked = {"device": "cpu", "precision": "bf16", "compiled": True, "details": True}

    def training(spec, data, **more):
        assert data is tiny
        assert more.items() >= asked.items()
        raise DivergedError("seen")

    monkeypatch.setattr(sweep, "train", training)
    with pytest.raises(DivergedError, match="seen"):
        run_one(tiny_spec(), store, data=tiny, progress=False, **asked)


@pytest.mark.parametrize("details", [False, True])
def test_what_another_process_has_just_finished_is_not_trained_again(
    store, tiny, tiny_spec, monkeypatch, details
):
    """But if it has no details, and they are asked for."""
    spec, lock, trained = tiny_spec(epochs=1), store.locked, []

    def lock_late(spec, precision):
        run_one(spec, Store(store.folder), data=tiny, **QUIET)
        return lock(spec, precision)

    monkeypatch.setattr(store, "locked", lock_late)
    monkeypatch.setattr(sweep, "train", lambda *a, **k: trained.append(a) or train(*a, **k))
    monkeypatch.setattr(sweep, "embed", lambda features, labels: (features[:, :2].numpy(), {}))
    run = run_one(spec, store, data=tiny, details=details, **QUIET)
    assert (len(trained), run.details is not None) == (1 + details, details)


def test_an_interrupted_run_goes_on_from_its_last_epoch(store, tiny, tiny_spec, monkeypatch):
    spec = tiny_spec(epochs=3)
    save = store.save_checkpoint

    def save_and_stop(spec, precision, state):
        save(spec, precision, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_one(spec, store, data=tiny, **QUIET)
    assert store.load(spec) is None
    starts = []

    def watched(*arguments, **more):
        starts.append(more["state"]["epoch"])
        return train(*arguments, **more)

    monkeypatch.setattr(sweep, "train", watched)
    run = run_one(spec, store, data=tiny, **QUIET)
    assert starts == [2]
    assert numbers(run) == numbers(train(spec, tiny, device="cpu", precision="float32"))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_busy_run_is_left_to_the_other(store, tiny, tiny_spec, precision):
    spec = tiny_spec()
    with (
        Store(store.folder).locked(spec, precision),
        pytest.raises(BusyError, match=spec.id),
    ):
        run_one(spec, store, data=tiny, **QUIET | {"precision": precision})


def test_a_damaged_result_or_checkpoint_stops_the_sweep_and_is_named(store, tiny, tiny_spec):
    spec = tiny_spec()
    path = store.path(spec, "float32")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    with pytest.raises(StoreError, match=path.name):
        run_all([spec], store, **QUIET)
    path.unlink()
    store.checkpoint(spec, "float32").parent.mkdir(exist_ok=True)
    store.checkpoint(spec, "float32").write_bytes(b"half")
    with pytest.raises(StoreError, match="delete it to train from the start"):
        run_one(spec, store, data=tiny, **QUIET)


def test_a_checkpoint_that_does_not_fit_is_named(store, tiny, tiny_spec):
    """Whole, with the right checksum, of this very run: but of other data, or without a network."""
    spec, states = tiny_spec(), []
    train(
        spec,
        tiny,
        device="cpu",
        precision="float32",
        on_epoch=lambda state: states.append(copy.deepcopy(state)),
    )
    for change, why in (
        ({"made_with": "other data"}, "was made with other data, and this is"),
        ({"models": []}, "does not fit"),
        ({"optimizer": {}}, "does not fit"),
    ):
        store.save_checkpoint(spec, "float32", states[0] | change)
        with pytest.raises(StoreError, match=why) as caught:
            run_one(spec, store, data=tiny, **QUIET)
        assert str(store.checkpoint(spec, "float32")) in str(caught.value)
        assert store.checkpoint(spec, "float32").exists()


def test_an_unknown_device_is_refused_though_all_is_stored(store, tiny, tiny_spec):
    spec = tiny_spec(epochs=1)
    run_one(spec, store, data=tiny, **QUIET)
    for device in ("abacus", "meta"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
            run_all([spec], store, device=device)


def test_what_killed_processes_left_of_stored_runs_goes(store, tiny, tiny_spec, monkeypatch):
    """Before a sweep, and while it is at other runs."""
    spec, scratch = tiny_spec(epochs=1), store.folder / ".partial"
    run_one(spec, store, data=tiny, **QUIET)

    def killed():
        for suffix in ("lock", "pt", "pt.x.tmp", "json.y.tmp"):
            path = scratch / f"{spec.id}.float32.{suffix}"
            path.write_bytes(b"half")
            os.utime(path, (0, 0))

    def training(*arguments, **more):
        assert list(scratch.glob(f"{spec.id}*")) == []
        killed()
        return train(*arguments, **more)

    monkeypatch.setattr(sweep, "train", training)
    monkeypatch.setattr(sweep, "load_dataset", lambda name: tiny)
    killed()
    run_all([spec, tiny_spec(epochs=1, seed=2)], store, **QUIET)
    assert list(scratch.iterdir()) == []


def test_progress_names_the_run(store, tiny, tiny_spec, capsys):
    spec = tiny_spec(epochs=1)
    run_one(spec, store, data=tiny, device="cpu", precision="float32", position="1/2")
    shown = capsys.readouterr()
    assert f"1/2 {spec.id}" in shown.err
    assert "epoch 1/1, test" in shown.err
    assert shown.out == ""


def test_run_all_keeps_the_order_and_loads_the_data_once(store, tiny, tiny_spec, monkeypatch):
    loads = []

    def load(name):
        loads.append(name)
        return tiny

    monkeypatch.setattr(sweep, "load_dataset", load)
    specs = [tiny_spec(method, epochs=1) for method in ("gce", "ce", "gce_sr")]
    runs = run_all([*specs, specs[0]], store, **QUIET)
    assert [run.spec for run in runs] == [*specs, specs[0]]
    assert loads == ["digits"]


def test_webvision_is_streamed_and_not_loaded(store, monkeypatch):
    seen = []
    monkeypatch.setattr(sweep, "load_dataset", lambda name: pytest.fail("loaded"))
    monkeypatch.setattr(sweep, "run_one", lambda *_, **more: seen.append(more["data"]))
    run_all([make_spec("webvision", "ce")], store, **QUIET)
    assert seen == [None]


def test_runs_of_others_are_waited_for_when_nothing_else_is_left(
    store, tiny, tiny_spec, monkeypatch
):
    theirs, mine = (tiny_spec("ce", epochs=1, seed=seed) for seed in (1, 2))
    held, tries, sleeps = contextlib.ExitStack(), [], []

    def trying(spec, *arguments, **more):
        tries.append(spec)
        if tries.count(theirs) == 3:
            held.close()
        return run_one(spec, *arguments, **more)

    monkeypatch.setattr(sweep, "run_one", trying)
    monkeypatch.setattr(sweep, "load_dataset", lambda name: tiny)
    monkeypatch.setattr("time.sleep", sleeps.append)
    held.enter_context(Store(store.folder).locked(theirs, "float32"))
    runs = run_all([theirs, mine], store, **QUIET)
    assert [run.spec for run in runs] == [theirs, mine]
    assert tries == [theirs, mine, theirs, theirs]
    assert sleeps == [sweep.POLL_SECONDS]


# --- killed, ten times ---------------------------------------------------------------------------


def _train_and_die(spec, folder, data, events):
    """In a child: run ``spec``, and die by SIGKILL at an event, counted from 1: a step, or, in the
    writing of a checkpoint, when it is not on the disk yet, not in its place yet, or just there."""
    torch.set_num_threads(1)
    fsync, rename = os.fsync, os.replace
    left = iter(range(events)[::-1])

    def event():
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def training(*arguments, **more):
        forward = more.pop("on_batch")
        return train(*arguments, **more, on_batch=lambda: (forward(), event()))

    sweep.train = training
    os.fsync = lambda handle: (event(), fsync(handle))
    os.replace = lambda source, target: (event(), rename(source, target), event())
    run_one(spec, Store(folder), data=data, **QUIET)


@forks
def test_killed_ten_times_in_the_middle_then_resumed_same_bits(store, tiny, tiny_spec):
    """An epoch is four steps and three events of a write; no child gets further than one epoch."""
    spec = tiny_spec(epochs=12)
    chance = random.Random(0)
    context = kills.processes()
    resumed_from = []
    for _ in range(10):
        events = chance.randint(1, 7)
        child = context.Process(target=_train_and_die, args=(spec, store.folder, tiny, events))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert store.load(spec) is None
        state = store.load_checkpoint(spec, "float32")  # whole, or none yet
        resumed_from.append(0 if state is None else state["epoch"])
    assert resumed_from == sorted(resumed_from)
    assert 0 < resumed_from[-1] < 12
    run = run_one(spec, store, data=tiny, **QUIET)
    assert numbers(run) == numbers(train(spec, tiny, device="cpu", precision="float32"))
    assert [path.name for path in (store.folder / "runs").iterdir()] == [f"{spec.id}.float32.json"]
    assert json.loads(store.path(spec, "float32").read_bytes())["id"] == spec.id


@forks
def test_a_small_attack_loses_nothing_and_leaves_nothing(monkeypatch):
    """``python tests/kills.py`` is the whole one: 100 kills and 10 rounds, some minutes."""
    monkeypatch.setattr(sweep, "load_dataset", sweep.load_dataset)
    monkeypatch.setattr(kills, "EPOCHS", 2)
    data = kills.tiny()
    found = kills.killed_one_by_one(4, data, random.Random(0))
    assert found["kills"] == 4
    assert found["inside writes"] == 2
    assert kills.killed_among_others(1, data)["trained to the end"] == 6


# --- shared --------------------------------------------------------------------------------------


def _share(specs, folder, data, log, both):
    """In a child: run ``specs``; its first run begins when the other worker is at one, too."""
    torch.set_num_threads(1)
    begun = []

    def logging(spec, *arguments, **more):
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {spec.id}\n")
        if not begun:
            both.wait()
        begun.append(spec)
        return train(spec, *arguments, **more)

    sweep.train = logging
    sweep.load_dataset = lambda name: data
    sweep.POLL_SECONDS = 0.02
    try:
        runs = run_all(specs, Store(folder), **QUIET)
    except BaseException:
        both.abort()  # an error must not keep the other waiting
        raise
    assert [run.spec for run in runs] == specs


@forks
def test_two_workers_share_the_runs_and_train_each_once(store, tiny, tiny_spec, tmp_path):
    specs = [tiny_spec("ce", seed=seed, epochs=1) for seed in range(1, 7)]
    context = kills.processes()
    both, log = context.Barrier(2), tmp_path / "log"
    workers = [
        context.Process(target=_share, args=(specs, store.folder, tiny, log, both))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    trained = [line.split() for line in log.read_text().splitlines()]
    assert sorted(run for _, run in trained) == sorted(spec.id for spec in specs)
    assert {int(worker) for worker, _ in trained} == {worker.pid for worker in workers}
    assert len(store.runs()) == 6


def test_a_run_that_diverges_does_not_keep_the_others_back(store, tiny, tiny_spec, monkeypatch):
    left = store.folder / ".partial" / "another.float32.pt.x.tmp"  # meanwhile, by a killed process
    left.parent.mkdir(parents=True)
    monkeypatch.setattr(sweep, "load_dataset", lambda name: left.write_bytes(b"half") and tiny)
    broken = [tiny_spec("ce", learning_rate=1e30, clip_norm=None, seed=seed) for seed in (1, 2)]
    whole = tiny_spec("ce")
    with pytest.raises(DivergedError, match=f"{broken[0].id}.*; .*{broken[1].id}"):
        run_all([*broken, whole], store, **QUIET)
    assert store.missing([*broken, whole]) == broken
    assert not left.exists()


def stopped(spec, store, monkeypatch, epochs, **options):
    """Train ``spec``, and stop it when that many epochs are saved."""
    save = Store.save_checkpoint

    def once(self, spec, precision, state):
        save(self, spec, precision, state)
        if state["epoch"] == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save_checkpoint", once)
        with pytest.raises(KeyboardInterrupt):
            run_one(spec, store, **options)


def test_progress_counts_the_steps_of_every_epoch(store, small_spec, monkeypatch, capsys):
    spec = small_spec("ce", train_size=70, batch_size=16)  # the fifth step is a short one
    stopped(spec, store, monkeypatch, 1, **QUIET)
    run_one(spec, store, device="cpu", precision="float32")
    shown = capsys.readouterr().err
    assert "| 5/10 [" in shown
    assert "| 10/10 [" in shown


@pytest.mark.parametrize("stored", [True, False])
def test_details_of_a_run_that_was_stopped_before_are_whole(
    tmp_path, small_spec, monkeypatch, stored
):
    spec = small_spec("ce", train_size=130, epochs=3)
    where = {"device": "cpu", "precision": "float32", "progress": False}
    whole = run_one(spec, Store(tmp_path / "whole"), **where, details=True)
    store = Store(tmp_path / "stopped")
    if stored:  # without details, which are asked for later, and stopped again
        run_one(spec, store, **where)
    stopped(spec, store, monkeypatch, 2, **where, details=stored)
    seen = []
    monkeypatch.setattr(sweep, "train", lambda *a, **k: seen.append(k["state"]) or train(*a, **k))
    again = run_one(spec, store, **where, details=True)
    assert [state["epoch"] for state in seen] == [2]
    assert again.history["test_accuracy"] == whole.history["test_accuracy"]
    for name, values in Store(tmp_path / "whole").details(whole).items():
        assert (store.details(again)[name] == values).all(), name


def test_details_are_trained_for_where_they_are_missing(tmp_path, small_spec):
    store, spec = Store(tmp_path), small_spec("ce", train_size=130, epochs=1)
    where = {"device": "cpu", "precision": "float32", "progress": False}
    plain = run_one(spec, store, **where)
    assert plain.details is None
    whole = run_one(spec, store, **where, details=True)
    assert whole.history["train_loss"] == plain.history["train_loss"]
    assert 0 <= whole.features["knn_accuracy"] <= 100
    arrays = store.details(whole)
    assert arrays["embedding"].shape == (360, 2)
    assert arrays["train_prediction"].shape == arrays["train_mean_margin"].shape == (130,)
    for name, values in arrays.items():
        assert values.dtype == ("uint8" if name.endswith("prediction") else "float16"), name
    right = (arrays["test_margin"] > 0).mean()
    assert 100 * right == pytest.approx(whole.final_accuracy, abs=0.3)
    assert run_one(spec, store, **where) == whole  # more than was asked for counts
    path = store.path(spec, "float32").with_suffix(".npz")
    path.unlink()
    assert not store.has_details(whole)
    assert store.missing([spec], details=True) == [spec]
    with pytest.raises(StoreError, match="delete it, and run again with --details"):
        store.details(whole)
    again = run_one(spec, store, **where, details=True)
    assert store.details(again).keys() == arrays.keys()


def test_a_bar_needs_a_standard_error(tmp_path, small_spec, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)  # closed by whoever called
    spec = small_spec("ce", train_size=130, epochs=1)
    assert run_one(spec, Store(tmp_path), device="cpu", precision="float32").spec == spec
