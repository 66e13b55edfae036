"""A door: see `scripts.benchmarks.text.memory`."""

from scripts.benchmarks.text.memory import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
