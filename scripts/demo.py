"""The same as ``textenvs demo``; see `agents.cli`."""

import sys

from agents.cli import run

if __name__ == "__main__":
    sys.exit(run("demo"))
