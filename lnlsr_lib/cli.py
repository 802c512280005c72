"""The command line: ``lnlsr run``, ``status``, ``show``, ``estimate``, ``data``."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import pandas as pd

from lnlsr_lib import cluster
from lnlsr_lib.cost import duration, estimate, images_of
from lnlsr_lib.data import DATASETS, DataError, data_folder, load_dataset
from lnlsr_lib.experiments import EXPERIMENTS, experiment_specs, read_seeds
from lnlsr_lib.protocol import PROFILES
from lnlsr_lib.spec import RunSpec
from lnlsr_lib.store import Store, StoredRun, StoreError
from lnlsr_lib.sweep import run_all, run_one
from lnlsr_lib.trainer import DivergedError

__all__ = ["main"]

SHOWN_EPOCHS = 12  # of a run's card
ERRORS = (DataError, StoreError, DivergedError, cluster.ClusterError, ValueError, OSError)


def _seeds(text: str) -> list[int] | None:
    try:
        return read_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lnlsr",
        description="Learning with noisy labels via sparse regularisation: train, store, look up.",
        epilog="First look: 'lnlsr run fig3 --profile smoke' (a minute), then 'lnlsr status'.",
    )
    parser.add_argument("--version", action="version", version=version("lnlsr"))
    parser.add_argument("--results", help="results folder (default: $LNLSR_RESULTS, else results/)")
    name: dict[str, Any] = {"choices": EXPERIMENTS, "metavar": "EXPERIMENT"}
    name["help"] = ", ".join(EXPERIMENTS) + "; 'lnlsr status' says what each is"
    seeds: dict[str, Any] = {"type": _seeds, "help": "such as 1, 1,2,3 or 1-3 (default: {})"}

    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("experiment", **name)
    budgets = "paper = its own budget; lite = fewer images and epochs; smoke = digits, a few epochs"
    add("--profile", choices=PROFILES, help=budgets)
    add("--seeds", **seeds | {"help": seeds["help"].format(1)})
    add("--only", nargs="+", metavar="ID", help="these runs, of any profile and seed, alone")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the fastest that is there)")
    precisions = "default: bf16 where the device computes it faster, else float32"
    add("--precision", choices=("auto", "float32", "bf16"), help=precisions)
    ray = shared.add_argument_group("on Ray", "many runs at once; needs lnlsr[cluster]")
    add = ray.add_argument
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="such as auto; without, this machine")
    add("--gpus-per-run", type=float, help="share of a GPU, such as 0.25 (default: 1, if any)")
    add("--cpus-per-run", type=int, help="CPUs, and threads (default: 1)")

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "train the runs of a figure or table that are missing, and store them"
    more = "May be stopped at any time, and called again; several at once share the work."
    more += " Example: 'lnlsr run fig3 --profile paper --seeds 1-3'."
    usage = "lnlsr run EXPERIMENT --profile {paper,lite,smoke} [options]"
    of: dict[str, Any] = {"help": about, "description": f"{about}. {more}", "usage": usage}
    run = commands.add_parser("run", parents=[shared], **of)
    flag = partial(run.add_argument, action="store_true")
    flag("--again", help="train what is stored anew and compare: status 1 if they differ")
    flag("--details", help="store each sample's prediction and margin and a t-SNE, too")
    flag("--compile", help="train through torch.compile: for GPUs; needs a C++ compiler")
    flag("--quiet", help="no progress bars")

    about = "how long the missing runs of a figure or table would take; nothing is stored"
    eg = ". For a GPU that is not here: 'lnlsr estimate table1 --profile paper --tflops 990'"
    of = {"help": about, "description": about + eg, "usage": usage.replace("run", "estimate")}
    cost = commands.add_parser("estimate", parents=[shared], **of)
    cost.add_argument("--tflops", type=float, help="another device's peak rate, in 1e12/s; rough")
    cost.add_argument("--again", action="store_true", help="time anew what was timed before")

    about = "what is stored, and what is missing"
    more = ": of every experiment, or of one, whose missing runs are named then"
    status = commands.add_parser("status", help=about, description=about + more)
    status.add_argument("experiment", nargs="?", **name)
    status.add_argument("--seeds", **seeds | {"help": seeds["help"].format("auto, any")})
    about = "the card of a stored run"
    more = ": what was trained, what came out, how it was made. Ids are in 'lnlsr status'."
    show = commands.add_parser("show", help=about, description=about + more)
    show.add_argument("id", metavar="ID", help="the run's id, or its beginning")
    about = "fetch and verify a data set"
    more = ", where it is not there yet, into the folder that $LNLSR_DATA names, else a cache"
    data = commands.add_parser("data", help=about, description=about + more)
    data.add_argument("dataset", nargs="?", choices=DATASETS, default="mnist")
    return parser


def _wanted(args: argparse.Namespace) -> list[RunSpec]:
    """The experiment's runs, or of these, in every profile and with any seed, those named."""
    profiles = PROFILES if args.profile is None else (args.profile,)
    if args.only and args.seeds:
        raise ValueError("--only names the seeds already, and does not go with --seeds")
    if not args.only:
        if args.profile is None:
            raise ValueError(f"--profile is needed, one of {', '.join(PROFILES)}; or --only")
        return experiment_specs(args.experiment, args.profile, args.seeds or [1])
    seeds = {int(seed) for name in args.only for seed in re.findall(r"-seed(\d{1,18})-", name)}
    found = [
        s for p in profiles for s in experiment_specs(args.experiment, p, sorted(seeds) or [1])
    ]
    known = {spec.id: spec for spec in found}
    unknown = sorted(set(args.only) - set(known))
    if unknown:
        raise ValueError(
            f"{args.experiment} has no run {', '.join(unknown)} in profile {', '.join(profiles)}; "
            f"'lnlsr status {args.experiment}' lists its runs"
        )
    return [known[name] for name in dict.fromkeys(args.only)]


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given; the library's defaults are "auto" and its own."""
    return {n: value for n in names if (value := getattr(args, n)) not in (None, "auto")}


