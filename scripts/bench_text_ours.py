"""A door: see `scripts.benchmarks.text.ours`."""

from scripts.benchmarks.text.ours import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
