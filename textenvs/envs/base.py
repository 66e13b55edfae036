"""What all token environments share: rows that grow by one token a step, autoreset, and log-probs handed over.

An environment of this kind says how episodes begin (`_begin`) and what a step's tokens bring (`_judge`). Two paths give
the same tokens and rewards: the step path, `step`, for any agent, and the batch path, `draw_prompts` and `play`, for
one that generates whole rows.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from textenvs.envs.row_buffer import Finished, RowBuffer
from textenvs.tokens.end_tokens import EndOfText, as_eos_token_id
from textenvs.tokens.rows import PAD, Columns, Floats, Ids, Mask, TokenRows, check_logprobs
from textenvs.tokens.tokenizers import Tokenizer

NOBODY: Ids = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Judged:
    """What the actions of one step brought, an entry a sub-environment."""

    rewards: Floats
    terminated: Mask
    truncated: Mask
    reasons: NDArray[np.str_]  # stop reasons; "" where the episode goes on
    entries: dict[str, tuple[NDArray[Any], Mask]] = field(default_factory=dict)  # more of the info, with masks


class TokenVectorBase(VectorEnv[Ids, Ids, NDArray[Any]]):
    """The common part of `TokenVectorEnv` and `DialogueVectorEnv`, which describe the arguments."""

    max_new_tokens: int
    """Budget of what the agent writes at a time, tokens."""
    drawn_columns: Columns
    """Of the rows of the newest `draw_prompts`, beside the prompt."""

    def __init__(
        self,
        num_envs: int,
        *,
        tokenizer: Tokenizer | None,
        eos_token_id: EndOfText,
        vocab_size: int | None,
        widths: tuple[int, int, int],
        group_size: int,
        autoreset_mode: AutoresetMode | str,
        budget: str,
    ) -> None:
        vocab_size = vocabulary(vocab_size, tokenizer)
        check_whole(1, num_envs=num_envs, vocab_size=vocab_size)
        if budget not in ("terminate", "truncate"):
            raise ValueError(f'budget: expected "terminate" or "truncate", received {budget!r}')
        self.num_envs, self.budget = num_envs, budget
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.eos_token_id = as_eos_token_id(eos_token_id, vocab_size)
        modes = [mode.value for mode in AutoresetMode]
        if autoreset_mode not in modes and not isinstance(autoreset_mode, AutoresetMode):
            raise ValueError(f"autoreset_mode: expected one of {', '.join(modes)}, received {autoreset_mode!r}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = spaces.Box(PAD, vocab_size - 1, (widths[0],), np.int64)
        self.single_action_space = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = RowBuffer(num_envs, *widths)
        self.set_group_size(group_size)
        self.drawn_columns = ()
        self.handed_logprobs: Floats | None = None  # of `hand_logprobs`, for the next step
        self.finished = self._finished(NOBODY)

    @abstractmethod
    def _begin(self, indices: Ids) -> None:
        """Start an episode in each of the sub-environments `indices`."""

    @abstractmethod
    def _judge(self, actions: Ids, running: Mask) -> Judged:
        """What ``actions [N]`` bring, which were appended to the rows that are ``running [N]``."""

    def _row_info(self, mask: Mask | None = None) -> dict[str, Any]:
        """Masked entries of the info that are of the current rows, where ``mask [N]``; None: everywhere."""
        return {}

    @abstractmethod
    def _columns(self, indices: Ids) -> Columns:
        """What the rows ``indices`` have beside their prompt, for scorers."""

    @property
    @abstractmethod
    def column_names(self) -> list[str]:
        """What rows may have beside their prompt."""

    @property
    @abstractmethod
    def longest_row(self) -> tuple[int, str, str]:
        """Tokens of the longest row that may come; its place and what makes it that long, for messages."""

    @property
    def max_sampled_tokens(self) -> int:
        """Most tokens that the agent samples in an episode."""
        return self.max_new_tokens

    @abstractmethod
    def draw_prompts(self, *, seed: int | None = None) -> Ids:
        """Prompts ``[num_envs, P]``, right-padded: those of ``reset(seed=seed)``; running episodes do not change."""

    @abstractmethod
    def play(
        self, prompts: Ids, completions: Ids, logprobs: ArrayLike | None = None, *, columns: Columns = ()
    ) -> TokenRows:
        """Finished rows as if their completions had been stepped from their prompts, without a change of state."""

    def _seed(self, seed: int) -> None:
        """Seed the generator, and start again from the first episode."""
        super().reset(seed=seed)

    def set_group_size(self, group_size: int) -> None:
        """Begin `group_size` episodes in a row in the same way; before the first reset.

        Raises:
            ValueError: `num_envs` is no multiple of it, or episodes were begun already.
        """
        check_whole(1, group_size=group_size)
        if self.num_envs % group_size:
            raise ValueError(f"group_size: expected a divisor of num_envs {self.num_envs}, received {group_size!r}")
        if self._rows.started.any():
            raise ValueError(f"group_size: expected before the first reset, received {group_size} after it")
        self.group_size = group_size

    @property
    def tokens(self) -> Ids:
        """``[num_envs, L]`` the current rows, right-padded with PAD; read-only, the environment's own memory."""
        return self._rows.tokens

    @property
    def lengths(self) -> Ids:
        """``[num_envs]`` tokens in each row."""
        return self._rows.lengths

    @property
    def prompt_lengths(self) -> Ids:
        """``[num_envs]`` tokens of each row's prompt."""
        return self._rows.prompt_lengths

    @property
    def running(self) -> Mask:
        """``[num_envs]`` True where the next `step` uses its action (False: the sub-environment must be reset)."""
        return self._rows.running

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Ids, dict[str, Any]]:
        """Start episodes in all sub-environments, or where ``options["reset_mask"]`` (bool ``[num_envs]``) is True.

        A `seed` starts again from the first episode.

        Raises:
            ValueError: a mask of another shape or type, without a True, or False for a sub-environment that was never
                reset.
        """
        mask = self._rows.check_reset_mask((options or {}).get("reset_mask"))
        if seed is not None:
            self._seed(seed)
        self.handed_logprobs = None
        self._begin(np.flatnonzero(mask))
        self.finished = self._finished(NOBODY)
        infos = {"stop_reason": np.full(self.num_envs, "", dtype="<U10"), "_stop_reason": mask}
        return self.tokens.copy(), self._row_info(mask) | infos

    def step(self, actions: Ids) -> tuple[Ids, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Append one token to every running row; the class describes the results.

        ``actions [num_envs]`` are integers in ``[0, V)``, ignored where mode NEXT_STEP resets a sub-environment.

        Raises:
            ValueError: actions of another shape, type or range.
            gymnasium.error.ResetNeeded: before the first reset, or in mode DISABLED after an end.
        """
        actions = self.check_actions(actions)
        self.handed_logprobs = None
        running = self.running
        self._rows.append(actions)
        self._begin(np.flatnonzero(~running))  # mode NEXT_STEP

        judged = self._judge(actions, running)
        ended = self._rows.ended = judged.terminated | judged.truncated
        indices = np.flatnonzero(ended)
        self.finished = self._finished(indices)
        infos: dict[str, Any] = {"stop_reason": judged.reasons, "_stop_reason": np.ones(self.num_envs, dtype=np.bool_)}
        for name, (values, mask) in judged.entries.items():
            infos |= {name: values, f"_{name}": mask}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and indices.size:
            infos |= self._final(indices, ended, infos)
            self._begin(indices)
        infos = self._row_info() | infos
        return self.tokens.copy(), judged.rewards, judged.terminated, judged.truncated, infos

    def split_rows(self, indices: Ids) -> tuple[Ids, Ids]:
        """Copies of the rows `indices`: prompts ``[K, P]`` and completions so far ``[K, T]``, right-padded."""
        return self._rows.split(indices)

    def check_actions(self, actions: ArrayLike) -> Ids:
        """Actions as int64 ``[num_envs]``; raises what `step` raises, without a change of state."""
        resets = self.autoreset_mode is not AutoresetMode.DISABLED
        return self._rows.check_actions(actions, self.vocab_size, resets=resets)

    def hand_logprobs(self, logprobs: ArrayLike) -> None:
        """Pass the acting agent's log-probs ``[num_envs]``, nats, of the next `step`'s actions to `KLShaping`.

        They hold for one step. Through other wrappers: ``envs.unwrapped.hand_logprobs(...)``.

        Raises:
            ValueError: another shape, or NaN or a positive number for a running sub-environment.
        """
        array = np.asarray(logprobs, dtype=np.float32)
        if array.shape != (self.num_envs,):
            raise ValueError(f"logprobs: expected shape ({self.num_envs},), received {array.shape}")
        check_logprobs(array[self.running], "logprobs")
        self.handed_logprobs = array

    def state_dict(self) -> dict[str, Any]:
        """The environment's whole changing state, of JSON types and numpy arrays."""
        return {**self._rows.state_dict(), "generator": self.np_random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state belongs to an environment of another kind or shape.
        """
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise ValueError(f"state: expected the keys {missing}, received none of them")
        self._rows.load_state_dict(state)
        self.np_random.bit_generator.state = state["generator"]
        self.handed_logprobs = None

    def _finished(self, indices: Ids) -> Finished:
        return Finished(indices, *self.split_rows(indices), self._columns(indices))

    def _final(self, indices: Ids, ended: Mask, infos: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's info entries of episodes that ended and are reset in the same step."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for index in indices:
            final_obs[index] = self.tokens[index].copy()
        names = [name for name in infos if not name.startswith("_")]
        final_info = {name: infos[name].copy() for name in names} | {
            f"_{name}": infos[f"_{name}"] & ended for name in names
        }
        finals = {"final_obs": final_obs, "final_info": self._row_info(ended) | final_info}
        return finals | {f"_{name}": ended.copy() for name in finals}


def check_whole(least: int, **given: object) -> None:
    """Raise ValueError unless each of ``given`` is a whole number of ``least`` or more."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}: expected a whole number of {least} or more, received {value!r}")


def vocabulary(vocab_size: int | None, tokenizer: Tokenizer | None) -> int:
    """V, or the tokenizer's length; raise ValueError without either."""
    if vocab_size is not None:
        return vocab_size
    if tokenizer is None:
        raise ValueError(
            "tokenizer: expected one, a reference that brings it, or vocab_size for bare ids; received none"
        )
    return len(tokenizer)


def as_acted(logprobs: ArrayLike | None, completions: Ids, mask: Mask) -> Floats | None:
    """The agent's log-probs ``[N, T]``, 0 outside of ``mask``; raise ValueError unless they are log-probs."""
    if logprobs is None:
        return None
    acted = np.asarray(logprobs)
    if acted.shape != completions.shape:
        raise ValueError(f"logprobs: expected shape {completions.shape}, received {acted.shape}")
    acted = np.where(mask, acted, 0).astype(np.float32)
    check_logprobs(acted, "logprobs")
    return acted
