"""The same as ``textenvs train-reward-model``; see `agents.cli`."""

from agents.cli import run

if __name__ == "__main__":
    raise SystemExit(run("train-reward-model"))
