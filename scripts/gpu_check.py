"""A door: see `scripts.benchmarks.gpu`."""

from scripts.benchmarks.gpu import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
