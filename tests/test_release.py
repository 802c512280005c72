"""The wheel, alone: what is in it, what it asks for, and that the README's snippet runs from it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from snippets import ROOT, blocks

import lnlsr_lib
from lnlsr_lib import __main__, cli

CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, PACKAGES = CONFIGURATION["project"], CONFIGURATION["tool"]["setuptools"]["packages"]


def run(*command, **more):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, **more)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The one that ``LNLSR_WHEEL`` names, else built here, from a copy that stays clean."""
    named = os.environ.get("LNLSR_WHEEL")
    if named:
        return Path(named).resolve()
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    done = run(sys.executable, "-m", "pip", "wheel", *options, folder)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def closure(*names):
    """The distributions that these need here, themselves among them."""
    found, ahead = {}, list(names)
    while ahead:
        dist = distribution(ahead.pop())
        if dist.name not in found:
            found[dist.name] = dist
            wanted = map(Requirement, dist.requires or [])
            ahead += [
                r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})
            ]
    return found.values()


@pytest.fixture(scope="module")
def bare(tmp_path_factory, wheel):
    """An environment with the wheel, PyTorch, NumPy and what those two need; links, no copies."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for dist in closure("torch", "numpy"):
        for top in {file.parts[0] for file in dist.files if file.parts[0] != ".."}:
            target = Path(dist.locate_file(top))
            if top != "__pycache__" and target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    done = run(*pip, "install", *options, wheel)
    assert done.returncode == 0, done.stderr
    done = run(*pip, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def python(bare, code, *options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = run(bare / "python", *options, "-c", code, env=environment, cwd=bare)
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = (path for package in PACKAGES for path in (ROOT / package).iterdir())
    wanted = {f"{path.parent.name}/{path.name}" for path in ours if path.name != "__pycache__"}
    assert names == wanted


def test_the_wheels_metadata_are_valid_and_say_what_the_project_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(name), validate=True)
    assert metadata.name == PROJECT["name"]
    assert str(metadata.version) == PROJECT["version"]
    assert str(metadata.requires_python) == PROJECT["requires-python"]
    assert set(metadata.provides_extra) == set(PROJECT["optional-dependencies"])
    plain = {r.name for r in metadata.requires_dist if r.marker is None}
    assert plain == {"torch", "numpy"}
    assert metadata.description == (ROOT / "README.md").read_text()


def test_the_version_stands_in_one_place():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == PROJECT["version"]
    assert "version" not in (ROOT / "CITATION.cff").read_text().replace("cff-version", "")
    for path in ROOT.glob("lnlsr_*/*.py"):
        assert PROJECT["version"] not in path.read_text()


def test_the_readmes_snippet_runs_from_the_wheel_alone(bare):
    (snippet,) = blocks("README.md")
    shown = "\nimport lnlsr_lib; print(lnlsr_lib.__file__, lnlsr_lib.__version__)"
    shown += (
        "\nloss.backward(); assert criterion.weight == 1.2 * 1.03; print(bool(logits.grad.any()))"
    )
    done = python(bare, snippet + shown, "-W", "error")
    file, version, gradient = done.stdout.split()
    assert Path(file).is_relative_to(bare.parent)
    assert (version, gradient) == (PROJECT["version"], "True")


def test_losses_regularisation_noise_and_label_issues_bring_no_other_package_along(bare):
    code = """
import sys, json
import numpy, torch
before = set(sys.modules)
import lnlsr_lib.label_issues, lnlsr_lib.losses, lnlsr_lib.noise, lnlsr_lib.regularization
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - set(sys.stdlib_module_names))))
"""
    assert json.loads(python(bare, code).stdout) == ["lnlsr_lib"]


def test_importing_takes_little_more_than_importing_torch(bare):
    """Shares of one process's time: a busy machine slows both."""
    code = "import lnlsr_lib.label_issues, lnlsr_lib.noise"
    log = python(bare, code, "-X", "importtime").stderr
    ours = torch = 0
    for own, total, name in re.findall(r"import time: +(\d+) \| +(\d+) \| +(\S+)", log):
        ours += int(own) if name.split(".")[0] == "lnlsr_lib" else 0
        torch = int(total) if name == "torch" else torch
    assert 0 < ours < 0.1 * torch


@pytest.mark.parametrize("arguments", [["status"], ["--help"], []])
def test_the_command_without_the_extra_says_in_one_line_what_it_needs(bare, arguments):
    done = run(bare / "lnlsr", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"lnlsr: the command line needs the extra 'train' \(\w+ is not installed\): "
        r"pip install 'lnlsr\[train\]'",
        line,
    )


def test_with_the_extra_the_command_is_the_command_line(monkeypatch):
    assert PROJECT["scripts"] == {"lnlsr": "lnlsr_lib.__main__:main"}
    monkeypatch.setattr(cli, "main", lambda: 7)
    assert __main__.main() == 7


def test_a_part_of_the_library_that_is_missing_is_not_blamed_on_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lnlsr_lib.cli", None)
    monkeypatch.delattr(lnlsr_lib, "cli")
    with pytest.raises(ModuleNotFoundError, match="lnlsr_lib"):
        __main__.main()
