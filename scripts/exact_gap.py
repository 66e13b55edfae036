"""A door: see `agents.verification.exact_gap`."""

from agents.verification.exact_gap import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
