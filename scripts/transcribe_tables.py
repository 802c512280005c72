"""Transcribe the paper's tables, out of its plain text, into ``lnlsr_lib/paper.csv``.

    python scripts/transcribe_tables.py PAPER.txt

The text is that of arXiv 2108.00192 as an HTML-to-text conversion gives it: one line a table row,
cells divided by ``|``, a mean and its deviation divided by a blank. The script stops if a row does
not have the shape of its table, or a table not its number of values.
"""

import csv
import re
import sys
from pathlib import Path

NAMES = ["CE", "FL", "GCE", "SCE", "NLNL", "APL", "CE+SR", "FL+SR", "GCE+SR"]
NAMES += ["Co-teaching", "PHuber-CE"]
METHODS = {name: name.lower().replace("+", "_").replace("-", "_") for name in NAMES}
DATASETS = {"MNIST": "mnist", "CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
SYMMETRIC = [("clean", 0.0), *(("symmetric", rate) for rate in (0.2, 0.4, 0.6, 0.8))]
# How the last line of a table's header starts; its number; its columns; how many values it has.
TABLES = [
    (r"^0\.2 \| 0\.4", 1, SYMMETRIC, 135),
    (r"^0\.2 \| 0\.3", 2, [("asymmetric", rate) for rate in (0.2, 0.3, 0.4)], 81),
    (r"^sy 0\.6", 4, [*SYMMETRIC[-2:], ("asymmetric", 0.3), ("asymmetric", 0.4)], 32),
    (r"^lt-0\.01", 5, [("lt", 0.01), ("lt", 0.1), ("step", 0.01), ("step", 0.1)], 16),
    (r"^0\.1 \| 0\.2", 6, [("asymmetric", rate) for rate in (0.1, 0.2, 0.3, 0.4)], 108),
]
FIELDS = ["table", "dataset", "method", "noise", "noise_rate", "mean", "std"]


def values(cells: list[str], count: int) -> list[list[str]]:
    """The row's last ``count`` cells as [mean, std]; std is empty where the table has none."""
    pairs = [cell.split() for cell in cells]
    if len(pairs) != count or any(not re.fullmatch(r"[\d.]+( [\d.]+)?", cell) for cell in cells):
        raise SystemExit(f"a row of unexpected shape: {cells}")
    return [[pair[0], pair[1] if len(pair) > 1 else ""] for pair in pairs]


def transcribe(lines: list[str]) -> list[list[object]]:
    """All tables as rows of ``FIELDS``."""
    rows: list[list[object]] = []
    for header, number, columns, expected in TABLES:
        start = next(i for i, line in enumerate(lines) if re.search(header, line))
        dataset, found = "", 0
        for line in lines[start + 1 :]:
            cells = [cell.strip() for cell in line.rstrip("| ").split("|")]
            if cells[0] in DATASETS:
                dataset = DATASETS[cells.pop(0)]
            if not cells or cells[0] not in METHODS:
                if dataset:
                    break  # the table is over
                continue  # one more line of its header
            for (noise, rate), pair in zip(columns, values(cells[1:], len(columns)), strict=True):
                rows.append([number, dataset, METHODS[cells[0]], noise, rate, *pair])
                found += 1
        if found != expected:
            raise SystemExit(f"table {number}: {found} values, expected {expected}")
    start = next(i for i, line in enumerate(lines) if line.startswith("Loss | CE"))
    names, accuracies = ([c.strip() for c in lines[i].split("|")][1:7] for i in (start, start + 2))
    for name, pair in zip(names, values(accuracies, 6), strict=True):
        rows.append([3, "webvision", METHODS[name], "web", "", *pair])
    return sorted(rows, key=lambda row: int(str(row[0])))


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    rows = transcribe(Path(sys.argv[1]).read_text().splitlines())
    target = Path(__file__).parent.parent / "lnlsr_lib" / "paper.csv"
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([FIELDS, *rows])
    print(f"{len(rows)} values into {target}")


if __name__ == "__main__":
    main()
