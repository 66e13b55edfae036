"""The same as ``textenvs best-of-n``; see `agents.cli`."""

import sys

from agents.cli import run

if __name__ == "__main__":
    sys.exit(run("best-of-n"))
