"""An attack on sweeps: processes are killed at random moments and inside writes, then go on.

    python tests/kills.py                  100 kills, a third of them inside writes; 10 rounds
    python tests/kills.py --kills 12 --rounds 2

A round is four processes that share a store, one of which is killed after its first checkpoint.
A random moment is one after a random number of steps, wherever the process then is. After every
kill each stored result is read and compared byte for byte with what it was; at the end
each run must be there once, equal to the bit to one that nobody disturbed, and no other file be
left. Each violation is an AssertionError.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lnlsr_lib import store as store_module
from lnlsr_lib import sweep
from lnlsr_lib.data import Dataset, load_dataset
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import Store, StoredRun
from lnlsr_lib.sweep import run_all
from lnlsr_lib.trainer import RunResult, train

STEPS = 4  # an epoch
QUIET = {"device": "cpu", "precision": "float32", "progress": False}
EPOCHS, METHODS = 5, ("ce", "ce_sr", "gce_sr")


def tiny() -> Dataset:
    """64 train and 20 test digits: four steps an epoch."""
    digits = load_dataset("digits")
    return replace(
        digits,
        train_images=digits.train_images[:64],
        train_labels=digits.train_labels[:64],
        test_images=digits.test_images[:20],
        test_labels=digits.test_labels[:20],
    )


def specs_of(seed: int) -> list[RunSpec]:
    """Three short runs."""
    changes = {"epochs": EPOCHS, "batch_size": 16}
    specs = [make_spec("mnist", m, 0.4, profile="smoke", seed=seed) for m in METHODS]
    return [RunSpec(**spec.model_dump() | changes) for spec in specs]


def numbers(run: StoredRun | RunResult) -> tuple[object, ...]:
    """All that must be the same whenever a run is trained."""
    history = {name: values for name, values in run.history.items() if name != "seconds"}
    return history, run.confusion


def processes() -> Any:
    """Where children come from: a server without threads, which has the library loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lnlsr_lib.sweep", "pytest"])
    return context


