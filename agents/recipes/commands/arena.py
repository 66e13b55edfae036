"""A game of TextArena: a small GPT-2 that has seen random play learns to win.

    textenvs arena --seed 0
    textenvs arena --task GuessTheNumber-v0 --opponent None --moves 1 2 3 4 5 --settings '{"max_number": 5}'

Any game will do whose moves are a word each and which lists them, or lets none be said twice. The model's words are
those that random games write; it is taught the form of the game on random moves, and then trained by PPO with credit by
turn on the game's own reward. Measured over 512 games: the mean reward and the share of games won, of random moves, of
the model as taught, and of the trained one.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.recipes.commands.guess import GameConfig
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class ArenaConfig(GameConfig):
    """Learn a game of TextArena."""

    task: str = "TicTacToe-v0"
    """Id of the game."""
    settings: str = "{}"
    """Arguments of the game, a JSON object."""
    moves: tuple[str, ...] = ()
    """Of a game that lists none."""
    opponent: str | None = "random"
    """That it is played against. None: a game for one."""
    games: int = 6_144
    """Played in training."""


command_line = command(ArenaConfig, "agents.recipes.games.arena:main", __doc__)
