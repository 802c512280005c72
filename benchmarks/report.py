"""Where the benchmarks write what they measured: results/benchmarks/<name>.csv, and the screen."""

from __future__ import annotations

import pandas as pd

from lnlsr_lib.store import code_version, results_folder, write_atomically


def write_rows(name: str, rows: list[dict[str, object]]) -> None:
    """Store the rows, with the code's commit and PyTorch's version in each, and print them."""
    from torch import __version__ as torch_version

    commit = (code_version()["commit"] or "no commit")[:8] + "+" * bool(code_version()["modified"])
    table = pd.DataFrame([row | {"torch": torch_version, "commit": commit} for row in rows])
    path = results_folder() / "benchmarks" / f"{name}.csv"
    write_atomically(path, table.to_csv(index=False).encode())
    print(table.T.to_string())
    print(path)
