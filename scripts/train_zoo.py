"""A door: see `scripts.benchmarks.control.zoo_run`."""

import sys

from scripts.benchmarks.control.zoo_run import command_line

if __name__ == "__main__":
    sys.exit(command_line())
