"""Which runs are missing, run them, store them; in this process, one after another."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from tqdm import tqdm

from lnlsr_lib.cost import images_of
from lnlsr_lib.data import DATASETS, Dataset, load_dataset
from lnlsr_lib.device import resolve_device, resolve_precision
from lnlsr_lib.embedding import embed
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import BusyError, Store, StoredRun, StoreError
from lnlsr_lib.trainer import DivergedError, RunResult, StateError, train

__all__ = ["run_all", "run_one"]

POLL_SECONDS = 5.0


def run_one(
    spec: RunSpec,
    store: Store,
    *,
    data: Dataset | None = None,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    details: bool = False,
    progress: bool = True,
    position: str = "",
) -> StoredRun:
    """The stored result of ``spec``; trained first, or trained to its end, where it is missing.

    Args:
        spec: the run.
        store: where results and checkpoints lie.
        data: the data set, if it is at hand.
        device, precision: see :func:`lnlsr_lib.trainer.train`; with "auto", a result stored in
            either precision counts.
        compiled: see there as well; a result counts whether it was compiled or not.
        details: store the samples' details, too; a result without does not count then.
        progress: show a bar on standard error.
        position: put before the run's id in the bar, such as "2/6".

    Raises:
        BusyError: another process is training this run.
        StoreError, DataError, DivergedError, ValueError: see there.
    """
    resolved = resolve_precision(precision, resolve_device(device))
    wanted = None if precision == "auto" else precision
    if stored := store.load(spec, wanted, details=details):
        return stored
    with store.locked(spec, resolved):
        if stored := store.load(spec, resolved, details=details):  # another has just finished it
            return stored
        state = store.load_checkpoint(spec, resolved)
        steps = -(-images_of(spec) // spec.batch_size)
        done, name = state["epoch"] * steps if state else 0, f"{position} {spec.id}".strip()
        shown = {"unit": "step", "mininterval": 1, "disable": not progress or sys.stderr is None}
        with tqdm(desc=name, total=spec.epochs * steps, initial=done, **shown) as bar:

            def on_epoch(state: dict[str, Any]) -> None:
                if state["epoch"] != spec.epochs:
                    store.save_checkpoint(spec, resolved, state)
                accuracy = state["history"]["test_accuracy"][-1]
                bar.set_postfix_str(f"epoch {state['epoch']}/{spec.epochs}, test {accuracy:.2f}%")

            try:
                result = train(
                    spec,
                    data,
                    device=device,
                    precision=resolved,
                    compiled=compiled,
                    details=details,
                    state=state,
                    on_batch=bar.update,
                    on_epoch=on_epoch,
                )
            except StateError as error:
                path = store.checkpoint(spec, resolved)
                raise StoreError(f"the checkpoint {path} is not usable: {error}") from error
        return store.read(store.save(result, **_described(result)))


def _described(result: RunResult) -> dict[str, Any]:
    """Numbers about a run's features and the arrays to store, if it has details."""
    if result.details is None:
        return {}
    found = dict(result.details)
    embedding, numbers = embed(found.pop("features"), found.pop("test_labels"))
    arrays = {"embedding": embedding.astype(np.float16)}
    for name, values in found.items():
        arrays[name] = values.numpy().astype(np.float16 if "margin" in name else np.uint8)
    return {"features": numbers, "details": arrays}


def run_all(
    specs: Sequence[RunSpec],
    store: Store,
    *,
    precision: str = "auto",
    details: bool = False,
    **options: Any,
) -> list[StoredRun]:
    """The stored results of all ``specs``, in their order; the missing ones are trained first.

    Each finished run is stored at once, and an unfinished one goes on from its last epoch, so this
    may be killed and called again at any time; what it leaves behind then is removed. Several
    processes called with the same store share the work: a run that another one is at is left to it,
    and waited for. A run that diverges does not keep the others back; it is reported at the end.
    Arguments (``options``: device, compiled, progress) and errors as for :func:`run_one`.
    """
    store.tidy()
    load = cache(load_dataset)
    wanted = None if precision == "auto" else precision
    runs: dict[RunSpec, StoredRun] = {}
    diverged: list[str] = []
    waiting = {spec: f"{number}/{len(specs)}" for number, spec in enumerate(specs, start=1)}
    while waiting:
        busy = {}
        for spec, position in waiting.items():
            lacking = store.missing([spec], wanted, details=details)
            needed = spec.dataset in DATASETS and lacking
            options["data"] = load(spec.dataset) if needed else None  # WebVision is streamed
            try:
                runs[spec] = run_one(
                    spec, store, precision=precision, details=details, position=position, **options
                )
            except BusyError:
                busy[spec] = position
            except DivergedError as error:  # it would diverge again: the others are not kept back
                diverged.append(str(error))
        if len(busy) == len(waiting):
            time.sleep(POLL_SECONDS)
        waiting = busy
    store.tidy()
    if diverged:
        raise DivergedError("; ".join(diverged))
    return [runs[spec] for spec in specs]
