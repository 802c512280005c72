"""The command line: ``lnlsr run``, ``lnlsr status``, ``lnlsr estimate``, ``lnlsr data``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from lnlsr_lib.cost import duration, estimate, images_of
from lnlsr_lib.data import DATASETS, DataError, data_folder, load_dataset
from lnlsr_lib.experiments import EXPERIMENTS, experiment_specs
from lnlsr_lib.protocol import PROFILES
from lnlsr_lib.store import Store, StoreError
from lnlsr_lib.sweep import run_all
from lnlsr_lib.trainer import DivergedError

__all__ = ["main"]


def _seeds(text: str) -> list[int]:
    """Seeds out of 1, or 1,2,3, or 1-3."""
    try:
        first, dash, last = text.partition("-")
        return list(range(int(first), int(last) + 1)) if dash else [int(s) for s in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 1, 1,2,3 or 1-3, got {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lnlsr",
        description="Learning with noisy labels via sparse regularisation: train, store, look up.",
        epilog="First look: 'lnlsr run fig3 --profile smoke' (seconds), then 'lnlsr status'.",
    )
    parser.add_argument("--version", action="version", version=version("lnlsr"))
    parser.add_argument(
        "--results", type=Path, help="results folder (default: $LNLSR_RESULTS, else results/)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    names = ", ".join(EXPERIMENTS)
    seeds_help = "such as 1, 1,2,3 or 1-3 (default: 1)"

    run = commands.add_parser(
        "run",
        help="train the runs of a figure or table that are missing, and store them",
        description="Train the runs of a figure or table that are not stored yet. May be stopped "
        "at any time: finished runs are kept, and the unfinished one goes on from its last epoch. "
        "Several such commands at once share the work.",
        epilog="Examples: 'lnlsr run fig3 --profile smoke'; "
        "'lnlsr run fig3 --profile paper --seeds 1-3'.",
    )
    cost = commands.add_parser(
        "estimate",
        help="how long the missing runs of a figure or table would take",
        description="Count the runs of a figure or table that are not stored yet, time a few steps "
        "of each kind on this machine, and say how long they would take. "
        "Nothing is stored.",
        epilog="Examples: 'lnlsr estimate table1 --profile paper'; for a GPU that is not here, by "
        "its peak rate (rough): 'lnlsr estimate table1 --profile paper --tflops 990'.",
    )
    for command in (run, cost):
        command.add_argument("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT", help=names)
        command.add_argument(
            "--profile",
            choices=PROFILES,
            required=True,
            help="budget: paper = the paper's own; lite = fewer images and epochs; "
            "smoke = scikit-learn's digits, in seconds",
        )
        command.add_argument("--seeds", type=_seeds, default=[1], help=seeds_help)
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
        command.add_argument(
            "--precision",
            choices=("auto", "float32", "bf16"),
            default="auto",
            help="auto = bf16 where the device has matrix units for it, else float32",
        )
    cost.add_argument(
        "--tflops", type=float, help="peak rate of another device, in 1e12 operations a second"
    )
    run.add_argument(
        "--compile",
        action="store_true",
        help="train through torch.compile: for GPUs, on CPUs slower; needs a C++ compiler",
    )
    run.add_argument("--only", nargs="+", metavar="ID", help="of its runs, these alone")
    run.add_argument(
        "--details",
        action="store_true",
        help="store each sample's prediction and margin and the features' t-SNE, too "
        "(figures that show them always do)",
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars")

    status = commands.add_parser("status", help="what is stored, and what is missing")
    status.add_argument(
        "experiment", nargs="?", choices=EXPERIMENTS, metavar="EXPERIMENT", help=names
    )
    status.add_argument("--seeds", type=_seeds, default=[1], help=seeds_help)

    data = commands.add_parser("data", help="fetch and verify a data set")
    data.add_argument("dataset", nargs="?", choices=DATASETS, default="mnist")
    return parser


def _run(args: argparse.Namespace, store: Store) -> None:
    specs = experiment_specs(args.experiment, args.profile, args.seeds)
    if args.only:
        unknown = set(args.only) - {spec.id for spec in specs}
        if unknown:
            raise ValueError(
                f"{args.experiment} has no run {', '.join(sorted(unknown))} in profile "
                f"{args.profile}; 'lnlsr status {args.experiment}' lists what is missing"
            )
        specs = [spec for spec in specs if spec.id in args.only]
    runs = run_all(
        specs,
        store,
        device=args.device,
        precision=args.precision,
        compiled=args.compile,
        details=args.details or EXPERIMENTS[args.experiment].details,
        progress=not args.quiet,
    )
    for run in runs:
        print(
            f"{run.spec.id}  final {run.final_accuracy:6.2f}%  best {run.best_accuracy:6.2f}%  "
            f"{run.provenance['precision']}  {run.provenance['seconds']:.0f} s"
        )


def _estimate(args: argparse.Namespace, store: Store) -> None:
    specs = experiment_specs(args.experiment, args.profile, args.seeds)
    missing = store.missing(specs, None if args.precision == "auto" else args.precision)
    print(f"{len(missing)} of {len(specs)} runs are missing")
    costs = estimate(missing, device=args.device, precision=args.precision, tflops=args.tflops)
    for cost in costs:
        spec = cost.spec
        print(
            f"  {cost.runs:4} x {spec.dataset}, {spec.model}, {images_of(spec)} images, "
            f"{spec.epochs} epochs: {duration(cost.seconds)} each"
        )
    if costs:
        where = "here" if args.tflops is None else f"at {args.tflops:g} TFLOP/s, roughly"
        print(f"all of them, one after another, {where}: {duration(sum(c.total for c in costs))}")


def _status(args: argparse.Namespace, store: Store) -> None:
    for name in [args.experiment] if args.experiment else EXPERIMENTS:
        print(EXPERIMENTS[name].title)
        for profile in PROFILES:
            specs = experiment_specs(name, profile, args.seeds)
            missing = store.missing(specs)
            print(f"  {profile:6} {len(specs) - len(missing)} of {len(specs)} runs stored")
            if args.experiment:
                for spec in missing:
                    print(f"         missing: {spec.id}")
    table = store.table()
    print(f"\n{store.folder}: {len(table)} runs")
    if len(table):
        columns = ["final_accuracy", "best_accuracy", "precision", "seconds", "id"]
        print(table[columns].to_string(index=False, float_format="{:.2f}".format))


def _data(args: argparse.Namespace, store: Store) -> None:
    data = load_dataset(args.dataset)
    shape = "x".join(str(size) for size in data.train_images.shape[1:])
    print(
        f"{data.name}: {len(data.train_labels)} train and {len(data.test_labels)} test images of "
        f"{shape}, {data.num_classes} classes; {data.origin}; folder {data_folder()}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or 1 with one line on standard error."""
    args = _parser().parse_args(arguments)
    commands = {"run": _run, "status": _status, "estimate": _estimate, "data": _data}
    command = commands[args.command]
    try:
        command(args, Store(args.results))
    except (DataError, StoreError, DivergedError, ValueError) as error:
        print(f"lnlsr: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lnlsr: stopped; what is finished is stored, call again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
