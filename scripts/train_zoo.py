"""A door: see `scripts.benchmarks.control.zoo_run`."""

from scripts.benchmarks.control.zoo_run import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
