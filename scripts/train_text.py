"""The same as ``textenvs train-text``; see `agents.cli`."""

from agents.cli import run

if __name__ == "__main__":
    raise SystemExit(run("train-text"))
