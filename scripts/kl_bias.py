"""A door: see `agents.verification.kl_bias`."""

import sys

from agents.verification.kl_bias import command_line

if __name__ == "__main__":
    sys.exit(command_line())
