"""A door: see `agents.verification.exact_gap`."""

import sys

from agents.verification.exact_gap import command_line

if __name__ == "__main__":
    sys.exit(command_line())
