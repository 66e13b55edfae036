"""The same as ``textenvs train-text``; see `agents.recipes.rlhf.train`."""

import sys

from agents.recipes.rlhf.train import command_line

if __name__ == "__main__":
    sys.exit(command_line())
