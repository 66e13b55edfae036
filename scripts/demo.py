"""The same as ``textenvs demo``; see `agents.recipes.demo`."""

import sys

from agents.recipes.demo import command_line

if __name__ == "__main__":
    sys.exit(command_line())
