"""The same as ``textenvs train-control``; see `agents.recipes.control`."""

import sys

from agents.recipes.control import command_line

if __name__ == "__main__":
    sys.exit(command_line())
