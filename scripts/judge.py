"""A door: see `reward_models.evaluation.sentiment_judge`."""

import sys

from reward_models.evaluation.sentiment_judge import command_line

if __name__ == "__main__":
    sys.exit(command_line())
