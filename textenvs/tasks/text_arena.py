"""``textenvs/TextArena-v0``: TextArena's games for one player as dialogues, each with random numbers of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import gymnasium as gym

from textenvs.envs.base import TokenVectorBase
from textenvs.envs.scalar import TokenEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.factories import dialogue_vec, scalar
from textenvs.tasks.extras import OwnRandomness, check_name, load
from textenvs.tokens.row_files import at


class TextArenaGame(gym.Env[str, str]):
    """A game of TextArena for one player.

    | Observation | the rules, then what the game has written since the last turn; not the player's own words    |
    | Action      | a turn's text; for most games a move in brackets, or the bare move                          |
    | Reward      | 0, and the game's own at its end: mostly 1 for a win and the share that was solved else     |
    | Termination | the game is over; its limit of turns, and one invalid move too many, are part of it          |
    | Truncation  | never                                                                                      |
    | Info        | at the end the game's own: reason, invalid_move, turn_count, role                           |

    The games draw from Python's and numpy's global generators. Here each has a state of its own, from the seed of
    `reset`, which is put in place for a call and back after it. What they print is dropped.

    Args:
        task: its id there, "GuessTheNumber-v0" for instance; without "-raw" and "-train", which only change how the
            history is shown.
        settings: arguments of the game, over those of the id.

    Raises:
        ImportError: TextArena is not installed.
        ValueError: an unknown id, with the nearest; a game that cannot be made, or one for several players.
    """

    def __init__(self, task: str, settings: Mapping[str, Any] | None = None) -> None:
        self._arena = load("textarena", "textarena")
        self._random = OwnRandomness(0)
        known = self._arena.envs.registration.ENV_REGISTRY
        check_name("task", task, {name for name in known if "-raw" not in name and "-train" not in name})
        with at(f"task {task}"), self._random.active(), redirect_stdout(StringIO()):
            self._env = self._game = self._arena.make(task, **(settings or {}))
        while isinstance(self._game, self._arena.Wrapper):  # which repeat the history in every observation
            self._game = self._game.env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a game.

        Raises:
            ValueError: it is for several players.
        """
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._random = OwnRandomness(seed)
        with self._random.active(), redirect_stdout(StringIO()):
            self._env.reset(num_players=1, seed=seed)
            if not isinstance(self._game.state, self._arena.SinglePlayerState):
                raise ValueError(f"expected a game for one player, received {type(self._game).__name__}")
            return self._news(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make a move."""
        with self._random.active(), redirect_stdout(StringIO()):
            done, info = self._env.step(action=action)
            news = self._news()
            rewards, details = self._env.close() if done else ({0: 0.0}, {0: info})
        reward, about = rewards[0], dict(details[0])
        if isinstance(reward, str):  # four games mix up an invalid move's reward and reason: "Invalid Move: 0.25"
            reward, about["reason"] = about["reason"].rpartition(" ")[2], reward
        return news, float(reward), bool(done), False, about

    def _news(self) -> str:
        own = self._arena.ObservationType.PLAYER_ACTION
        found = self._game.get_observation()[1]  # some games mix up the fields of the player's words
        return "\n".join(text for _, text, kind in found if isinstance(text, str) and kind is not own)


def text_arena_vec(
    num_envs: int = 1, *, task: str | None = None, settings: Mapping[str, Any] | None = None, **options: Any
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/TextArena-v0", task=..., ...)``: dialogues with a game of TextArena.

    Args:
        num_envs: sub-environments.
        task, settings: see `TextArenaGame`.
        **options: of `textenvs.factories.dialogue_vec`.

    Raises:
        ImportError, ValueError: as `TextArenaGame` and `dialogue_vec`.
    """
    if task is None:
        raise ValueError("task: expected the id of a game of TextArena, received none")
    game = TextArenaGame(task, settings)
    with at(f"task {task}"):
        game.reset(seed=0)
    return dialogue_vec(num_envs, env=partial(TextArenaGame, task, settings), **options)


def text_arena(**options: Any) -> TokenEnv:
    """``gym.make("textenvs/TextArena-v0", ...)``: `text_arena_vec` as one scalar environment."""
    return scalar(text_arena_vec, **options)
