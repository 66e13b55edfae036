"""The same as ``textenvs train-control``; see `agents.cli`."""

import sys

from agents.cli import run

if __name__ == "__main__":
    sys.exit(run("train-control"))
