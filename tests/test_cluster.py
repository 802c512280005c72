"""Sweeps on Ray: the same numbers as in this process, whatever dies on the way."""

import contextlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import cached_property, partial
from types import SimpleNamespace

import pytest
import torch

from lnlsr_lib import cluster
from lnlsr_lib import sweep as in_process
from lnlsr_lib.cli import main
from lnlsr_lib.cluster import ClusterError, makespan, run_all
from lnlsr_lib.cost import Cost
from lnlsr_lib.data import DataError
from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.store import BusyError, Store, StoreError
from lnlsr_lib.trainer import DivergedError

HERE = {"device": "cpu", "precision": "float32", "progress": False}
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'lnlsr[cluster]'",
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def tiny_spec(small_spec):
    """64 of the digits, in two batches."""
    return lambda method="ce_sr", **more: small_spec(method, **{"train_size": 60} | more)


def numbers(run):
    """What has to be the same wherever and however often a run was trained."""
    series = {name: values for name, values in run.history.items() if name != "seconds"}
    return series, run.confusion, run.features


def same_as_in_process(runs, folder, **more):
    expected = in_process.run_all([run.spec for run in runs], Store(folder), **HERE, **more)
    return [numbers(run) for run in runs] == [numbers(run) for run in expected]


# --- without a cluster ---------------------------------------------------------------------------


def test_without_ray_the_message_says_what_to_install(store, tiny_spec, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=re.escape("lnlsr[cluster]")):
        run_all([tiny_spec()], store, **HERE)
    command = ["run", "precision", "--profile", "smoke", "--ray"]
    assert main(["--results", str(store.folder), *command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "lnlsr[cluster]" in line
    assert not list(store.folder.glob("runs/*"))


def test_what_is_stored_needs_no_ray(store, tiny_spec, monkeypatch):
    spec = tiny_spec(epochs=1)
    (run,) = in_process.run_all([spec], store, **HERE)
    monkeypatch.setitem(sys.modules, "ray", None)
    (store.folder / ".partial" / f"{spec.id}.float32.pt.x.tmp").write_bytes(b"half")
    assert run_all([spec, spec], store, progress=False) == [run, run]
    assert list((store.folder / ".partial").iterdir()) == []  # what a killed process left
    with pytest.raises(ClusterError):
        run_all([spec], store, details=True, progress=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"gpus_per_run": 1.5}, "gpus_per_run must be"),
        ({"gpus_per_run": -0.5}, "gpus_per_run must be"),
        ({"cpus_per_run": 0}, "cpus_per_run must be"),
    ],
)
def test_a_bad_share_or_device_is_refused(store, tiny_spec, more, message):
    with pytest.raises(ValueError, match=message):
        run_all([tiny_spec()], store, **more)


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_the_command_line_refuses_a_share_without_ray(capsys, command):
    assert main([command, "precision", "--profile", "smoke", "--gpus-per-run", "0.25"]) == 1
    assert "go with --ray" in capsys.readouterr().err


def test_a_machine_with_other_code_does_not_work():
    assert cluster._call(cluster._code(), 3, torch.get_num_threads) == 3
    assert cluster._call(cluster._code(), 1, divmod, 7, 2) == (3, 1)
    with pytest.raises(ClusterError, match="of another version"):
        cluster._call("other", 1, divmod, 7, 2)


def test_what_lies_beside_the_code_is_not_part_of_it(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(cluster, "__file__", str(tmp_path / "cluster.py"))
    cluster._code.cache_clear()
    before = cluster._code()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"x")
    cluster._code.cache_clear()
    assert cluster._code() == before
    (tmp_path / "b.csv").write_text("2")
    cluster._code.cache_clear()
    assert cluster._code() != before
    with_csv, pytorch = cluster._code(), torch.__version__.partition("+")[0]
    for installed, same in ((f"{pytorch}+another.build", True), (f"{pytorch}.1", False)):
        monkeypatch.setattr(torch, "__version__", installed)
        cluster._code.cache_clear()
        assert (cluster._code() == with_csv) is same
    cluster._code.cache_clear()


