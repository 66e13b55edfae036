"""The same as ``textenvs pipeline``; see `agents.recipes.pipeline`."""

import sys

from agents.recipes.pipeline import command_line

if __name__ == "__main__":
    sys.exit(command_line())
