"""A door: see `agents.verification.monitor_errors`."""

from agents.verification.monitor_errors import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
