"""The house: a file imports only from floors below its own, and the library stays thin."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import lnlsr_book
import lnlsr_lib

FLOORS = [
    ["checks"],
    ["losses", "regularization", "noise", "label_issues", "models", "augment", "device", "paper"],
    ["data", "embedding"],
    ["webvision", "spec"],
    ["protocol", "feed", "objective"],
    ["measure"],
    ["trainer"],
    ["store"],
    ["cost"],
    ["sweep", "experiments"],
    ["cluster"],
    ["cli"],
    ["__main__"],
    # the book's
    ["report"],
    ["plots"],
    ["notebook"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
PACKAGES = {"lnlsr_lib", "lnlsr_book"}  # no two of their modules have the same name
LIBRARY, BOOK = (sorted(Path(p.__file__).parent.glob("*.py")) for p in (lnlsr_lib, lnlsr_book))
MODULES = [path for path in LIBRARY + BOOK if path.stem != "__init__"]


def own_imports(path):
    """The project's modules that a file imports, in functions and under conditions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} has a relative import"
            if node.module in PACKAGES:
                yield from (alias.name for alias in node.names)
            elif node.module.split(".")[0] in PACKAGES:
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.partition(".")[2] or alias.name
                for alias in node.names
                if alias.name.split(".")[0] in PACKAGES
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_floors_below_its_own(path):
    assert path.stem in FLOOR, f"{path.name} has no floor yet: give it one above"
    for name in own_imports(path):
        assert name in FLOOR, f"{path.name} imports {name}, which is no module with a floor"
        assert FLOOR[name] < FLOOR[path.stem], f"{path.name} imports {name} from its floor or above"


def test_the_import_check_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "made.py"
    path.write_text(
        "import lnlsr_lib.cli\nfrom lnlsr_book import plots\nfrom lnlsr_lib import store\n"
        "def f():\n    from lnlsr_lib.trainer import train\n"
    )
    assert set(own_imports(path)) == {"cli", "plots", "store", "trainer"}


def code_lines(path):
    """How many lines hold code: neither blank, nor comment, nor docstring."""
    source = path.read_text(encoding="utf-8")
    prose = set()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(
        number not in prose and bool(line.strip()) and not line.strip().startswith("#")
        for number, line in enumerate(source.splitlines(), start=1)
    )


def test_the_library_is_thin():
    """Docstrings, comments and blank lines may be what they need; code has to earn its place."""
    assert sum(map(code_lines, LIBRARY)) <= 3600
    assert sum(map(code_lines, BOOK)) <= 820


def test_public_names_exist_and_are_listed_once():
    for path in MODULES:
        module = import_module(f"{path.parent.name}.{path.stem}")
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name), f"{path.name}: __all__ has {name}"
    assert all(hasattr(lnlsr_lib, name) for name in lnlsr_lib.__all__)
