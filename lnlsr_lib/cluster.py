"""Sweeps on Ray: many runs at once, on this machine or on a cluster; stored where this is called.

Each run is a task of Ray's with a share of the CPUs and GPUs. It trains into a folder of its own
and sends what it writes there, a checkpoint after each epoch and the result at the end, to the
calling process, which alone writes into the store. No shared file system is needed.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import filelock
import torch

from lnlsr_lib.checks import check_range
from lnlsr_lib.cost import Cost, duration, estimate
from lnlsr_lib.data import DATASETS, DataError, Dataset, load_dataset
from lnlsr_lib.device import resolve_device, resolve_precision
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import BusyError, Store, StoredRun, StoreError, write_atomically
from lnlsr_lib.sweep import run_one
from lnlsr_lib.trainer import DivergedError

__all__ = ["ClusterError", "estimate_on", "makespan", "run_all"]

POLL_SECONDS = 1.0
LOG_SECONDS = 30.0  # between two lines while no run ends
LOSSES = 5  # of a run's workers, with no epoch between them; then it is given up


class ClusterError(RuntimeError):
    """Ray or the cluster is not there, does not fit, or keeps losing a run."""


class LostError(ClusterError):
    """A worker, or its machine, is gone."""


# --- on the machine that trains ------------------------------------------------------------------


@cache
def _code() -> str:
    """Checksum of the library's code and of PyTorch's version (not its build)."""
    digest = hashlib.sha256(torch.__version__.partition("+")[0].encode())
    folder = Path(__file__).parent
    for path in sorted([*folder.glob("*.py"), *folder.glob("*.csv")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _call(code: str, threads: int, function: Callable[..., Any], *given: Any, **more: Any) -> Any:
    """What ``function`` returns, with that many threads, and with the caller's code or not at all.

    Raises:
        ClusterError: this machine has another version of the library or of PyTorch.
    """
    if _code() != code:
        raise ClusterError(f"lnlsr or PyTorch on {os.uname().nodename} is of another version")
    torch.set_num_threads(threads)
    return function(*given, **more)


@lru_cache(maxsize=1)
def _dataset(name: str) -> Dataset:
    """The data set, verified; one process of a machine after another, so that one fetches it."""
    with filelock.FileLock(Path(tempfile.gettempdir()) / f"lnlsr-data-{os.getuid()}.lock"):
        return load_dataset(name)


class _Satellite(Store):
    """A store for one run, whose checkpoints are handed on to the caller's."""

    send: Callable[[tuple[RunSpec, int, bytes]], object]

    def save_checkpoint(self, spec: RunSpec, precision: str, state: dict[str, Any]) -> None:
        super().save_checkpoint(spec, precision, state)
        self.send((spec, state["epoch"], self.checkpoint(spec, precision).read_bytes()))


def _work(
    spec: RunSpec, checkpoint: bytes, mailbox: Any, options: dict[str, Any]
) -> dict[str, bytes]:
    """Train ``spec`` on from ``checkpoint``; the result's files, the one that counts last."""
    with tempfile.TemporaryDirectory(prefix="lnlsr-") as folder:
        store = _Satellite(folder)
        # not waited for: Ray lends the CPU of a task that waits
        store.send = mailbox.actor.put_nowait.remote
        if checkpoint:
            write_atomically(store.checkpoint(spec, options["precision"]), checkpoint)
        data = _dataset(spec.dataset) if spec.dataset in DATASETS else None  # or it is streamed
        run_one(spec, store, data=data, progress=False, **options)
        paths = sorted((store.folder / "runs").iterdir(), key=lambda path: path.suffix == ".json")
        return {path.name: path.read_bytes() for path in paths}


