"""The same as ``textenvs frontier``; see `agents.cli`."""

import sys

from agents.cli import run

if __name__ == "__main__":
    sys.exit(run("frontier"))
