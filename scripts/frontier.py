"""The same as ``textenvs frontier``; see `agents.recipes.frontier`."""

import sys

from agents.recipes.frontier import command_line

if __name__ == "__main__":
    sys.exit(command_line())
