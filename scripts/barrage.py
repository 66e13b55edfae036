"""A door: see `scripts.malformed.run`."""

from scripts.malformed.run import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
