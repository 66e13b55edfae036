"""A door: see `scripts.mutation.run`."""

from scripts.mutation.run import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
