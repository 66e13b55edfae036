"""A door: see `scripts.benchmarks.memory`."""

import sys

from scripts.benchmarks.memory import command_line

if __name__ == "__main__":
    sys.exit(command_line())
