"""``textenvs/TextArena-v0``: TextArena's games for one or two players, each with random numbers of its own."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import gymnasium as gym

from textenvs.envs.base import TokenVectorBase
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.factories import dialogue_vec, scalar
from textenvs.tasks.extras import OwnRandomness, as_settings, check_name, load, refuse_own
from textenvs.tokens.chats import Turn
from textenvs.tokens.row_files import at

Opponent = Callable[[list[Turn]], str]
"""Plays the other side: it gets its dialogue so far, the newest observation last, and returns its turn's text."""
LISTED = re.compile(r"(?i)\b(?:available|valid|legal) moves\b[^:\n]*:((?:[ ,'|]*\[[^\]\n]*\])*)")


def random_legal(turns: list[Turn]) -> str:
    """A random one of the moves that the newest observation lists; as an `Opponent` it follows the game's seed.

    Raises:
        ValueError: it lists none.
    """
    moves = legal_moves(turns[-1]["content"])
    if not moves:
        raise ValueError(f"opponent: expected a game that lists legal moves, received {turns[-1]['content'][-200:]!r}")
    return random.choice(moves)


def legal_moves(text: str) -> list[str]:
    """The bracketed moves behind the last "available moves:", "valid moves:" or "legal moves:" of a text."""
    listed = LISTED.findall(text)
    return re.findall(r"\[[^\]]*\]", listed[-1]) if listed else []


OPPONENTS: dict[str, Opponent] = {"random": random_legal}


class TextArenaGame(gym.Env[str, str]):
    """A game of TextArena for one player, or for two with an opponent that is part of the environment.

    | Observation | the rules, then what the game has written since the last turn; not the player's own words. Of  |
    |             | several boards in a game for two, which come one after each move, the newest                |
    | Action      | a turn's text; for most games a move in brackets, or the bare move                          |
    | Reward      | 0, and the game's own at its end: for one mostly 1 for a win and the share that was solved   |
    |             | else, for two 1, 0 or -1; an invalid move too many loses                                    |
    | Termination | the game is over; its limit of turns, and one invalid move too many, are part of it          |
    | Truncation  | never                                                                                      |
    | Info        | at the end the game's own: reason, invalid_move, turn_count, role                           |

    The games draw from Python's and numpy's global generators. Here each has a state of its own, from the seed of
    `reset`, which is put in place for a call and back after it. What they print is dropped. An opponent is called
    within it: one that draws from those generators follows the seed, too.

    Args:
        task: its id there, "GuessTheNumber-v0" for instance; without "-raw" and "-train", which only change how the
            history is shown.
        settings: arguments of the game, over those of the id.
        opponent: plays the other side of a game for two: "random", a legal move where the game lists them, or a
            function; None: a game for one.
        player: 0, who mostly begins, or 1; None: drawn from the seed.

    Raises:
        ImportError: TextArena is not installed.
        ValueError: an unknown id or opponent, with the nearest; a game that cannot be made, or one for another number
            of players.
    """

    def __init__(
        self,
        task: str,
        settings: Mapping[str, Any] | None = None,
        *,
        opponent: Opponent | str | None = None,
        player: int | None = None,
    ) -> None:
        if isinstance(opponent, str):
            check_name("opponent", opponent, OPPONENTS)
            opponent = OPPONENTS[opponent]
        if player not in (None, 0, 1) or (opponent is None and player is not None):
            raise ValueError(f"player: expected 0, 1 or None, and None without an opponent, received {player!r}")
        self._opponent, self._side, self._player = opponent, player, 0
        self._arena = load("textarena", "textarena")
        self._random = OwnRandomness(0)
        known = self._arena.envs.registration.ENV_REGISTRY
        check_name("task", task, {name for name in known if "-raw" not in name and "-train" not in name})
        with at(f"task {task}"), self._random.active(), redirect_stdout(StringIO()):
            self._env = self._game = self._arena.make(task, **as_settings("settings", settings))
        while isinstance(self._game, self._arena.Wrapper):  # which repeat the history in every observation
            self._game = self._game.env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a game, up to the player's first turn.

        Raises:
            ValueError: it is for another number of players, or over before the player's turn.
        """
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._random = OwnRandomness(seed)
        self._turns: list[Turn] = []
        number, name = (1, "SinglePlayerState") if self._opponent is None else (2, "TwoPlayerState")
        if self._opponent is not None:
            self._player = int(self.np_random.integers(2)) if self._side is None else self._side
        with self._random.active(), redirect_stdout(StringIO()):
            self._env.reset(num_players=number, seed=seed)
            if not isinstance(self._game.state, getattr(self._arena, name)):
                players = ("one player", "two players")[number - 1]
                raise ValueError(f"expected a game for {players}, received {type(self._game).__name__}")
            if self._others_move(False, {})[0]:
                raise ValueError(f"opponent: expected moves up to the player's turn, received {self._env.close()[1]}")
            return self._news(self._player), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make a move, and let the opponent answer it."""
        with self._random.active(), redirect_stdout(StringIO()):
            done, info = self._others_move(*self._env.step(action=action))
            news = self._news(self._player)
            rewards, details = self._env.close() if done else ({self._player: 0.0}, {self._player: info})
        reward, about = rewards[self._player], dict(details[self._player])
        if isinstance(reward, str):  # four games mix up an invalid move's reward and reason: "Invalid Move: 0.25"
            reward, about["reason"] = about["reason"].rpartition(" ")[2], reward
        return news, float(reward), bool(done), False, about

    def _others_move(self, done: bool, info: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Let the opponent move until it is the player's turn or the game is over; what `step` of the game returned."""
        while self._opponent is not None and not done and self._game.state.current_player_id != self._player:
            self._turns.append({"role": "user", "content": self._news(1 - self._player)})
            said = self._opponent([*self._turns])
            if not isinstance(said, str):
                raise ValueError(f"opponent: expected the text of its turn, received {said!r:.200}")
            self._turns.append({"role": "assistant", "content": said})
            done, info = self._env.step(action=said)
        return done, info

    def _news(self, player: int) -> str:
        """What was written to a player since this was asked last."""
        state, kinds = self._game.state, self._arena.ObservationType
        if state.current_player_id == player:
            found = self._game.get_observation()[1]
        else:  # the game has ended in the other one's turn
            found, state.observations[player] = state.observations[player], []
        # Some games mix up the fields of the player's words.
        found = [each for each in found if isinstance(each[1], str) and each[2] is not kinds.PLAYER_ACTION]
        if self._opponent is not None:
            older = [place for place, each in enumerate(found) if each[2] is kinds.GAME_BOARD][:-1]
            found = [each for place, each in enumerate(found) if place not in older]
        return "\n".join(text for _, text, _ in found)


def text_arena_vec(
    num_envs: int = 1,
    *,
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
    opponent: Opponent | str | None = None,
    player: int | None = None,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/TextArena-v0", task=..., ...)``: dialogues with a game of TextArena.

    Arguments are those of `TextArenaGame` and, as ``options``, of `textenvs.factories.dialogue_vec`; so are errors.
    """
    if task is None:
        raise ValueError("task: expected the id of a game of TextArena, received none")
    refuse_own(options, "env")
    make = partial(TextArenaGame, task, settings, opponent=opponent, player=player)
    game = make()
    with at(f"task {task}"):
        game.reset(seed=0)
    return dialogue_vec(num_envs, env=make, **options)


text_arena = partial(scalar, text_arena_vec)
"""``gym.make("textenvs/TextArena-v0", ...)``."""
