"""The Python in the prose: fenced blocks of a page, and calls in it."""

import ast
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def blocks(name):
    """The fenced Python blocks of a page, in order; a notebook's code cells are its blocks."""
    path = ROOT / name
    if path.suffix == ".ipynb":
        return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    return FENCE.findall(path.read_text(encoding="utf-8"))


def calls(name, function):
    """Every call of ``function`` in a page's blocks: its keyword arguments as they are written."""
    for block in blocks(name):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == function:
                yield {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
