"""``lnlsr`` and ``python -m lnlsr_lib``: the command line, or one line on what it lacks."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Hand over to :func:`lnlsr_lib.cli.main`, which needs the extra ``train``; the exit status."""
    try:
        from lnlsr_lib import cli
    except KeyboardInterrupt:  # its imports take seconds
        return 128 + 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "lnlsr_lib":
            raise
        raise SystemExit(
            f"lnlsr: the command line needs the extra 'train' ({error.name} is not installed): "
            "pip install 'lnlsr[train]'"
        ) from None
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