def nothing() -> None:
    """What a child calls that is not watched."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(
    specs: Sequence[RunSpec],
    folder: Path,
    data: Dataset,
    write: int,
    at_work: Callable[[], object],
    on_step: Callable[[], object] = nothing,
    log: Path | None = None,
) -> None:
    """In a child: run ``specs``; ``at_work`` is called when a run is begun, ``on_step`` at a step.

    It dies in its ``write``-th write (0: in none), at a random step of it; or, below 0, when its
    first checkpoint is written.
    """
    torch.set_num_threads(1)
    sweep.load_dataset = lambda name: data
    sweep.POLL_SECONDS = 0.02
    chance, writes = random.Random(os.getpid()), [0]

    def writing(path: Path, content: bytes, scratch: Path | None = None) -> None:
        writes[0] += 1
        if writes[0] != write:
            return real(path, content, scratch)
        stage = chance.choice(["half", "before replace", "after replace"])
        if stage == "half":
            os.fsync = lambda handle: (os.ftruncate(handle, len(content) // 2), die())
        elif stage == "before replace":
            os.replace = lambda source, target: die()
        else:
            rename = os.replace
            os.replace = lambda source, target: (rename(source, target), die())
        return real(path, content, scratch)

    def saving(self: Store, spec: RunSpec, precision: str, state: dict[str, object]) -> None:
        save(self, spec, precision, state)
        if write < 0:
            die()

    def training(spec: RunSpec, *arguments: object, **more: object) -> RunResult:
        at_work()
        forward = more.pop("on_batch")

        def on_batch() -> None:
            forward()
            on_step()

        result = train(spec, *arguments, **more, on_batch=on_batch)
        if log is not None:
            with log.open("a") as file:
                file.write(f"{spec.id}\n")
        return result

    real, save = store_module.write_atomically, Store.save_checkpoint
    store_module.write_atomically, Store.save_checkpoint, sweep.train = writing, saving, training
    run_all(specs, Store(folder), **QUIET)


def among(
    specs: Sequence[RunSpec], folder: Path, data: Dataset, write: int, begun: Any, log: Path
) -> None:
    """In one of four children: :func:`work`, once the one that is to die is at a run."""
    try:
        if write == 0:
            begun.wait()
        work(specs, folder, data, write, begun.set, log=log)
    finally:
        begun.set()  # an error must not keep the others waiting


def content(folder: Path) -> dict[Path, bytes]:
    """The results by path, each of which must be readable."""
    for path in (folder / "runs").glob("*.json"):
        Store(folder).read(path)
    return {path: path.read_bytes() for path in (folder / "runs").glob("*")}


def check(specs: Sequence[RunSpec], folder: Path, data: Dataset) -> None:
    """Each run once, as if nobody had disturbed it, and nothing else."""
    store = Store(folder)
    for spec in specs:
        stored = store.load(spec, "float32")
        assert stored is not None, f"{spec.id} is lost"
        undisturbed = train(spec, data, device="cpu", precision="float32")
        assert numbers(stored) == numbers(undisturbed), f"{spec.id} is different"
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert files == {store.path(spec, "float32") for spec in specs}, f"left over: {sorted(files)}"


def killed_one_by_one(kills: int, data: Dataset, chance: random.Random) -> dict[str, int]:
    """One process after another works on the same runs and is killed, every third in a write."""
    context = processes()
    found = {"kills": 0, "inside writes": 0, "runs": 0, "goings-on from a checkpoint": 0}
    seed = 1
    while found["kills"] < kills:
        specs, seed = specs_of(seed), seed + 1
        with tempfile.TemporaryDirectory() as place:
            folder, before = Path(place) / "results", {}
            while found["kills"] < kills and Store(folder).missing(specs):
                inside = found["kills"] % 3 == 0
                found["goings-on from a checkpoint"] += bool(list(folder.rglob("*.pt")))
                write = chance.randint(1, 4) if inside else 0
                reading, writing = context.Pipe(duplex=False)
                step = partial(writing.send_bytes, b".")
                child = context.Process(
                    target=work, args=(specs, folder, data, write, nothing, step)
                )
                child.start()
                writing.close()
                steps = chance.randint(0, STEPS * EPOCHS)
                with contextlib.suppress(EOFError, OSError), reading:  # it has ended
                    while inside or steps:
                        reading.recv_bytes()
                        steps -= 1
                child.kill()  # where it lives
                child.join()
                assert child.exitcode in (0, -signal.SIGKILL), f"it ended with {child.exitcode}"
                if child.exitcode:
                    found["kills"] += 1
                    found["inside writes"] += inside
                after = content(folder)
                assert before.items() <= after.items(), "a stored result was lost or changed"
                before = after
            sweep.load_dataset = lambda name: data
            run_all(specs, Store(folder), **QUIET)
            check(specs, folder, data)
            found["runs"] += len(specs)
    return found


def killed_among_others(rounds: int, data: Dataset) -> dict[str, int]:
    """Four processes share six runs; one is killed when its first checkpoint is written."""
    context = processes()
    found = {"rounds": 0, "kills": 0, "runs": 0, "trained to the end": 0}
    for number in range(rounds):
        specs = specs_of(1000 + 2 * number) + specs_of(1001 + 2 * number)
        with tempfile.TemporaryDirectory() as place:
            folder, log = Path(place) / "results", Path(place) / "log"
            begun = context.Event()  # by the one that is to die; the others leave it a run
            children = [
                context.Process(target=among, args=(specs, folder, data, write, begun, log))
                for write in (-1, 0, 0, 0)
            ]
            for child in children:
                child.start()
            for child in children:
                child.join()
            codes = [child.exitcode for child in children]
            assert codes == [-signal.SIGKILL, 0, 0, 0], f"they ended with {codes}"
            trained = log.read_text().split()
            assert sorted(trained) == sorted(spec.id for spec in specs), "a run was trained twice"
            check(specs, folder, data)
            found["rounds"] += 1
            found["kills"] += 1
            found["runs"] += len(specs)
            found["trained to the end"] += len(trained)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start, data = time.monotonic(), tiny()
    print("one by one:", killed_one_by_one(args.kills, data, random.Random(args.seed)))
    print("among others:", killed_among_others(args.rounds, data))
    print(f"none lost, twice or different, no file left over; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
