"""The same as ``textenvs train-reward-model``; see `agents.cli`."""

import sys

from agents.cli import run

if __name__ == "__main__":
    sys.exit(run("train-reward-model"))
