"""The same as ``textenvs evaluate``; see `agents.recipes.evaluate`."""

import sys

from agents.recipes.evaluate import command_line

if __name__ == "__main__":
    sys.exit(command_line())
