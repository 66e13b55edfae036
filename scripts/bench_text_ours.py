"""A door: see `scripts.benchmarks.text.ours`."""

import sys

from scripts.benchmarks.text.ours import command_line

if __name__ == "__main__":
    sys.exit(command_line())
