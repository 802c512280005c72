"""The results folder: one JSON file per run, written whole or not at all, verified when read.

    results/runs/<run id>.<precision>.json      finished runs
    results/runs/<run id>.<precision>.npz       their samples' details, where they were asked for
    results/.partial/<run id>.<precision>.pt    checkpoints of unfinished ones; not for git

A file carries the SHA-256 of its content, so what was cut short or edited is noticed. Several
processes may work on one folder: each run is locked while it is trained. What a killed process
leaves lies in ``.partial``, and goes when the run is next locked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SkipValidation, TypeAdapter

from lnlsr_lib.data import named_folder
from lnlsr_lib.device import place_name
from lnlsr_lib.spec import PROTOCOL_VERSION, RunSpec, checksum
from lnlsr_lib.trainer import RunResult, check_record, check_state

__all__ = ["BusyError", "Store", "StoreError", "StoredRun", "results_folder"]

PRECISIONS = ("float32", "bf16")  # in the order of preference where both are stored


class StoreError(RuntimeError):
    """A result cannot be read or written."""


class BusyError(StoreError):
    """Another process is training this run."""


class _Provenance(BaseModel):
    """What must be known of how a run was made; a file may say more."""

    lnlsr: str
    commit: str | None
    modified: bool | None
    python: str
    torch: str
    device: str
    precision: Literal["float32", "bf16"]
    threads: Annotated[int, Field(ge=1, strict=True)]
    seconds: Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
    finished: AwareDatetime
    data: str
    realised_noise_rate: Annotated[float, Field(ge=0, le=1, strict=True)] | None


@dataclass(frozen=True)
class StoredRun:
    """A finished run as it lies in the store: what was trained, what came out, and how.

    Attributes:
        spec, history, confusion: see :class:`lnlsr_lib.trainer.RunResult`.
        provenance: code, versions, device, precision, time.
        features: how well the test features separate the classes, see
            :func:`lnlsr_lib.embedding.embed`, or None.
        details: SHA-256 of the file that :meth:`Store.details` reads, or None.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    spec: RunSpec
    history: SkipValidation[dict[str, list[float]]]
    provenance: dict[str, Any]
    confusion: SkipValidation[list[list[int]]] = field(default_factory=list)
    features: dict[str, Any] | None = None
    details: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @property
    def commits(self) -> list[str | None]:
        """Those of the code, one or, if it was stopped and went on with other code, several."""
        made: list[str | None] = self.provenance.get("commits", [self.provenance["commit"]])
        return made

    @property
    def places(self) -> list[str]:
        """Device and threads, one or, if it was stopped and went on elsewhere, several."""
        one = place_name(self.provenance["device"], self.provenance["threads"])
        made: list[str] = self.provenance.get("places", [one])
        return made

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last epoch, percent."""
        return self.history["test_accuracy"][-1]

    @property
    def best_accuracy(self) -> float:
        """The highest test accuracy of any epoch, percent."""
        return max(self.history["test_accuracy"])


STORED = TypeAdapter(StoredRun)  # which reads one; a StoredRun of one's own is not looked at


def results_folder() -> Path:
    """``$LNLSR_RESULTS``; else ``results/`` of the checkout this library lies in; else of the
    working directory.

    Raises:
        ValueError: ``$LNLSR_RESULTS`` cannot be a folder.
    """
    named = os.environ.get("LNLSR_RESULTS")
    if named:
        return named_folder(named, "LNLSR_RESULTS")
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "results"


@cache
def code_version() -> dict[str, Any]:
    """Version of the library, and the commit of git that has it; ``modified`` if the code differs.

    None where git has not this very file, as of a copy that is installed inside of a checkout.
    """

    def git(*command: str) -> str:
        here: dict[str, Any] = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
        return str(subprocess.run(["git", *command], **here, check=True).stdout)

    found: dict[str, Any] = {"lnlsr": version("lnlsr"), "commit": None, "modified": None}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", "--", Path(__file__).name)
        head, *lines = git("status", "--porcelain=v2", "--branch", "--", ".").splitlines()
        found["commit"] = head.removeprefix("# branch.oid ")
        found["modified"] = any(not line.startswith("#") for line in lines)
    return found


def write_atomically(path: Path, content: bytes, scratch: Path | None = None) -> None:
    """Write ``content`` so that ``path`` holds all of it or what it held before.

    Args:
        path: the file; its folder is made where it is missing.
        content: what it is to hold.
        scratch: where it is written first, on the same file system; beside ``path`` by default.
            A process that is killed meanwhile leaves ``<name>.<random>.tmp`` there.

    Raises:
        StoreError: it cannot be written, for want of space or of permission, say.
    """
    temporary = (scratch or path.parent) / f"{path.name}.{uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is there no more, but after an error
            temporary.unlink()


class Store:
    """Finished runs and checkpoints under one folder.

    Args:
        folder: the results folder; :func:`results_folder` by default. Made when first written to.

    Raises:
        ValueError: it cannot be a folder.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        place = results_folder() if folder is None else folder
        self.folder = named_folder(place, "the results folder")
        code_version()  # now, since the checkout may move on while a run is trained
        self._commits: dict[str, list[str | None]] = {}  # with which a run was begun and gone on

    def path(self, spec: RunSpec, precision: str) -> Path:
        """Where the finished run lies, or will."""
        return self.folder / "runs" / f"{spec.id}.{precision}.json"

    @property
    def _scratch(self) -> Path:
        return self.folder / ".partial"

    def checkpoint(self, spec: RunSpec, precision: str) -> Path:
        """Where the state of the unfinished run lies, or will."""
        return self._scratch / f"{spec.id}.{precision}.pt"

    # --- finished runs ---

    def save(
        self,
        result: RunResult,
        features: dict[str, Any] | None = None,
        details: dict[str, NDArray[Any]] | None = None,
    ) -> Path:
        """Store a finished run with its provenance, and drop its checkpoint.

        Args:
            result: the run.
            features: numbers about its test features, for the record.
            details: arrays by name, for a file beside it.

        Raises:
            StoreError: it cannot be written, or is no result that could be read again.
        """
        path, sha256, buffer = self.path(result.spec, result.precision), None, io.BytesIO()
        if details is not None:
            np.savez_compressed(buffer, **details)  # type: ignore[arg-type]
            sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
        content: dict[str, Any] = {
            "id": result.spec.id,
            "spec": result.spec.model_dump(mode="json"),
            "history": result.history,
            "confusion": result.confusion,
            "features": features,
            "details": sha256,
            "provenance": {
                **code_version(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "device": result.device,
                "precision": result.precision,
                "threads": result.threads,
                "seconds": round(result.seconds, 1),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "data": result.origin,
                "realised_noise_rate": result.realised_noise_rate,
            },
        }
        if len(commits := self._commits.get(path.stem, [])) > 1:
            content["provenance"]["commits"] = commits
        if len(result.places) > 1:
            content["provenance"]["places"] = result.places
        try:
            content["sha256"] = checksum(content)
            text = (json.dumps(content, indent=1) + "\n").encode()
            self._verified(path, text)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path} is not stored, it would be no result: {error}") from error
        if details is not None:
            write_atomically(path.with_suffix(".npz"), buffer.getvalue(), self._scratch)
        write_atomically(path, text, self._scratch)
        self.checkpoint(result.spec, result.precision).unlink(missing_ok=True)
        return path

    def _verified(self, path: Path, text: bytes) -> StoredRun:
        """The run in a result file's content; ValueError or TypeError where it is none."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("sha256", None) != checksum(content):
            raise ValueError("its checksum is wrong: it was cut short or changed by hand")
        named = content.pop("id", None)
        run = STORED.validate_python(content)
        _Provenance.model_validate(run.provenance)
        check_record(run.history, run.confusion, run.spec.epochs)
        precision = run.provenance["precision"]
        if (named, path.name) != (run.spec.id, self.path(run.spec, precision).name):
            raise ValueError(f"it was renamed: it holds {run.spec.id} in {precision}")
        return run

    def read(self, path: Path) -> StoredRun:
        """Read one result file, and verify it.

        Raises:
            StoreError: it cannot be read, was cut short, renamed or changed by hand.
        """
        try:
            return self._verified(path, path.read_bytes())
        except (OSError, ValueError, TypeError, RecursionError) as error:
            problem = " ".join(str(error).split())[:300]
            raise StoreError(
                f"{path} is not a readable result ({problem}); delete it and run again"
            ) from error

    def load(
        self, spec: RunSpec, precision: str | None = None, *, details: bool = False
    ) -> StoredRun | None:
        """The stored run of this spec, or None; float32 first if no precision is named.

        With ``details``, a run that has lost them, or was stored without, does not count.

        Raises:
            StoreError: the file is there but not readable.
        """
        for choice in PRECISIONS if precision is None else (precision,):
            path = self.path(spec, choice)
            if path.exists():
                run = self.read(path)
                if not details or self.has_details(run):
                    return run
        return None

    def _details_path(self, run: StoredRun) -> Path:
        return self.path(run.spec, run.provenance["precision"]).with_suffix(".npz")

    def has_details(self, run: StoredRun) -> bool:
        """Whether it was stored with its samples' details, and their file is there."""
        return run.details is not None and self._details_path(run).is_file()

    def details(self, run: StoredRun) -> dict[str, NDArray[Any]]:
        """What a run's file of details holds, by name.

        That is ``embedding`` (N, 2) of the test features, ``test_prediction``, ``test_margin``,
        ``train_prediction``, ``train_margin`` and ``train_mean_margin``, each (N,), as
        :func:`lnlsr_lib.trainer.train` describes them.

        Raises:
            StoreError: the run has none, or the file is not the one that it was stored with.
        """
        path = self._details_path(run)
        if run.details is None:
            raise StoreError(f"{run.spec.id} was stored without details")
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != run.details:
            raise StoreError(
                f"{path} is missing, cut short or changed; delete it, and run again with --details"
            )
        with np.load(io.BytesIO(content)) as arrays:
            return dict(arrays)

    def missing(
        self, specs: Sequence[RunSpec], precision: str | None = None, *, details: bool = False
    ) -> list[RunSpec]:
        """Those of ``specs`` that are not stored (in that precision; in any by default).

        With ``details``, a run that has lost them, or was stored without, is missing.
        """
        if details:
            return [s for s in specs if self.load(s, precision, details=True) is None]
        choices = PRECISIONS if precision is None else (precision,)
        return [s for s in specs if not any(self.path(s, c).exists() for c in choices)]

    def runs(self) -> list[StoredRun]:
        """All finished runs of the present protocol, in the order of their file names.

        Raises:
            StoreError: a file is not readable.
        """
        found = (self.read(path) for path in sorted((self.folder / "runs").glob("*.json")))
        return [run for run in found if run.spec.protocol == PROTOCOL_VERSION]

    def preferred_runs(self) -> list[StoredRun]:
        """As :meth:`runs`; of a spec that is stored in two precisions, float32 alone."""
        runs, first = self.runs(), PRECISIONS[0]
        both = {run.spec for run in runs if run.provenance["precision"] == first}
        return [r for r in runs if r.provenance["precision"] == first or r.spec not in both]

    # --- unfinished runs ---

    def locked(self, spec: RunSpec, precision: str) -> contextlib.AbstractContextManager[None]:
        """Hold the run for this process; a killed process lets go of it.

        Raises:
            BusyError: another process is at it.
            StoreError: the folder cannot be written.
        """
        return self._locked(f"{spec.id}.{precision}")

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        path = self._scratch / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            run = name.rpartition(".")[0]
            raise BusyError(f"{run} is being trained by another process") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
        try:
            self._tidy(name)
            yield
        finally:
            self._tidy(name)
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: who waits for it takes a new one
            lock.release()

    def _tidy(self, name: str) -> None:
        """Remove what killed processes left of a run that is locked."""
        with contextlib.suppress(OSError):
            for path in self._scratch.glob(f"{name}.*.tmp"):
                path.unlink()
            made, state = self.folder / "runs" / f"{name}.json", self._scratch / f"{name}.pt"
            # one that is newer than the result is of the same run, repeated for its details
            if made.stat().st_mtime_ns >= state.stat().st_mtime_ns:
                state.unlink()

    def tidy(self) -> None:
        """Remove what killed processes left, but for the checkpoints of unfinished runs.

        A run that a process is at, and a folder that cannot be written, are left alone.
        """
        kinds = "|".join(PRECISIONS)
        found = (re.match(rf"(.+\.(?:{kinds}))\.", path.name) for path in self._scratch.glob("*"))
        for name in {match[1] for match in found if match}:
            with contextlib.suppress(StoreError), self._locked(name):
                pass

    def save_checkpoint(self, spec: RunSpec, precision: str, state: dict[str, Any]) -> None:
        """Store the state of an unfinished run in the place of the one before.

        Raises:
            StoreError: it cannot be written.
        """
        buffer, path = io.BytesIO(), self.checkpoint(spec, precision)
        commits = self._commits.setdefault(path.stem, [code_version()["commit"]])
        torch.save({"state": state, "commits": commits}, buffer)
        content = buffer.getvalue()
        write_atomically(path, hashlib.sha256(content).digest() + content)

    def load_checkpoint(self, spec: RunSpec, precision: str) -> dict[str, Any] | None:
        """The state of an unfinished run, or None; verified before anything in it is loaded.

        Raises:
            StoreError: the file is there but not readable, damaged, or of another run.
        """
        path = self.checkpoint(spec, precision)
        if not path.exists():
            return None
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("its checksum is wrong")
            held = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            state: dict[str, Any] = held["state"]
            check_state(state, spec, precision)
            commits, now = held["commits"], code_version()["commit"]
            self._commits[path.stem] = commits if now in commits[-1:] else [*commits, now]
            return state
        except Exception as error:
            problem = " ".join(str(error).split())[:300]
            raise StoreError(
                f"the checkpoint {path} is not usable ({problem}); delete it to train from the "
                "start"
            ) from error
