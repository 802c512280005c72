"""What a sweep on Ray costs beside its runs: 40 of a second each on this machine's CPUs.

    python benchmarks/cluster.py

CE+SR on the digits, 40 seeds, one thread each, as many at once as there are CPUs; the number of
epochs is chosen here so that one run alone takes about a second. ``sum_over_slots``: the training
and test time of all runs, as each has recorded it, over the number of runs at once. ``wall``: from
the beginning of the first run to the last result in the store; ``with_start``: the whole call,
starting Ray and its workers, and stopping it. Other work on the machine slows the runs, and is in
all of these. Writes ``results/benchmarks/cluster.csv``.
"""

from __future__ import annotations

import os
import tempfile
import time

import torch
from report import write_rows

from lnlsr_lib import cluster
from lnlsr_lib.device import device_name, resolve_device
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import Store
from lnlsr_lib.trainer import train

RUNS = 40
SECONDS = 1.0


def specs_of(epochs: int) -> list[RunSpec]:
    """The grid; 120 images each."""
    fields = make_spec("mnist", "ce_sr", 0.4, profile="smoke").model_dump()
    fields |= {"train_size": 120, "epochs": epochs}
    return [RunSpec(**fields | {"seed": seed}) for seed in range(1, RUNS + 1)]


def main() -> None:
    torch.set_num_threads(1)
    where = {"device": "cpu", "precision": "float32"}
    epoch = min(train(specs_of(3)[0], **where).history["seconds"])  # type: ignore[arg-type]
    specs = specs_of(max(1, round(SECONDS / epoch)))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        start = time.perf_counter()
        runs = cluster.run_all(specs, store, **where)
        with_start = time.perf_counter() - start
        ends = [store.path(run.spec, "float32").stat().st_mtime for run in runs]
    seconds = [run.provenance["seconds"] for run in runs]
    wall = max(ends) - min(end - s for end, s in zip(ends, seconds, strict=True))
    slots = os.cpu_count() or 1
    row = {
        "runs": RUNS,
        "at_once": slots,
        "epochs": specs[0].epochs,
        "seconds_per_run": round(sum(seconds) / RUNS, 2),
        "sum_over_slots": round(sum(seconds) / slots, 1),
        "wall": round(wall, 1),
        "ratio": round(wall * slots / sum(seconds), 2),
        "with_start": round(with_start, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "device": device_name(resolve_device("cpu")),
    }
    write_rows("cluster", [row])


if __name__ == "__main__":
    main()
