"""N dialogues under way: rows that agent and environments write in turn, with what each turn was paid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenvs.dialogues.bridge import Bridge
from textenvs.dialogues.processes import Environments
from textenvs.dialogues.sub_environments import DialogueError, Reply
from textenvs.envs.base import NOBODY
from textenvs.envs.row_buffer import RowBuffer
from textenvs.tokens.chats import Turn
from textenvs.tokens.rows import LENGTH, TERMINATED, TRUNCATED, TURNS, Floats, Ids, pad_rows


@dataclass(frozen=True)
class Limits:
    """Bounds of a dialogue."""

    max_turns: int
    """The agent's turns."""
    max_turn_tokens: int
    """Tokens that the agent samples in a turn."""
    max_tokens: int
    """Tokens of a whole row, first observation included."""
    truncates: bool
    """Reaching the limit of turns or of a row's tokens truncates the episode instead of terminating it."""


@dataclass(frozen=True)
class Answer:
    """What a turn brought."""

    tokens: Ids
    """``[R]`` that the environment writes behind it."""
    reward: float
    """Of the turn, reward units."""
    reason: str
    """Why the dialogue ended; "" if it goes on."""
    truncated: bool
    info: dict[str, Any]
    """The environment's own."""


class Conversations:
    """Dialogues in the rows of a `RowBuffer`, each with a sub-environment."""

    def __init__(self, envs: Environments, bridge: Bridge, limits: Limits, rows: RowBuffer) -> None:
        self.envs, self.bridge, self.limits, self.rows = envs, bridge, limits, rows
        self.rewards: Floats = np.zeros(rows.tokens.shape, dtype=np.float32)
        """``[N, L]`` reward units, at the last token of each turn."""
        self.reasons: NDArray[np.str_] = np.full(len(rows.tokens), "", dtype="<U10")
        """``[N]`` why each ended."""
        self.truncated = np.zeros(len(rows.tokens), dtype=np.bool_)
        """``[N]`` by a time limit."""
        self.states: Ids = np.zeros(rows.tokens.shape, dtype=np.int64)
        """``[N, L]`` names the state in which each token's turn began: ``info["state"]``, or the row so far."""
        self._state = np.zeros(len(rows.tokens), dtype=np.int64)
        self.messages: list[list[Turn]] = [[] for _ in rows.tokens]
        """Of each, what was written so far, as turns of a chat."""

    def begin(self, indices: Ids, seeds: Sequence[int], numbers: Ids) -> None:
        """Start episodes of ``numbers [K]`` in rows ``indices [K]``.

        Raises:
            DialogueError: a sub-environment fails, or what it writes is no text or too long.
        """
        prompts = []
        for index, (observation, info) in zip(indices.tolist(), self.envs.reset(indices.tolist(), seeds), strict=True):
            told = {name: info[name] for name in ("tools", "system") if name in info}
            prompts.append(self._tokens(index, partial(self.bridge.first, observation, **told)))
            if len(prompts[-1]) >= self.limits.max_tokens:
                raise DialogueError(
                    f"{self.envs.place(index)}: expected a first observation of fewer than max_tokens "
                    f"{self.limits.max_tokens} tokens, received one of {len(prompts[-1])}"
                )
            self.messages[index] = self.bridge.turns(observation)
            self._state[index] = _named(info.get("state", prompts[-1].tolist()))
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self.rows.begin(indices, pad_rows(prompts), lengths, numbers)
        self.rewards[indices], self.reasons[indices] = 0.0, ""

    def answer(self, indices: Ids) -> list[Answer]:
        """Let the environments of rows ``indices [K]`` answer their current turns, which have just ended."""
        rows = self.rows
        said = [rows.tokens[i, : rows.lengths[i]][rows.turns[i, : rows.lengths[i]] == rows.turn[i]] for i in indices]
        actions = [self.bridge.action(tokens) for tokens in said]
        replies = self.envs.step(indices.tolist(), actions)
        answers = []
        for index, tokens, action, reply in zip(indices.tolist(), said, actions, replies, strict=True):
            last_turn = rows.turn[index] + 1 >= self.limits.max_turns
            reason = TERMINATED if reply.terminated else TRUNCATED if reply.truncated else TURNS if last_turn else ""
            truncated = reply.truncated or (self.limits.truncates and reason == TURNS)
            written = self._written(index, tokens, reply, last=bool(reason))
            room = self.limits.max_tokens - int(rows.lengths[index])
            if not reason and len(written) >= room:  # no token of a next turn would fit
                reason, truncated = LENGTH, self.limits.truncates
            written = written[:room]
            self.rewards[index, rows.lengths[index] - 1] = reply.reward
            self.states[index, rows.lengths[index] - len(tokens) : rows.lengths[index]] = self._state[index]
            rows.write(index, written)
            self._state[index] = _named(reply.info.get("state", rows.tokens[index, : rows.lengths[index]].tolist()))
            rows.turn[index] += 1
            rows.ended[index], self.reasons[index], self.truncated[index] = bool(reason), reason, truncated
            if isinstance(action, str):
                self.messages[index] += [{"role": "assistant", "content": action}]
                self.messages[index] += self.bridge.turns(reply.observation) if reply.observation else []
            answers.append(Answer(written, reply.reward, reason, truncated, reply.info))
        return answers

    def replay(self, seeds: Sequence[int]) -> None:
        """Play rows that are under way again, from their ``seeds [N]``, and compare.

        Raises:
            ValueError: the environments write something else than the rows have.
        """
        rows = self.rows
        running, before = np.flatnonzero(rows.running), rows.state_dict()
        if not running.size:
            return
        self.begin(running, [seeds[index] for index in running.tolist()], rows.numbers[running])
        for index in running.tolist():
            was, turns = before["tokens"][index], before["turns"][index]
            for turn in range(int(before["turn"][index]) + 1):
                said = was[turns == turn]
                if len(said):
                    rows.write(index, said, turn)
                if turn < before["turn"][index]:
                    self.answer(np.array([index]))
            if not np.array_equal(rows.tokens[index], was):
                raise ValueError(
                    f"{self.envs.place(index)}: expected what it wrote before from the same seed and turns, received "
                    "something else: it cannot be resumed within a dialogue"
                )

    def _written(self, index: int, said: Ids, reply: Reply, *, last: bool) -> Ids:
        """What the environment writes behind ``said``; at the end of a dialogue it may write nothing."""
        if last and not reply.observation:
            return NOBODY
        write = partial(self.bridge.between, said, reply.observation, answering=not reply.terminated)
        return self._tokens(index, write)

    def _tokens(self, index: int, write: Callable[[], Ids]) -> Ids:
        try:
            return write()
        except ValueError as fault:
            raise DialogueError(f"{self.envs.place(index)}: {fault}") from fault


def _named(state: object) -> int:
    """A number for a state, the same wherever the state is written in the same way."""
    return int.from_bytes(blake2b(repr(state).encode(), digest_size=8).digest(), "big", signed=True)
