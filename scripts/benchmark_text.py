"""A door: see `scripts.benchmarks.text.compare`."""

import sys

from scripts.benchmarks.text.compare import command_line

if __name__ == "__main__":
    sys.exit(command_line())
