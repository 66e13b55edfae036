"""A door: see `scripts.benchmarks.memory`."""

from scripts.benchmarks.memory import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
