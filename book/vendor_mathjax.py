"""Put MathJax beside the book, so that no page needs the network.

    python book/vendor_mathjax.py

The file is MathJax 3.2.2's ``tex-svg.js`` (Apache License 2.0), which draws formulas as SVG and
needs nothing besides itself. It comes with the Python package sphinx-mathjax-offline, and is
checked against the checksum of the official release.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "sphinx-mathjax-offline"
SOURCE = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
SHA256 = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"
TARGET = Path(__file__).resolve().parent / "_vendor" / "mathjax"
NOTICE = """\
tex-svg.js is part of MathJax 3.2.2, unmodified.
Copyright (c) 2009-2022 The MathJax Consortium. Licensed under the Apache License, Version 2.0:
https://www.apache.org/licenses/LICENSE-2.0
"""


def main() -> int:
    """Copy and verify; returns the exit status."""
    try:
        content = Path(str(distribution(PACKAGE).locate_file(SOURCE))).read_bytes()
    except (PackageNotFoundError, OSError) as error:
        print(f"MathJax not found ({error}); pip install {PACKAGE}==0.0.2", file=sys.stderr)
        return 1
    if hashlib.sha256(content).hexdigest() != SHA256:
        print(f"{SOURCE} is not MathJax 3.2.2; pip install {PACKAGE}==0.0.2", file=sys.stderr)
        return 1
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / "tex-svg.js").write_bytes(content)
    (TARGET / "NOTICE.txt").write_text(NOTICE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
