"""A door: see `agents.verification.proof.kills`."""

from agents.verification.proof.kills import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
