"""A door: see `agents.recipes.gguf`."""

from agents.recipes.gguf import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
