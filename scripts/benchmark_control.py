"""A door: see `scripts.benchmarks.control.compare`."""

import sys

from scripts.benchmarks.control.compare import command_line

if __name__ == "__main__":
    sys.exit(command_line())
