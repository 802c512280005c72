"""What lies around the library: the environment, the notebooks, the committed results."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.plots import curves
from lnlsr_lib.store import Store, results_folder

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        requirement.name.lower().replace("_", "-"): requirement
        for requirement in map(Requirement, (line for line in lines if not line.startswith("#")))
    }


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]:
        wanted = Requirement(text)
        (pin,) = pins()[wanted.name.lower()].specifier
        assert pin.operator == "=="
        assert pin.version in wanted.specifier, f"{text} against {pin}"


def test_the_conda_environment_installs_this_package_with_its_extras_and_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    extras = ",".join(PROJECT["optional-dependencies"])
    assert pip == ["--constraint constraints.txt", f"--editable .[{extras}]"]
    (python,) = [p for p in environment["dependencies"] if str(p).startswith("python=")]
    assert python.removeprefix("python=") in PROJECT["requires-python"]
    assert environment["name"] == PROJECT["name"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_starts_with_typed_parameters(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert cells[0].metadata.get("tags") == ["parameters"]
    for line in cells[0].source.splitlines():
        assert ": " in line.split("=")[0], f"not typed: {line}"
        assert "  # " in line, f"not commented: {line}"
    assert "notebook.check_parameters(globals())" in cells[1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_its_page_in_the_book(path):
    toc = (ROOT / "book" / "_toc.yml").read_text()
    assert f"file: notebooks/{path.stem}\n" in toc


def committed() -> Store:
    return Store(ROOT / "results")


def test_tests_do_not_write_into_the_committed_results():
    assert results_folder() != committed().folder


def test_committed_results_are_whole_and_carry_their_provenance():
    """Smoke runs are made by every build of the book, and are not for git."""
    assert "/results/runs/digits-*" in (ROOT / ".gitignore").read_text().splitlines()
    for run in committed().runs():
        if run.spec.profile == "smoke":
            assert run.spec.dataset == "digits"
            continue
        assert not run.provenance["modified"]
        assert {"commit", "torch", "device", "precision", "threads", "seconds", "data"} <= set(
            run.provenance
        )
        assert run.provenance["commit"]


@pytest.mark.parametrize("name", ["fig3", "memorising"])
def test_a_committed_figures_data_are_those_of_the_committed_runs(name):
    for path in (ROOT / "results" / name).glob("*.csv"):
        profile = path.stem.partition("-")[2] or "paper"
        if profile == "smoke":
            continue
        rows = path.read_text().splitlines()[1:]
        seeds = sorted({int(line.split(",")[1]) for line in rows})
        runs = [committed().load(spec) for spec in experiment_specs(name, profile, seeds)]
        assert path.read_text() == curves(runs).to_csv(index=False)


def git(*arguments, cwd=ROOT):
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs a git checkout"
)
def test_a_stored_run_is_repeated_to_the_bit_from_the_commit_that_it_names(tmp_path):
    spec = experiment_specs("fig3", "smoke")[1]

    def run(checkout, results):
        """Train in a process of its own, from that checkout alone."""
        command = [sys.executable, "-m", "lnlsr_lib.cli", "--results", str(results), "run", "fig3"]
        options = ["--profile", "smoke", "--only", spec.id, "--quiet", "--device", "cpu"]
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            command + options, cwd=checkout, env=environment, check=True, capture_output=True
        )
        (path,) = (results / "runs").glob("*.json")
        return json.loads(path.read_text())

    first, second = tmp_path / "first", tmp_path / "second"
    git("clone", "--quiet", "--shared", str(ROOT), str(first))
    stored = run(first, tmp_path / "stored")
    assert stored["provenance"]["modified"] is False
    git("clone", "--quiet", "--shared", str(ROOT), str(second))
    git("checkout", "--quiet", stored["provenance"]["commit"], cwd=second)
    again = run(second, tmp_path / "again")
    for result in (stored, again):
        result["history"].pop("seconds")
    assert again["history"] == stored["history"]
    assert again["confusion"] == stored["confusion"]
    assert again["details"] == stored["details"]
