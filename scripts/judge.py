"""A door: see `reward_models.evaluation.sentiment_judge`."""

from reward_models.evaluation.sentiment_judge import command_line

if __name__ == "__main__":
    raise SystemExit(command_line())
