"""A door: see `scripts.benchmarks.text.ablation`."""

import sys

from scripts.benchmarks.text.ablation import command_line

if __name__ == "__main__":
    sys.exit(command_line())
