"""The rows of a vector environment: tokens, lengths of prompts, and which rows are running."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from textenvs.tokens.rows import NO_TURN, PAD, Columns, Ids, Mask, split


class Finished(NamedTuple):
    """The K episodes that the last step ended, in order of their sub-environments."""

    indices: Ids  # [K] sub-environments
    prompts: Ids  # [K, P] right-padded with PAD
    completions: Ids  # [K, T] right-padded with PAD
    columns: Columns  # what their rows have beside the prompt, by name


class RowBuffer:
    """N = ``num_rows`` rows of up to L = ``width`` tokens, whose parts have up to P and T of them."""

    def __init__(self, num_rows: int, width: int, prompt_width: int, completion_width: int) -> None:
        self.prompt_width, self.completion_width = prompt_width, completion_width
        self.tokens = np.full((num_rows, width), PAD, dtype=np.int64)
        """``[N, L]`` right-padded with PAD."""
        self.turns = np.full((num_rows, width), NO_TURN, dtype=np.int64)
        """``[N, L]`` the turn in which the agent sampled each token; NO_TURN where it did not."""
        self.turn = np.zeros(num_rows, dtype=np.int64)
        """``[N]`` the agent's current turn, from 0 on."""
        self.lengths, self.prompt_lengths, self.numbers = np.zeros((3, num_rows), dtype=np.int64)
        """``[N]`` tokens in each row, and of its prompt, and that prompt's number among all."""
        self.ended, self.started = np.zeros((2, num_rows), dtype=np.bool_)

    @property
    def running(self) -> Mask:
        """``[N]`` True in rows that are started and not ended."""
        return self.started & ~self.ended

    def begin(self, indices: Ids, prompts: Ids, lengths: Ids, numbers: Ids) -> None:
        """Start an episode in rows ``indices`` with ``prompts [K, W]`` of ``lengths [K]`` and ``numbers [K]``."""
        self.tokens[indices], self.turns[indices] = PAD, NO_TURN
        self.tokens[indices, : prompts.shape[1]] = prompts
        self.lengths[indices] = self.prompt_lengths[indices] = lengths
        self.numbers[indices], self.ended[indices] = numbers, False
        self.turn[indices] = 0
        self.started[indices] = True

    def append(self, actions: Ids) -> None:
        """Append one token, which the agent sampled, to each running row."""
        rows = np.flatnonzero(self.running)
        self.tokens[rows, self.lengths[rows]] = actions[rows]
        self.turns[rows, self.lengths[rows]] = self.turn[rows]
        self.lengths[rows] += 1

    def write(self, index: int, tokens: Ids, turn: int = NO_TURN) -> None:
        """Append ``tokens [R]`` to row ``index``: the agent's of a ``turn``, or the environment's."""
        end = self.lengths[index] + len(tokens)
        self.tokens[index, self.lengths[index] : end] = tokens
        self.turns[index, self.lengths[index] : end] = turn
        self.lengths[index] = end

    def split(self, indices: Ids) -> tuple[Ids, Ids]:
        """Copies of rows: prompts ``[K, P]`` and completions so far ``[K, T]``, right-padded."""
        lengths = self.prompt_lengths[indices], self.lengths[indices]
        return split(self.tokens[indices], *lengths, self.prompt_width, self.completion_width)

    def check_actions(self, actions: ArrayLike, vocab_size: int, *, resets: bool) -> Ids:
        """Actions as int64 ``[N]``; raises what `TokenVectorEnv.step` raises. With ``resets`` ended rows are reset."""
        if not self.started.all():
            raise ResetNeeded("call reset() before the first step()")
        if not resets and self.ended.any():
            raise ResetNeeded(
                f"sub-environments {np.flatnonzero(self.ended).tolist()} have ended and autoreset is disabled; call "
                'reset(options={"reset_mask": terminated | truncated}) first'
            )
        array = np.asarray(actions)
        if array.shape != self.lengths.shape or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"actions: expected {len(self.lengths)} integers, received {array.dtype} {array.shape}")
        wrong = np.flatnonzero(self.running & ((array < 0) | (array >= vocab_size)))
        if wrong.size:
            raise ValueError(
                f"actions: expected token ids in [0, {vocab_size}), received {array[wrong[0]]} for sub-environment "
                f"{wrong[0]}"
            )
        return array.astype(np.int64)

    def check_reset_mask(self, mask: object) -> Mask:
        """The rows to reset ``[N]``; None selects all. Raises what `TokenVectorEnv.reset` raises."""
        if mask is None:
            return np.ones_like(self.started)
        if not isinstance(mask, np.ndarray) or mask.shape != self.started.shape or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask: expected a bool array of shape {self.started.shape}, received {mask!r}")
        if not mask.any():
            raise ValueError("reset_mask: expected at least one sub-environment, received none")
        if not (mask | self.started).all():
            never = np.flatnonzero(~(mask | self.started)).tolist()
            raise ValueError(f"reset_mask: expected it to include sub-environments {never}, which were never reset")
        return np.array(mask, dtype=np.bool_)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all arrays."""
        return {name: getattr(self, name).copy() for name in _ARRAYS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; raise ValueError for rows of another shape."""
        tokens = np.array(state["tokens"], dtype=np.int64)
        if tokens.shape != self.tokens.shape:
            raise ValueError(f"state: expected rows of shape {self.tokens.shape}, received {tokens.shape}")
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name], dtype=getattr(self, name).dtype))


_ARRAYS = ("tokens", "turns", "turn", "lengths", "prompt_lengths", "numbers", "ended", "started")
