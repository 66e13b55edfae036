"""A door: see `agents.verification.exact.kl_bias`."""

from agents.verification.exact.kl_bias import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
