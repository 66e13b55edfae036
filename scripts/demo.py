"""The same as ``textenvs demo``; see `agents.cli`."""

from agents.cli import run

if __name__ == "__main__":
    raise SystemExit(run("demo"))
