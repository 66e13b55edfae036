"""A door: see `scripts.benchmarks.text.guess`."""

from scripts.benchmarks.text.guess import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
