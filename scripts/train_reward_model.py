"""The same as ``textenvs train-reward-model``; see `agents.recipes.reward_model`."""

import sys

from agents.recipes.reward_model import command_line

if __name__ == "__main__":
    sys.exit(command_line())