# --- where it is called --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cluster:
    """Ray, connected, and what each run takes of a machine."""

    ray: Any
    cpus: int
    gpus: float
    device: str

    def slots(self) -> int:
        """How many runs there is room for at once."""
        slots = 0
        for has in (node["Resources"] for node in self.ray.nodes() if node["Alive"]):
            fits = [has.get("CPU", 0) // self.cpus]
            fits += [has.get("GPU", 0) * int(1 / self.gpus)] if self.gpus else []
            slots += int(min(fits))
        return slots

    def call(self, function: Callable[..., Any], *given: Any, **more: Any) -> Any:
        """``function`` as a task of that size; Ray's reference to what it returns."""
        size = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0}
        task = self.ray.remote(_call).options(**size)
        return task.remote(_code(), self.cpus, function, *given, **more)

    def get(self, reference: Any) -> Any:
        """What a task returned, or the error that it raised; ClusterError if its worker died."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            raise LostError(f"a worker was lost: {error}") from error

    def ask(self, reference: Any) -> Any:
        """As :meth:`get`, of what hardly fails: if it does, Ray or a machine does not fit."""
        try:
            return self.get(reference)
        except (ClusterError, DataError, ValueError):
            raise
        except Exception as error:
            raise ClusterError(f"a worker failed: {type(error).__name__}: {error}") from error


@contextmanager
def _connected(
    device: str,
    address: str | None = None,
    gpus_per_run: float | None = None,
    cpus_per_run: int = 1,
) -> Iterator[_Cluster]:
    """The cluster, for runs of that size. Arguments and errors: see :func:`run_all`."""
    check_range("cpus_per_run", cpus_per_run, 1)
    check_range("gpus_per_run", gpus_per_run or 0.0, 0.0, 1.0)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = {"address": "local", "include_dashboard": False}
    where: dict[str, Any] = {"address": address} if address else here
    try:
        import ray

        stop = signal.getsignal(signal.SIGTERM)
        ray.init(**where, log_to_driver=False, logging_level=40)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)  # in the place of Ray's, which aborts
    except ImportError:
        raise ClusterError("this needs Ray, which the extra lnlsr[cluster] brings") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray at {where['address']}: {error}") from error
    try:
        gpus = gpus_per_run
        if gpus is None:
            some = ray.cluster_resources().get("GPU", 0) >= 1  # type: ignore[no-untyped-call]
            gpus = float(device != "cpu" and some)
        device = "cpu" if device == "auto" and not gpus else device
        cluster = _Cluster(ray, cpus_per_run, gpus, device)
        if not cluster.slots():
            raise ClusterError(f"no machine has {cpus_per_run} CPUs and {gpus:g} GPUs for a run")
        yield cluster
    finally:
        ray.shutdown()


class _Log:
    """How far a sweep is: a line on standard error when a run ends, and every half minute. ``work``
    says how the runs' times compare."""

    def __init__(self, shown: bool, work: dict[RunSpec, float]) -> None:
        self.shown, self.work, self.last = shown, work, (-1, 0.0)
        self.first: tuple[float, float] | None = None

    def show(self, done: int, running: int, failed: int, epochs: dict[RunSpec, int]) -> None:
        """With the ``epochs`` that are done of each run."""
        now, ended = time.monotonic(), done + failed
        ready = sum(self.work[spec] * epochs.get(spec, 0) / spec.epochs for spec in self.work)
        before, start = self.first = self.first or (ready, now)
        if not self.shown or (self.last[0] == ended and now - self.last[1] < LOG_SECONDS):
            return
        self.last = ended, now
        text = f"{done} of {len(self.work)} runs done, {running} running, {failed} failed"
        if before < ready and ended < len(self.work):
            left = (sum(self.work.values()) - ready) * (now - start) / (ready - before)
            text += f", {duration(left)} left"
        print(text, file=sys.stderr, flush=True)


