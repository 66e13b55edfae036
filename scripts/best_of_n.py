"""The same as ``textenvs best-of-n``; see `agents.cli`."""

from agents.cli import run

if __name__ == "__main__":
    raise SystemExit(run("best-of-n"))
