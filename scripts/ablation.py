"""A door: see `scripts.benchmarks.text.ablation`."""

from scripts.benchmarks.text.ablation import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