def run_all(
    specs: Sequence[RunSpec],
    store: Store,
    *,
    address: str | None = None,
    gpus_per_run: float | None = None,
    cpus_per_run: int = 1,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    details: bool = False,
    progress: bool = True,
) -> list[StoredRun]:
    """The stored results of all ``specs``, in their order; the missing ones are trained on Ray.

    As :func:`lnlsr_lib.sweep.run_all`, with as many runs at once as there is room for, longest
    first. A worker or a machine that dies costs the epoch that it was in: its run goes on
    elsewhere, from its last checkpoint. So does a sweep that was killed, when it is called again.
    Each machine needs the same versions of this library and PyTorch, and fetches and verifies the
    data for itself. A run takes ``cpus_per_run`` threads; the same number on the same kind of CPU
    gives the same bits as :func:`lnlsr_lib.sweep.run_all`.

    Args:
        specs: the runs.
        store: where results and checkpoints lie; on this machine.
        address: of a Ray cluster that this machine is part of, "host:port" or "auto"; None for
            this machine alone.
        gpus_per_run: share of a GPU in [0, 1]; None for a whole one where the cluster has any.
        cpus_per_run: CPUs, >= 1.
        device: as for :func:`lnlsr_lib.sweep.run_one`, on the machine that trains; "auto" is the
            CPU for runs without a share of a GPU.
        precision: see :func:`lnlsr_lib.trainer.train`; what "auto" means the first free worker
            says, for all.
        compiled, details: see :func:`lnlsr_lib.sweep.run_one`.
        progress: show on standard error how far the sweep is.

    Raises:
        ClusterError: Ray is not installed, the cluster cannot be reached or does not fit; or a run
            failed, for want of memory, say, or its workers died again and again (which, like a run
            that diverges, does not keep the others back).
        StoreError, DataError, DivergedError, ValueError: see :func:`lnlsr_lib.sweep.run_one`.
    """
    store.tidy()
    wanted = None if precision == "auto" else precision
    runs: dict[RunSpec, StoredRun] = {}
    failed: dict[RunSpec, Exception] = {}
    epochs: dict[RunSpec, int] = {}  # that are done
    losses: Counter[RunSpec] = Counter()  # of workers, since the run's last epoch
    tasks: dict[Any, tuple[RunSpec, ExitStack]] = {}  # by Ray's reference; with the run's lock

    def find(spec: RunSpec, precision: str | None = wanted) -> bool:
        """Whether the result is stored; keeps it."""
        if stored := store.load(spec, precision, details=details):
            runs[spec], epochs[spec] = stored, spec.epochs
        return spec in runs

    missing = [spec for spec in dict.fromkeys(specs) if not find(spec)]
    if not missing:
        return [runs[spec] for spec in specs]
    # Only how the runs' times compare matters, so any rate will do.
    work = {s: cost.seconds for cost in estimate(missing, tflops=100) for s in cost.specs}
    waiting = sorted(missing, key=lambda spec: -work[spec])
    log, held = _Log(progress, work), ExitStack()

    with _connected(device, address, gpus_per_run, cpus_per_run) as cluster, held:
        from ray.util.queue import Queue

        ray, device = cluster.ray, cluster.device
        probe = cluster.call(lambda: resolve_precision(precision, resolve_device(device)))
        resolved = cluster.ask(probe)
        options = {"device": device, "precision": resolved}
        options |= {"compiled": compiled, "details": details}
        head = {"node:__internal_head__": 0.001}  # outlives the other nodes
        mailbox = Queue(actor_options={"num_cpus": 0, "resources": head})

        def start(spec: RunSpec) -> bool:
            """Hand the run to Ray, or find it stored; False if another process is at it."""
            with ExitStack() as lock:
                try:
                    lock.enter_context(store.locked(spec, resolved))
                except BusyError:
                    return find(spec)
                if not find(spec, resolved):
                    state = store.load_checkpoint(spec, resolved)  # verified, or an error
                    last = store.checkpoint(spec, resolved).read_bytes() if state else b""
                    epochs[spec] = state["epoch"] if state else 0
                    task = cluster.call(_work, spec, last, mailbox, options)
                    tasks[task] = spec, held.enter_context(lock.pop_all())
            return True

        def finish(task: Any) -> None:
            """Write the result down; or take the run up again, if its worker is lost."""
            spec, lock = tasks.pop(task)
            with lock:
                try:
                    files = cluster.get(task)
                except LostError as error:
                    losses[spec] += 1
                    if losses[spec] < LOSSES:
                        waiting.insert(0, spec)
                    else:
                        failed[spec] = ClusterError(f"{spec.id} lost {LOSSES} workers: {error}")
                except (ClusterError, StoreError, DataError):
                    raise  # the others would fare no better
                except Exception as error:  # it diverged; or there was no memory left, say
                    said = f"{spec.id} failed: {type(error).__name__}: {error}"
                    failed[spec] = error if isinstance(error, DivergedError) else ClusterError(said)
                else:
                    last = store.checkpoint(spec, resolved)
                    for name, content in files.items():
                        write_atomically(store.folder / "runs" / name, content, last.parent)
                    find(spec, resolved)
                    last.unlink(missing_ok=True)

        while waiting or tasks:
            slots = cluster.slots()
            for spec in list(waiting):  # twice as many, so that Ray has the next at hand
                if len(tasks) <= 2 * slots and start(spec):
                    waiting.remove(spec)
            ended = ray.wait(list(tasks), timeout=POLL_SECONDS)[0] if tasks else []
            if not tasks and waiting:  # other processes are at them
                time.sleep(POLL_SECONDS)
            at_work = {spec for spec, _ in tasks.values()}
            for spec, epoch, checkpoint in mailbox.get_nowait_batch(mailbox.size()):
                if spec in at_work and epoch > epochs[spec]:
                    write_atomically(store.checkpoint(spec, resolved), checkpoint)
                    epochs[spec], losses[spec] = epoch, 0
            for task in ended:
                finish(task)
            done = len(work) - len(waiting) - len(tasks) - len(failed)
            log.show(done, min(len(tasks), slots), len(failed), epochs)

    store.tidy()
    if failed:
        kind = type(next(iter(failed.values())))
        raise kind("; ".join(str(error) for error in failed.values()))
    return [runs[spec] for spec in specs]


