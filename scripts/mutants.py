"""A door: see `scripts.mutation.run`."""

import sys

from scripts.mutation.run import command_line

if __name__ == "__main__":
    sys.exit(command_line())
