"""Sweeps on Ray: the same numbers as in this process, whatever dies on the way."""

import importlib.util
import re
import sys
import threading
import time

import pytest

from lnlsr_lib import cluster
from lnlsr_lib import sweep as in_process
from lnlsr_lib.cli import main
from lnlsr_lib.cluster import ClusterError, makespan, run_all
from lnlsr_lib.cost import Cost
from lnlsr_lib.store import Store

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
    assert run_all([spec, spec], store, progress=False) == [run, run]
    with pytest.raises(ClusterError):
        run_all([spec], store, details=True, progress=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"device": "cuda:1"}, "must be auto, cpu or cuda, got 'cuda:1'"),
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
    assert cluster._call(cluster._code(), 1, divmod, 7, 2) == (3, 1)
    with pytest.raises(ClusterError, match="of another version"):
        cluster._call("other", 1, divmod, 7, 2)


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
    assert makespan(costs, 3) == 6.0  # 5, 5 and 2 + 2 + 2, and one 2 at 5 would end at 7
    assert makespan(costs, 100) == 5.0
    with pytest.raises(ValueError, match="slots"):
        makespan(costs, 0)


def test_a_log_gets_a_line_when_a_run_ends(tiny_spec, capsys):
    long, short = tiny_spec(epochs=4), tiny_spec("ce")
    display = cluster._Display(True, {long: 30.0, short: 10.0})
    display.show(0, 2, 0, {})
    display.show(0, 2, 0, {long: 1})  # nothing ended, and no minute has passed
    display.began -= 10
    display.show(1, 1, 0, {long: 1, short: 2})
    display.show(1, 0, 1, {long: 1, short: 2})
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "0 of 2 runs done, 2 running, 0 failed"
    assert second.startswith("1 of 2 runs done, 1 running, 0 failed, ")
    left = float(re.search(r"failed, (\d+) s left", second)[1])
    assert left == pytest.approx(10 * (40 - 17.5) / 17.5, abs=0.6)
    assert third == "1 of 2 runs done, 0 running, 1 failed"


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
    more = HERE | {"progress": True, "details": True}
    runs = run_all(specs, store, address=nodes.address, **more)
    assert [run.spec for run in runs] == specs
    assert sorted(store.runs(), key=id) != runs
    assert {run.spec for run in store.runs()} == set(specs)
    assert same_as_in_process(runs, tmp_path / "here", details=True)
    for run, other in zip(runs, Store(tmp_path / "here").runs(), strict=True):
        del run, other
    assert "4 of 4 runs done, 0 running, 0 failed" in capfd.readouterr().err
    assert list((store.folder / ".partial").glob("*.pt")) == []
