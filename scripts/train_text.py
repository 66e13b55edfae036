"""The same as ``textenvs train-text``; see `agents.cli`."""

import sys

from agents.cli import run

if __name__ == "__main__":
    sys.exit(run("train-text"))