def test_processes_of_a_machine_fetch_a_data_set_one_after_another(monkeypatch):
    inside, most = [], []

    def slow(name):
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return name

    monkeypatch.setattr(cluster, "load_dataset", slow)
    fetch = cluster._dataset.__wrapped__  # one of its own in each process
    threads = [threading.Thread(target=fetch, args=("digits",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_the_longest_run_first_and_each_in_the_first_free_place(small_spec):
    costs = [Cost(small_spec(), 4, 2.0), Cost(small_spec(), 2, 5.0)]
    assert makespan(costs, 1) == sum(cost.total for cost in costs)
    assert makespan(costs, 2) == 9.0  # 5 + 2 + 2 beside 5 + 2 + 2
    assert makespan(costs, 3) == 7.0  # 5 + 2, 5 and 2 + 2 + 2
    assert makespan(costs, 100) == 5.0
    assert makespan([Cost(small_spec(), 2, 2.0), Cost(small_spec(), 1, 5.0)], 2) == 5.0
    with pytest.raises(ValueError, match="slots"):
        makespan(costs, 0)


def test_a_log_gets_a_line_when_a_run_ends(tiny_spec, capsys):
    long, short = tiny_spec(epochs=4), tiny_spec("ce")
    display = cluster._Log(True, {long: 30.0, short: 10.0})
    display.show(0, 2, 0, {})
    display.show(0, 2, 0, {long: 1})  # nothing ended, and no minute has passed
    display.first = (0.0, display.first[1] - 10)
    display.show(1, 1, 0, {long: 1, short: 2})
    display.show(1, 0, 1, {long: 1, short: 2})
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "0 of 2 runs done, 2 running, 0 failed"
    assert second.startswith("1 of 2 runs done, 1 running, 0 failed, ")
    left = float(re.search(r"failed, (\d+) s left", second)[1])
    assert left == pytest.approx(10 * (40 - 17.5) / 17.5, abs=0.6)
    assert third == "1 of 2 runs done, 0 running, 1 failed"
    display.last = (2, time.monotonic() - cluster.LOG_SECONDS)
    display.show(1, 0, 1, {long: 1, short: 2})
    assert capsys.readouterr().err == f"{third}\n"
    cluster._Log(False, display.work).show(0, 2, 0, {})
    assert capsys.readouterr().err == ""


def epoch_of(path):
    """How far the run is that a checkpoint belongs to; its first 32 bytes are a checksum."""
    return torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)["state"]["epoch"]


def test_a_worker_sends_each_checkpoint_and_goes_on_from_one(tiny_spec, monkeypatch):
    """And hands in the details before the result, which says that they are there."""
    spec, sent = tiny_spec("ce", epochs=3), []
    mailbox = SimpleNamespace(actor=SimpleNamespace(put_nowait=SimpleNamespace(remote=sent.append)))
    options = {"device": "cpu", "precision": "float32", "details": True}
    monkeypatch.setattr(in_process, "embed", lambda features, labels: (features[:, :2].numpy(), {}))
    whole = cluster._work(spec, b"", mailbox, options)
    assert [path.rpartition(".")[2] for path in whole] == ["npz", "json"]
    assert [(of, epoch) for of, epoch, _ in sent] == [(spec, 1), (spec, 2)]
    cluster._work(spec, sent[1][2], mailbox, options)
    assert len(sent) == 2  # no epoch was trained but the last


# --- with Ray's part played in this process ------------------------------------------------------


class RayError(Exception):
    """As Ray's: a worker, or its node, is gone."""


class RayTaskError(RayError):
    """As Ray's: what a task raised."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Died(BaseException):
    """What a worker dies of."""


class Task:
    def __init__(self, function, *given, **more):
        self.call = partial(function, *given, **more)
        self.spec = given[3] if given[2] is cluster._work else None

    @cached_property
    def outcome(self):
        try:
            return self.call()
        except Died as error:
            return RayError(str(error))
        except Exception as error:
            return RayTaskError(error)


@pytest.fixture
def ray(monkeypatch):
    """Two nodes of one CPU; a task is worked on when it is waited for. ``handed`` are the runs."""
    messages = []

    class Queue:
        def __init__(self, actor_options):
            remote = SimpleNamespace(remote=messages.append)
            self.actor, self.size = SimpleNamespace(put_nowait=remote), messages.__len__

        def get_nowait_batch(self, number):
            return [messages.pop(0) for _ in range(number)]

    def hand(function, **size):
        def remote(*given, **more):
            task = Task(function, *given, **more)
            fake.handed.extend([task.spec] if task.spec else [])
            return task

        return SimpleNamespace(remote=remote)

    def wait(tasks, timeout):
        assert tasks[0].outcome is not None
        return tasks[:1], tasks[1:]

    def get(task):
        if isinstance(task.outcome, RayError):
            raise task.outcome
        return task.outcome

    fake = SimpleNamespace(
        handed=[],
        connected=[],
        has={"CPU": 1.0},
        init=lambda **where: fake.connected.append(where),
        shutdown=lambda: fake.connected.append(None),
        cluster_resources=lambda: fake.has,
        nodes=lambda: [{"Alive": alive, "Resources": fake.has} for alive in (True, False, True)],
        remote=lambda function: SimpleNamespace(options=partial(hand, function)),
        wait=wait,
        get=get,
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.util.queue", SimpleNamespace(Queue=Queue))
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    return fake


@pytest.mark.parametrize(
    ("device", "has", "share", "expected"),
    [
        ("auto", {"CPU": 4.0, "GPU": 2.0}, None, (1.0, "auto", 4)),
        ("auto", {"CPU": 4.0, "GPU": 1.0}, 0.25, (0.25, "auto", 4)),
        ("cuda", {"CPU": 64.0, "GPU": 4.0}, 0.3, (0.3, "cuda", 24)),  # none is on two GPUs
        ("cpu", {"CPU": 4.0, "GPU": 2.0}, None, (0.0, "cpu", 4)),
        ("auto", {"CPU": 5.0, "GPU": 2.0}, 0.0, (0.0, "cpu", 4)),
        ("auto", {"CPU": 4.0}, None, (0.0, "cpu", 4)),
    ],
)
def test_room_is_what_the_nodes_that_live_have_of_cpus_and_gpus(ray, device, has, share, expected):
    ray.has = has
    with cluster._connected(device, "auto", share, 2) as made:
        assert (made.gpus, made.device, made.slots()) == expected
    assert ray.connected[-1] is None  # it is let go of


@pytest.mark.parametrize("said", [None, "1"])
def test_ray_reports_its_use_only_where_one_wants_it(ray, monkeypatch, said):
    if said:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", said)
    else:
        monkeypatch.setattr(os, "environ", os.environ.copy())
    with cluster._connected("cpu"):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == (said or "0")
    assert ray.connected[0].items() >= {"address": "local", "include_dashboard": False}.items()


def test_a_cluster_that_is_not_there_is_named(ray, store, tiny_spec, monkeypatch):
    def refuse(**where):
        raise ConnectionError("refused")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match=r"no Ray at 10\.0\.0\.1:6379: refused"):
        run_all([tiny_spec()], store, address="10.0.0.1:6379", **HERE)


def test_the_longest_run_is_begun_first_and_each_is_locked(ray, store, tiny_spec, monkeypatch):
    specs, work = [tiny_spec("ce", epochs=epochs) for epochs in (1, 3, 2)], cluster._work
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: written.append(paths) or replace(*paths))

    def watched(spec, *given):
        with pytest.raises(BusyError), Store(store.folder).locked(spec, "float32"):
            pass
        return work(spec, *given)

    monkeypatch.setattr(cluster, "_work", watched)
    runs = run_all(specs, store, **HERE)
    assert [run.spec for run in runs] == specs
    assert ray.handed == [specs[1], specs[2], specs[0]]
    assert list((store.folder / ".partial").iterdir()) == []
    places = {source.parent for source, target in written if store.folder in target.parents}
    assert places == {store.folder / ".partial"}  # where git does not look


def test_a_run_that_gets_on_between_losses_is_not_given_up(
    ray, store, tiny_spec, tmp_path, monkeypatch
):
    """Its workers die after an epoch each, more of them than are forgiven without one."""
    monkeypatch.setattr(cluster, "LOSSES", 2)
    spec, save = tiny_spec("ce", epochs=4), cluster._Satellite.save_checkpoint

    def save_and_die(*given):
        save(*given)
        raise Died

    monkeypatch.setattr(cluster._Satellite, "save_checkpoint", save_and_die)
    runs = run_all([spec], store, **HERE)
    assert ray.handed == [spec] * 4
    assert same_as_in_process(runs, tmp_path / "here")


def test_a_run_that_only_loses_workers_is_given_up_and_keeps_none_back(
    ray, store, tiny_spec, monkeypatch
):
    broken, whole, work = tiny_spec("ce", epochs=2), tiny_spec("ce", epochs=1), cluster._work

    def some(spec, *given):
        if spec == broken:
            raise Died("the node is gone")
        return work(spec, *given)

    monkeypatch.setattr(cluster, "_work", some)
    message = f"{broken.id} lost {cluster.LOSSES} workers: a worker was lost: the node is gone"
    with pytest.raises(ClusterError, match=message):
        run_all([broken, whole], store, **HERE)
    assert ray.handed.count(broken) == cluster.LOSSES
    assert store.missing([broken, whole]) == [broken]


def test_runs_of_other_processes_are_waited_for(ray, store, tiny_spec, monkeypatch):
    theirs, mine = tiny_spec("ce", epochs=2), tiny_spec("ce", epochs=1)
    held, sleeps = contextlib.ExitStack(), []

    def finished(seconds):
        sleeps.append(seconds)
        held.close()
        in_process.run_one(theirs, Store(store.folder), **HERE)

    monkeypatch.setattr(cluster.time, "sleep", finished)
    held.enter_context(Store(store.folder).locked(theirs, "float32"))
    runs = run_all([theirs, mine], store, **HERE)
    assert [run.spec for run in runs] == [theirs, mine]
    assert (ray.handed, sleeps) == ([mine], [cluster.POLL_SECONDS])


def test_what_is_asked_for_reaches_the_workers(ray, store, tiny_spec, monkeypatch):
    """And data that one of them cannot fetch stop the sweep."""
    asked = {"device": "cpu", "precision": "bf16", "compiled": True, "details": True}

    def work(spec, checkpoint, mailbox, options):
        assert options == asked
        raise DataError("they cannot be fetched")

    monkeypatch.setattr(cluster, "_work", work)
    with pytest.raises(DataError, match="they cannot be fetched"):
        run_all([tiny_spec(), tiny_spec("ce")], store, progress=False, **asked)


def test_an_estimate_is_the_median_of_the_places(ray, small_spec, monkeypatch):
    seen, seconds, spec = [], iter([9.0, 1.0, 2.0, 4.0]), small_spec()
    ray.has = {"CPU": 2.0}

    def timed(specs, **options):
        seen.append(options)
        return [Cost(spec, 3, next(seconds), tuple(specs))]

    monkeypatch.setattr(cluster, "estimate", timed)
    made, slots = cluster.estimate_on([spec], precision="bf16")
    assert (made, slots) == ([Cost(spec, 3, 3.0, (spec,))], 4)
    assert seen == [{"device": "cpu", "precision": "bf16", "kept": False}] * 4


# --- on a cluster of three nodes -----------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes():
    """A head and two more nodes, one CPU each; Ray is not connected."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster()
        for _ in range(3):
            add(made)
        yield made
        made.shutdown()


def add(nodes):
    return nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)


@needs_ray
def test_a_grid_has_the_numbers_of_this_process(nodes, store, tiny_spec, tmp_path, capfd):
    specs = [tiny_spec(method, epochs=epochs) for method in ("ce", "ce_sr") for epochs in (1, 2)]
    runs = run_all(specs, store, address=nodes.address, **HERE | {"progress": True})
    assert [run.spec for run in runs] == specs
    assert [store.load(spec) for spec in specs] == runs
    assert same_as_in_process(runs, tmp_path / "here")
    assert all(run.provenance["threads"] == 1 for run in runs)
    assert "4 of 4 runs done, 0 running, 0 failed" in capfd.readouterr().err
    assert list((store.folder / ".partial").glob("*.pt")) == []


@needs_ray
def test_details_come_as_well_and_a_run_that_diverges_keeps_none_back(nodes, store, tiny_spec):
    broken, whole = tiny_spec("ce", learning_rate=1e30, clip_norm=None), tiny_spec(epochs=1)
    with pytest.raises(DivergedError, match=broken.id):
        run_all([broken, whole], store, address=nodes.address, details=True, **HERE)
    assert store.missing([broken, whole]) == [broken]
    other = in_process.run_one(whole, Store(store.folder.parent / "here"), details=True, **HERE)
    assert numbers(store.load(whole)) == numbers(other)
    assert store.load(whole).details == other.details  # the checksum of the arrays


@needs_ray
def test_a_run_that_fails_keeps_none_back_and_is_named(nodes, store, tiny_spec, monkeypatch):
    broken, whole = tiny_spec("ce", epochs=1), tiny_spec(epochs=1)
    call = cluster._Cluster.call

    def no_memory(*given, **more):
        raise torch.OutOfMemoryError("no memory is left")

    def some(self, function, *given, **more):
        return call(self, no_memory if broken in given else function, *given, **more)

    monkeypatch.setattr(cluster._Cluster, "call", some)
    before = signal.getsignal(signal.SIGTERM)
    message = f"{broken.id} failed: OutOfMemoryError: no memory is left"
    with pytest.raises(ClusterError, match=message):
        run_all([broken, whole], store, address=nodes.address, **HERE)
    assert store.missing([broken, whole]) == [broken]
    assert signal.getsignal(signal.SIGTERM) is before  # not Ray's, which aborts
    monkeypatch.setattr(cluster._Cluster, "call", lambda self, *_: call(self, no_memory))
    with pytest.raises(ClusterError, match="a worker failed: OutOfMemoryError"):
        run_all([broken], store, address=nodes.address, **HERE)


@needs_ray
def test_errors_are_those_of_a_sweep(nodes, store, tiny_spec):
    spec = tiny_spec()
    with pytest.raises(ClusterError, match=r"no machine has 1 CPUs and 0\.5 GPUs"):
        run_all([spec], store, address=nodes.address, gpus_per_run=0.5)
    with pytest.raises(ValueError, match="precision must be"):
        run_all([spec], store, address=nodes.address, precision="fp8")
    path = store.checkpoint(spec, "float32")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    with pytest.raises(StoreError, match=re.escape(str(path))):
        run_all([spec], store, address=nodes.address, **HERE)
    with store.locked(spec, "float32"):
        pass  # the sweep has let go of it


@needs_ray
def test_an_estimate_times_every_place(nodes, capsys):
    command = ["estimate", "precision", "--profile", "smoke", "--precision", "float32"]
    assert main([*command, "--ray", nodes.address]) == 0
    shown = capsys.readouterr().out
    each = re.search(r"2 x digits, cnn4, 1437 images, 3 epochs: (.*) each", shown)[1]
    assert f"all of them, 3 at once: {each}\n" in shown  # both at the same time


def busy(nodes):
    """A node that has a run, but not the head."""
    from ray._private.state import available_resources_per_node

    while True:  # it is known late
        free = available_resources_per_node()
        for node in nodes.worker_nodes:
            if free.get(node.node_id, {"CPU": 1}).get("CPU", 0) < 1:
                return node
        time.sleep(0.1)


def lose_nodes(nodes, store, specs, times, monkeypatch):
    """Sweep over ``specs``; at the checkpoints that come in, kill a node with -9, and add one."""
    handed, epochs, killed = [], {}, []
    call, write, work = cluster._Cluster.call, cluster.write_atomically, cluster._work
    hold = store.folder.parent / "hold"  # while it is there no run gets past its next checkpoint
    hold.touch()

    def held_work(*given):
        save = cluster._Satellite.save_checkpoint

        def save_and_wait(*state):
            save(*state)
            while hold.exists():
                time.sleep(0.05)

        cluster._Satellite.save_checkpoint = save_and_wait
        try:
            return work(*given)
        finally:
            cluster._Satellite.save_checkpoint = save

    def watched_call(self, function, *given, **more):
        if function is work:
            handed.append(given[0])
            function = held_work
        return call(self, function, *given, **more)

    def watched_write(path, *rest):
        write(path, *rest)
        if path.suffix == ".pt":
            epochs.setdefault(path.name, []).append(epoch_of(path))
            if hold.exists():
                killed.append(busy(nodes))
                nodes.remove_node(killed[-1], allow_graceful=False)
                add(nodes)
                if len(killed) == times:
                    hold.unlink()

    monkeypatch.setattr(cluster._Cluster, "call", watched_call)
    monkeypatch.setattr(cluster, "write_atomically", watched_write)
    monkeypatch.setattr(cluster, "LOSSES", times + 1)
    runs = run_all(specs, store, address=nodes.address, **HERE)
    assert len(killed) == times
    assert len(handed) >= len(specs) + times, "nodes were killed that were at no run"
    assert {run.spec for run in runs} == set(specs)
    for seen in epochs.values():
        assert seen == sorted(set(seen)), "an epoch was trained again"
    assert same_as_in_process(runs, store.folder.parent / "here")


@needs_ray
def test_a_run_goes_on_elsewhere_when_its_node_is_killed(nodes, store, tiny_spec, monkeypatch):
    specs = [tiny_spec(epochs=8, seed=seed) for seed in (1, 2, 3)]
    lose_nodes(nodes, store, specs, 1, monkeypatch)


@needs_ray
@pytest.mark.slow
def test_five_nodes_are_killed(nodes, store, tiny_spec, monkeypatch):
    specs = [tiny_spec(epochs=40, seed=seed) for seed in (1, 2, 3, 4)]
    lose_nodes(nodes, store, specs, 5, monkeypatch)


SWEEP = """
import json, sys
from lnlsr_lib.cluster import run_all
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.store import Store, StoreError
from lnlsr_lib.trainer import DivergedError
folder, address, *specs = sys.argv[1:]
specs = [RunSpec(**json.loads(spec)) for spec in specs]
run_all(specs, Store(folder), address=address, device="cpu", precision="float32")
"""


def checkpoints(store):
    """Epochs of the unfinished runs."""
    found = {}
    for path in (store.folder / ".partial").glob("*.pt"):
        with contextlib.suppress(FileNotFoundError):  # just finished
            found[path.name] = epoch_of(path)
    return found


@needs_ray
@pytest.mark.slow
def test_the_driver_is_killed_twice(nodes, store, tiny_spec, tmp_path):
    specs = [tiny_spec(epochs=12, seed=seed) for seed in (1, 2, 3)]
    texts = [spec.model_dump_json() for spec in specs]
    command = [sys.executable, "-c", SWEEP, str(store.folder), nodes.address, *texts]
    before = {}
    for _ in range(2):
        with subprocess.Popen(command) as driver:
            while not any(epoch > before.get(n, 0) for n, epoch in checkpoints(store).items()):
                assert driver.poll() is None, "the runs ended before the driver was killed"
                time.sleep(0.05)
            driver.send_signal(signal.SIGKILL)
        after = checkpoints(store)
        assert all(after.get(name, 12) >= epoch for name, epoch in before.items())
        before = after
    subprocess.run(command, check=True)
    runs = store.runs()
    assert {run.spec for run in runs} == set(specs)
    assert len(list((store.folder / "runs").iterdir())) == len(specs)
    assert same_as_in_process(runs, tmp_path / "here")
    assert checkpoints(store) == {}


@needs_ray
@pytest.mark.slow
def test_the_smoke_grid_of_table_1_has_the_numbers_of_this_process(nodes, store, tmp_path):
    """A share of its cells: every ``LNLSR_EVERY``-th, or all."""
    specs = experiment_specs("table1", "smoke")[:: int(os.environ.get("LNLSR_EVERY", "1"))]
    runs = run_all(specs, store, address=nodes.address, **HERE)
    assert same_as_in_process(runs, tmp_path / "here")
