"""A door: see `scripts.benchmarks.gpu.run`."""

from scripts.benchmarks.gpu.run import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
