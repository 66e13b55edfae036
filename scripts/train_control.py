"""The same as ``textenvs train-control``; see `agents.cli`."""

from agents.cli import run

if __name__ == "__main__":
    raise SystemExit(run("train-control"))
