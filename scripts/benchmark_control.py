"""A door: see `scripts.benchmarks.control.compare`."""

from scripts.benchmarks.control.compare import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