def estimate_on(
    specs: Sequence[RunSpec], *, device: str = "auto", precision: str = "auto", **where: Any
) -> tuple[list[Cost], int]:
    """What ``specs`` would cost on a cluster, by kind, and for how many runs it has room at once.

    As :func:`lnlsr_lib.cost.estimate`, with the few steps of each kind timed in all places at the
    same time, so that what runs take from each other is in it; the median over the places.

    Args:
        specs: the runs that are missing.
        device, precision: see :func:`run_all`.
        where: ``address``, ``gpus_per_run`` and ``cpus_per_run``; see there as well, and for the
            errors.
    """
    with _connected(device, **where) as cluster:
        options = {"device": cluster.device, "precision": precision, "kept": False}
        tasks = [cluster.call(estimate, specs, **options) for _ in range(cluster.slots())]
        timed = zip(*map(cluster.ask, tasks), strict=True)
        middle = [(costs[0], statistics.median(c.seconds for c in costs)) for costs in timed]
        return [replace(cost, seconds=seconds) for cost, seconds in middle], len(tasks)


def makespan(costs: Sequence[Cost], slots: int) -> float:
    """Seconds until all runs are done, ``slots`` at once: longest first, each in the first place
    that is free.

    Args:
        costs: the runs, by kind.
        slots: >= 1.

    Raises:
        ValueError: no slots.
    """
    check_range("slots", slots, 1)
    ends = [0.0] * slots
    for cost in sorted(costs, key=lambda cost: -cost.seconds):
        for _ in range(cost.runs):
            heapq.heapreplace(ends, ends[0] + cost.seconds)
    return max(ends)
