"""Guess a number from 1 to 16: a small GPT-2 that has seen random play learns to halve what is left.

    textenvs guess --algorithm ppo --credit turn --seed 0

Halving wins after 3.375 guesses on average. The model is taught the form of a game by supervised learning on random
play (every number equally likely at every turn), answers of the game included, so that it learns what they say about
the number; and then trained on the game itself, where each wrong guess costs 0.1 and each bit that a guess tells on
average is worth 0.25, which leaves the best play as it is. A game that is not won in 16 guesses counts as 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.ranges import check_values
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class GameConfig:
    """Learn a game."""

    games: int
    """Played in training."""
    seed: int = 0
    """Seed of weights, games and minibatches."""
    run_dir: str | None = None
    """Folder for config.json and summary.json. None: nothing is written."""
    overwrite: bool = False
    """Throw away a finished run in that folder."""

    def __post_init__(self) -> None:
        check_values(self, {">= 1": "games", ">= 0": "seed"})


@dataclass(frozen=True, kw_only=True)
class GuessConfig(GameConfig):
    """Learn to guess a number."""

    algorithm: Literal["ppo", "grpo"] = "ppo"
    """What trains."""
    credit: Literal["token", "turn", "state"] = "turn"
    """Of an action: see ``TextAgentConfig``."""
    games: int = 49_152
    """Played in training."""


command_line = command(GuessConfig, "agents.recipes.games.guess:main", __doc__)
