"""A door: see `scripts.benchmarks.text.arena`."""

from scripts.benchmarks.text.arena import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
