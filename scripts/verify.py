"""The same as ``textenvs verify``; see `agents.verification.run`."""

import sys

from agents.verification.run import command_line

if __name__ == "__main__":
    sys.exit(command_line())
