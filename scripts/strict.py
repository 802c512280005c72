"""Execute notebooks twice, and compare all that they put out: python scripts/strict.py [NAME ...]

Papermill executes each from a copy of the stored results; `pytest --nbval` executes it once more
and compares output by output, pictures aside. Progress bars of the first time are left out: what
a notebook trains is stored by the second. Nothing is written into the checkout.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def differs(source: Path) -> str:
    """What the two executions of a notebook do not share, as nbval says it; or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        results, done = Path(folder) / "results", Path(folder) / "notebooks" / source.name
        shutil.copytree(ROOT / "results", results)
        done.parent.mkdir()
        papermill = "papermill --no-progress-bar --log-level ERROR --start-timeout 300 --cwd"
        nbval = "pytest -p no:cacheprovider --nbval --nbval-kernel-startup-timeout 300"
        nbval += " --nbval-cell-timeout 900 --rootdir"
        first = [*papermill.split(), str(done.parent), str(source), str(done)]
        second = [*nbval.split(), str(ROOT), "-c", str(ROOT / "pyproject.toml"), str(done)]
        for command in (first, second):
            ran = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=os.environ | {"LNLSR_RESULTS": str(results), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            if ran.returncode:
                return ran.stdout + ran.stderr
            if command is first:
                book = nbformat.read(done, as_version=4)
                for cell in book.cells:
                    if cell.cell_type == "code":
                        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
                nbformat.write(book, done)
    return ""


def main() -> int:
    """Compare all, or those that are named; the exit status is 1 if any differs."""
    every = sorted((ROOT / "notebooks").glob("*.ipynb"))
    chosen = [path for path in every if path.stem in sys.argv[1:] or not sys.argv[1:]]
    failed = 0
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for path, found in zip(chosen, pool.map(differs, chosen), strict=True):
            print(f"{path.stem}: {'differs' if found else 'the same twice'}\n{found}", flush=True)
            failed += bool(found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
