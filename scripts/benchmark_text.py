"""A door: see `scripts.benchmarks.text.compare`."""

from scripts.benchmarks.text.compare import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
