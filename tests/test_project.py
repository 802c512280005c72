"""What lies around the library: the environment, the notebooks, the committed results."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from snippets import calls

from lnlsr_book.plots import curves, finals
from lnlsr_lib.experiments import EXPERIMENTS, experiment_specs
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


def wanted_by_the_project():
    extras = PROJECT["optional-dependencies"].values()
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]
    return [r for r in map(Requirement, texts) if r.name != PROJECT["name"]]


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    for wanted in wanted_by_the_project():
        (pin,) = pins()[wanted.name.lower()].specifier
        assert pin.operator == "=="
        assert pin.version in wanted.specifier, f"{wanted} against {pin}"


def test_every_pin_runs_on_every_python_that_the_project_allows():
    """From the lowest patch release on: a registry's message does not say which pin is to blame."""
    allowed = SpecifierSet(PROJECT["requires-python"])
    pythons = [f"3.{minor}.{patch}" for minor in range(15) for patch in (0, 99)]
    refused, seen = [], set()
    for name, pin in pins().items():
        try:
            about = metadata(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed, or another system's
        if about["Version"] not in pin.specifier:
            continue
        seen.add(name)
        needs = SpecifierSet(about["Requires-Python"] or "")
        refused += [f"{pin} needs {needs}" for p in pythons if p in allowed and p not in needs]
    assert not refused
    assert {"torch", "numpy", "jupyter-book", "soupsieve", "pytest"} <= seen


@pytest.fixture
def make(tmp_path):
    """Calls make where nothing is set up: in this folder another one may be holding the lock."""
    folder = tmp_path / "fresh"
    (folder / "scripts").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts/locked.py"):
        shutil.copy(ROOT / name, folder / name)

    def call(*arguments, **environment):
        return subprocess.run(
            ["make", *arguments],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


needs_make = pytest.mark.skipif(
    shutil.which("make", path="/usr/bin:/bin") is None, reason="no make"
)


def interpreter(path, version):
    """A Python that claims to be of another version."""
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = {version}\nexec(sys.argv[2])\n"
    )
    path.chmod(0o755)


@needs_make
def test_make_takes_a_python_whose_path_has_a_space(make, tmp_path):
    (tmp_path / "a b").mkdir()
    interpreter(tmp_path / "a b" / "python", (3, 12, 1))
    done = make("-n", "in-release", f"PYTHON={tmp_path / 'a b' / 'python'}")
    assert f'"{tmp_path}/a b/python" -m venv .venv' in done.stdout
    assert make("python", f"PYTHON={tmp_path / 'a b' / 'python'}").returncode == 0


@needs_make
def test_make_takes_the_newest_python_that_fits(make, tmp_path):
    """3.14 is broken here, as a version manager's stand-in is, and python3 is too new."""
    (tmp_path / "python3.14").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.14").chmod(0o755)
    for name, version in {"python3.13": (3, 13, 0), "python3.12": (3, 12, 1)}.items():
        interpreter(tmp_path / name, version)
    interpreter(tmp_path / "python3", (3, 15, 0))
    done = make("-n", "in-release", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert '"python3.13" -m venv .venv' in done.stdout
    assert make("python", PATH=f"{tmp_path}:/usr/bin:/bin").returncode == 0


@needs_make
@pytest.mark.parametrize("version", [(3, 10, 13), (3, 15, 0), (2, 7, 18)])
def test_make_says_in_one_line_which_python_it_needs(make, tmp_path, version):
    interpreter(tmp_path / "mine", version)
    for target in ("setup", "book", "test", "lint", "format", "notebooks", "release"):
        done = make("--no-print-directory", target, f"PYTHON={tmp_path / 'mine'}")
        assert done.returncode == 2
        said, ended = done.stderr.splitlines()
        assert "make: needs Python 3.11 to 3.14" in said
        assert "make: ***" in ended


def test_make_and_the_project_allow_the_same_pythons():
    (low, high) = re.search(
        r"\((\d+, \d+)\) <= sys.version_info < \((\d+, \d+)\)", (ROOT / "Makefile").read_text()
    ).groups()
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert str(allowed) == f">={low.replace(', ', '.')}"
    named = [f"python{low[0]}.{n}" for n in range(int(high[3:]) - 1, int(low[3:]) - 1, -1)]
    assert f"PYTHONS := {' '.join(named)} python3 python\n" in (ROOT / "Makefile").read_text()


@needs_make
def test_no_recipe_calls_a_script_whose_first_line_names_a_folder(make):
    for target in ("in-book", "in-test", "in-release", "lint", "format"):
        recipe = make("-n", target, f"PYTHON={sys.executable}").stdout
        assert recipe
        assert not re.findall(r"\.venv/bin/(?!python\b)\S+", recipe)


def test_two_commands_under_one_lock_take_turns(tmp_path):
    code = (
        "import pathlib, time; log = pathlib.Path('log'); old = log.read_text(); "
        "time.sleep(0.5); log.write_text(old + 'x')"
    )
    (tmp_path / "log").write_text("")
    command = [sys.executable, ROOT / "scripts" / "locked.py", "lock", sys.executable, "-c", code]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    said = b"".join(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "xx"
    assert said == b"make: waiting for another make in this folder\n"


def test_a_lock_outlives_its_holder_and_passes_on_the_exit_status(tmp_path):
    """Killed, the holder leaves its command running; the next one must wait for that."""
    locked = [sys.executable, ROOT / "scripts" / "locked.py", tmp_path / "lock", sys.executable]
    code = "import sys, time; print(1, flush=True); time.sleep(1)"
    first = subprocess.Popen([*locked, "-c", code], stdout=subprocess.PIPE)
    first.stdout.readline()
    start = time.perf_counter()
    first.kill()
    first.wait()
    done = subprocess.run([*locked, "-c", "raise SystemExit(7)"], stderr=subprocess.PIPE)
    assert done.returncode == 7
    assert time.perf_counter() - start > 0.5
    first.stdout.close()


THREE_LINES = ["README.md", "book/use.md", "notebooks/quickstart.ipynb"]


@pytest.mark.parametrize("name", [*THREE_LINES, "book/frameworks.md"])
def test_the_three_lines_are_the_same_everywhere(name):
    (readme,) = calls("README.md", "SparseRegularization")
    assert set(readme) == {"temperature", "p", "weight", "growth"}
    shown = list(calls(name, "SparseRegularization"))
    assert shown
    for call in shown:
        if "unit_logits" not in call:  # said to be a variant where it stands
            assert call == readme


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
    checks = ("notebook.check_parameters(globals())", "notebook.open_page(", "globals())")
    assert checks[0] in cells[1].source or all(part in cells[1].source for part in checks[1:])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_its_page_in_the_book(path):
    toc = (ROOT / "book" / "_toc.yml").read_text()
    assert f"file: notebooks/{path.stem}\n" in toc


def test_what_a_notebook_imports_is_in_the_api_reference():  # where its footer links to
    reference = (ROOT / "book" / "api.md").read_text()
    documented = set(re.findall(r"automodule:: ([\w.]+)", reference))
    used = set()
    for path in NOTEBOOKS:
        text = path.read_text()
        used |= set(re.findall(r"from (lnlsr_\w+\.\w+) import", text))
        used |= {f"lnlsr_book.{n}" for n in re.findall(r"from lnlsr_book import (\w+)", text)}
    assert "lnlsr_book.notebook" in used
    assert used <= documented


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


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/*.csv")), ids=lambda p: p.stem)
def test_a_committed_figures_data_are_those_of_the_committed_runs(path):
    table = pd.read_csv(path)
    if "id" not in table or path.stem.endswith("-smoke"):
        return
    runs = {(run.spec.id, run.provenance["precision"]): run for run in committed().runs()}
    shown = table[["id", "precision"]].drop_duplicates().itertuples(index=False, name=None)
    data = curves if "epoch" in table else finals  # of a figure; of a table
    assert path.read_text() == data([runs[key] for key in shown]).to_csv(
        index=False, float_format="%.6g"
    )
    assert ("epoch" in table) != path.stem.startswith("table")


def shown_experiments():
    """The experiments whose runs are on a page, by the names that the notebooks open."""
    cells = (cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells)
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return set(re.findall(r'(?:open_page|cells_of)\(\s*"(\w+)"', code))


def test_every_experiment_is_on_a_page():
    assert shown_experiments() == set(EXPERIMENTS)


def test_every_figure_and_table_of_the_paper_has_its_notebook():
    names = {path.stem for path in NOTEBOOKS}
    assert {f"fig{i}" for i in range(1, 13)} | {f"table{i}" for i in range(1, 7)} <= names


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
        command = [sys.executable, "-m", "lnlsr_lib", "--results", str(results), "run", "fig3"]
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


def third_party(path, seen):
    """Packages that a module and what it imports of this project need, at their first import."""
    seen.add(path)
    for node in ast.parse(path.read_text()).body:
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        for name in names:
            package, _, module = name.partition(".")
            ours = [module] if module else [a.name for a in getattr(node, "names", [])]
            if package not in ("lnlsr_lib", "lnlsr_book"):
                yield package
            else:
                for part in ours:
                    file = ROOT / package / f"{part}.py"
                    if file.exists() and file not in seen:
                        yield from third_party(file, seen)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        *((f"lnlsr_lib.{name}", None) for name in ("losses", "regularization", "noise")),
        *(("lnlsr_lib.label_issues", None), ("lnlsr_lib.__main__", None)),
        *(("lnlsr_lib.cli", "train"), ("lnlsr_book.notebook", "book")),
    ],
)
def test_a_module_imports_what_its_extra_brings(module, extra):
    extras = PROJECT["optional-dependencies"]
    brought = [*PROJECT["dependencies"], *(extras["train"] if extra else [])]
    brought += extras["book"] if extra == "book" else []
    names = {Requirement(text).name.replace("-", "_") for text in brought}
    names |= {"PIL", "sklearn"} if extra else set()  # pillow, scikit-learn
    needed = set(third_party(ROOT / f"{module.replace('.', '/')}.py", set()))
    assert needed - set(sys.stdlib_module_names) <= names
