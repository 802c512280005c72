"""Run a command that no other may run at the same time: python scripts/locked.py FILE COMMAND ...

Waits, and says so, while another process holds FILE. The command inherits the lock, so that it
lasts as long as the last of its processes; the operating system lets go of it when they end,
however they end. Needs the standard library alone, since it runs before anything is installed.
"""

import fcntl
import subprocess
import sys


def main() -> int:
    """Lock, run, and return the command's exit status."""
    path, *command = sys.argv[1:]
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("make: waiting for another make in this folder", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return subprocess.call(command, pass_fds=[lock.fileno()])


if __name__ == "__main__":
    sys.exit(main())