def _on_ray(args: argparse.Namespace) -> dict[str, Any] | None:
    """The arguments that functions of cluster.py take, or None without --ray."""
    share = _given(args, "gpus_per_run", "cpus_per_run")
    if share and args.ray is None:
        raise ValueError("--gpus-per-run and --cpus-per-run go with --ray")
    return None if args.ray is None else {"address": args.ray or None, **share}


def _line(run: StoredRun) -> str:
    accuracies = f"final {run.final_accuracy:6.2f}%  best {run.best_accuracy:6.2f}%"
    made = f"{run.provenance['precision']}  {run.provenance['seconds']:.0f} s"
    return f"{run.spec.id}  {accuracies}  {run.spec.profile:5}  {made}"


def _run(args: argparse.Namespace, store: Store) -> None:
    specs, on_ray, where = _wanted(args), _on_ray(args), _given(args, "device", "precision")
    options = {"compiled": args.compile, "progress": not args.quiet, **where}
    if args.again and (on_ray is not None or args.details):
        raise ValueError("--again compares, in this process: not with --ray, nor with --details")
    if args.again:
        stored = [(spec, store.load(spec, where.get("precision"))) for spec in specs]
        lacking = [spec.id for spec, run in stored if run is None]
        if lacking:
            raise ValueError(f"not stored, nothing to compare with: {', '.join(lacking)}")
        differ = [_again(run, store, options) for _, run in stored if run]
        if any(differ):
            raise ValueError(f"{sum(differ)} of {len(differ)} histories differ")
        return
    options["details"] = args.details or EXPERIMENTS[args.experiment].details
    options |= on_ray or {}
    sweep: Callable[..., list[StoredRun]] = run_all if on_ray is None else cluster.run_all
    for run in sweep(specs, store, **options):
        print(_line(run))


def _again(stored: StoredRun, store: Store, options: dict[str, Any]) -> bool:
    """Train a stored run anew in a folder aside, and say whether and where its history differs."""
    spec, precision = stored.spec, stored.provenance["precision"]
    aside = Store(store.folder / ".partial" / f"again-{spec.id}.{precision}")
    new = run_one(spec, aside, **options | {"precision": precision})
    shutil.rmtree(aside.folder)
    for epoch in range(spec.epochs):
        for name in sorted(stored.history.keys() - {"seconds"}):
            now, then = new.history[name][epoch], stored.history[name][epoch]
            if now != then:
                at = f"{spec.id}  differs from epoch {epoch + 1} on: {name} is"
                print(f"{at} {now} ({_made(new)}), stored {then} ({_made(stored)})")
                return True
    made_at = f", made at {' and '.join(str(commit)[:8] for commit in new.commits)}"
    made_at *= len(new.commits) > 1
    print(f"{spec.id}  same history, all {spec.epochs} epochs{made_at}")
    return False


def _made(run: StoredRun) -> str:
    return f"{' and '.join(run.places)}; torch {run.provenance['torch']}"


def _estimate(args: argparse.Namespace, store: Store) -> None:
    specs, on_ray, where = _wanted(args), _on_ray(args), _given(args, "device", "precision")
    details = EXPERIMENTS[args.experiment].details
    missing = store.missing(specs, where.get("precision"), details=details)
    print(f"{len(missing)} of {len(specs)} runs are missing")
    slots, how = 1, "one after another, here"
    if on_ray is None or not missing:
        where |= {"tflops": args.tflops, "again": args.again, "progress": True}
        costs = estimate(missing, **where)
        if args.tflops is not None:
            how = f"one after another, at {args.tflops:g} TFLOP/s, roughly"
    elif args.tflops is None:
        costs, slots = cluster.estimate_on(missing, **on_ray, **where)
        how = f"{slots} at once"
    else:
        raise ValueError("--tflops is for a device that is not here, and does not go with --ray")
    for cost in costs:
        spec = cost.spec
        print(
            f"  {cost.runs:4} x {spec.dataset}, {spec.model}, {images_of(spec)} images, "
            f"{spec.epochs} epochs: {duration(cost.seconds)} each"
        )
    if costs:
        print(f"all of them, {how}: {duration(cluster.makespan(costs, slots))}")


