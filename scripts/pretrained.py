"""A door: see `agents.recipes.gguf`."""

import sys

from agents.recipes.gguf import command_line

if __name__ == "__main__":
    sys.exit(command_line())
