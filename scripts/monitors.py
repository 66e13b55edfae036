"""A door: see `agents.verification.monitors.errors`."""

from agents.verification.monitors.errors import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
