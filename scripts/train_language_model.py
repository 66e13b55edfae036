"""The same as ``textenvs train-language-model``; see `agents.recipes.sft.train`."""

import sys

from agents.recipes.sft.train import command_line

if __name__ == "__main__":
    sys.exit(command_line())
