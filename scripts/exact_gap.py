"""A door: see `agents.verification.exact.gap`."""

from agents.verification.exact.gap import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