def _status(args: argparse.Namespace, store: Store) -> None:
    runs, what = store.runs(), "runs"

    def asked(spec: RunSpec) -> RunSpec:  # of seed 1 stands for all, if none is asked for
        return spec if args.seeds else spec.model_copy(update={"seed": 1})

    have = {asked(run.spec) for run in runs}
    detailed = {asked(run.spec) for run in runs if store.has_details(run)}
    known: set[RunSpec] = set()
    for name in [args.experiment] if args.experiment else EXPERIMENTS:
        print(EXPERIMENTS[name].title)
        for profile in PROFILES:
            specs = experiment_specs(name, profile, args.seeds or [1])
            known |= {*specs}
            wanted = detailed if EXPERIMENTS[name].details else have
            missing = [spec for spec in specs if spec not in wanted]
            print(f"  {profile:6} {len(specs) - len(missing)} of {len(specs)} runs stored")
            for spec in missing if args.experiment else ():
                print(f"         missing: {spec.id}{', its details' * (spec in have)}")
    if args.experiment:
        runs, what = [r for r in runs if asked(r.spec) in known], f"runs of {args.experiment}"
    spent = duration(sum(run.provenance["seconds"] for run in runs))
    print(f"\n{store.folder}: {len(runs)} {what}, {spent} of training", *map(_line, runs), sep="\n")


def _show(args: argparse.Namespace, store: Store) -> None:
    paths = sorted((store.folder / "runs").glob("*.json"))
    runs = {path: store.read(path) for path in paths if path.name.startswith(args.id or "/")}
    ids = sorted({run.spec.id for run in runs.values()})
    if len(ids) != 1:
        found = f": {', '.join(ids)}" if 0 < len(ids) < 5 else "; 'lnlsr status' lists them all"
        raise ValueError(f"{len(ids)} stored runs have an id that starts with {args.id!r}{found}")
    for path, run in runs.items():
        print(_card(run), f"file: {path}", sep="\n")


def _listed(values: dict[str, Any]) -> str:
    width = max(map(len, values))
    return "\n".join(f"  {name:{width}}  {value}" for name, value in values.items())


def _card(run: StoredRun) -> str:
    """A stored run in words: what was trained, what came out, how it was made."""
    epochs, recall = run.spec.epochs, run.history["lowest_recall"][-1]
    history = pd.DataFrame(run.history, index=range(1, epochs + 1), dtype=float)
    rows = {round(1 + i * (epochs - 1) / (SHOWN_EPOCHS - 1)) for i in range(SHOWN_EPOCHS)}
    table = history.drop(columns="seconds").loc[sorted(rows)]
    matrix = pd.DataFrame(run.confusion).to_string()
    parts = [
        f"{run.spec.id}\nfinal {run.final_accuracy:.2f}%, best {run.best_accuracy:.2f}%, lowest "
        f"recall {recall:.2f}%, in {duration(run.provenance['seconds'])}",
        f"spec\n{_listed(run.spec.model_dump(mode='json', exclude_defaults=True))}",
        f"history, by epoch\n{table.to_string(float_format='{:.4g}'.format, na_rep='-')}",
        f"confusion (rows: true classes; columns: predicted)\n{matrix}",
        f"provenance\n{_listed(run.provenance)}",
        *([f"features of the test set\n{_listed(run.features)}"] if run.features else []),
    ]
    return "\n\n".join(parts)


def _data(args: argparse.Namespace, store: Store) -> None:
    data = load_dataset(args.dataset)
    shape = "x".join(str(size) for size in data.train_images.shape[1:])
    print(
        f"{data.name}: {len(data.train_labels)} train and {len(data.test_labels)} test images of "
        f"{shape}, {data.num_classes} classes; {data.origin}; folder {data_folder()}"
    )


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status.

    That is 0; 1 with one line on standard error; 128 and the signal's number where one stopped it.
    """
    args = _parser().parse_args(arguments)
    commands = {"run": _run, "status": _status, "show": _show, "estimate": _estimate, "data": _data}
    for name in ("SIGTERM", "SIGHUP"):  # as SIGINT, but where they are ignored, as under nohup
        kind = getattr(signal, name, signal.SIGTERM)
        if signal.getsignal(kind) == signal.SIG_DFL:
            signal.signal(kind, _stop)
    try:
        commands[args.command](args, Store(args.results))
        if sys.stdout is not None:  # closed by whoever called
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # SIGPIPE
    except ERRORS as error:
        print(f"lnlsr: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("lnlsr: stopped; what is finished is stored, call again to go on", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    return 0
