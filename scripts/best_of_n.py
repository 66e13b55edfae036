"""The same as ``textenvs best-of-n``; see `agents.recipes.best_of_n`."""

import sys

from agents.recipes.best_of_n import command_line

if __name__ == "__main__":
    sys.exit(command_line())
