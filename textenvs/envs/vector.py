"""Text generation as a native Gymnasium vector environment. No model, no reward: wrappers add those.

Two roads lead through an episode and give the same tokens and rewards. `step` takes one token of every sub-environment
and works with any agent. `draw_prompts` and `play` are the fast road: the agent writes whole rows and hands them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textenvs.tokens.checks import check_completions, check_logprobs
from textenvs.tokens.prompts import Prompts, PromptSampler, PromptSource, load_prompts
from textenvs.tokens.rows import EOS, LENGTH, PAD, TokenRows, split
from textenvs.tokens.tokenizers import Tokenizer

_EVERYTHING_STATE = ("tokens", "lengths", "prompt_lengths", "ended", "started", "sampler", "generator", "prompts")


@dataclass(frozen=True)
class Finished:
    """The episodes that the last step ended, in order of their sub-environments; K of them."""

    indices: NDArray[np.int64]
    """``[K]`` sub-environments."""
    prompts: NDArray[np.int64]
    """``[K, P]`` right-padded with PAD."""
    completions: NDArray[np.int64]
    """``[K, T]`` right-padded with PAD."""


class TokenVectorEnv(VectorEnv[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]):
    """`num_envs` texts that grow by one token a step, each from a prompt until its end.

    | Observation | Box(-1, V-1, (L,), int64): prompt and tokens so far, right-padded with PAD = -1; L = P + T         |
    | Action      | Discrete(V): the next token id                                                                   |
    | Reward      | 0; wrappers add the preference score (`PreferenceReward`) and the KL price (`KLShaping`)         |
    | Termination | the action is eos_token_id, or max_new_tokens were produced (the budget is part of the task)     |
    | Truncation  | never; with budget="truncate" a used-up budget truncates instead of terminating                  |
    | Info        | stop_reason[i] in {"", "eos", "length"}, of the action just taken, in every autoreset mode       |
    | Autoreset   | SAME_STEP (default; final_obs and final_info as in SyncVectorEnv), NEXT_STEP or DISABLED         |

    P is the longest prompt's length (or `max_prompt_tokens`), T is `max_new_tokens`, V is `vocab_size`.

    Args:
        num_envs: sub-environments.
        prompts: see `textenvs.tokens.prompts.load_prompts`.
        tokenizer: of prompts that are text, and of wrappers that want text; None for an environment of bare ids.
        eos_token_id: the action that ends an episode; None if only the budget does.
        vocab_size: V; the tokenizer's length when None.
        max_new_tokens: T, tokens.
        max_prompt_tokens: P, tokens; a longer prompt is refused. The longest prompt's length when None.
        shuffle: whether prompts are drawn in an order shuffled each epoch by the environment's own generator.
        group_size: how often each prompt is drawn in a row: a reset of all sub-environments gives blocks of that many
            with the same prompt. `num_envs` is a multiple of it.
        autoreset_mode: an `AutoresetMode` or its value ("SameStep", "NextStep", "Disabled").
        budget: "terminate", or "truncate" to make the budget a time limit.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        prompts: PromptSource,
        tokenizer: Tokenizer | None = None,
        eos_token_id: int | None,
        vocab_size: int | None = None,
        max_new_tokens: int,
        max_prompt_tokens: int | None = None,
        shuffle: bool = True,
        group_size: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        budget: str = "terminate",
    ) -> None:
        if vocab_size is None:
            if tokenizer is None:
                raise ValueError("vocab_size: needed when there is no tokenizer")
            vocab_size = len(tokenizer)
        for name, value in {"num_envs": num_envs, "vocab_size": vocab_size, "max_new_tokens": max_new_tokens}.items():
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, received {value!r}")
        if eos_token_id is not None and not 0 <= eos_token_id < vocab_size:
            raise ValueError(f"eos_token_id: {eos_token_id!r} is outside the vocabulary [0, {vocab_size})")
        if budget not in ("terminate", "truncate"):
            raise ValueError(f'budget: expected "terminate" or "truncate", received {budget!r}')
        self.num_envs = num_envs
        self.tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.vocab_size = vocab_size
        self.max_new_tokens = max_new_tokens
        self.prompts: Prompts = load_prompts(prompts, tokenizer, vocab_size=vocab_size, max_tokens=max_prompt_tokens)
        self.max_prompt_tokens = max_prompt_tokens or self.prompts.tokens.shape[1]
        self.budget = budget
        self._shuffle = shuffle
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}

        width = self.max_prompt_tokens + max_new_tokens
        self.single_observation_space = spaces.Box(PAD, vocab_size - 1, (width,), np.int64)
        self.single_action_space = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._tokens = np.full((num_envs, width), PAD, dtype=np.int64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._prompt_lengths = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._started = np.zeros(num_envs, dtype=np.bool_)
        self.set_group_size(group_size)
        self._handed: NDArray[np.float32] | None = None
        self.finished = self._finished(np.zeros(0, dtype=np.int64))

    def set_group_size(self, group_size: int) -> None:
        """Draw each prompt `group_size` times in a row; before the first reset.

        Raises:
            ValueError: `num_envs` is no multiple of it, or prompts were drawn already.
        """
        if group_size < 1 or self.num_envs % group_size:
            raise ValueError(f"group_size: {self.num_envs} sub-environments cannot stand in groups of {group_size!r}")
        if self._started.any():
            raise ValueError(f"group_size: expected before the first reset, received {group_size} after it")
        self.group_size = group_size
        self._sampler = PromptSampler(len(self.prompts), shuffle=self._shuffle, repeats=group_size)

    # -- stepping ------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> NDArray[np.int64]:
        """``[num_envs, L]`` the rows as they stand, right-padded with PAD. Read only: the environment's own memory."""
        return self._tokens

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[num_envs]`` tokens in each row."""
        return self._lengths

    @property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """``[num_envs]`` tokens of each row that are its prompt."""
        return self._prompt_lengths

    @property
    def running(self) -> NDArray[np.bool_]:
        """``[num_envs]`` True where the next `step` takes its action (False: a reset is due first)."""
        return self._started & ~self._ended

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """New episodes, in all sub-environments or in those that ``options["reset_mask"]`` (bool ``[num_envs]``) names.

        A `seed` makes all that follows reproducible: it seeds the generator and opens a new epoch of prompts.

        Raises:
            ValueError: the mask is of another shape or type, selects nothing, or leaves out a sub-environment that was
                never reset.
        """
        mask = self._reset_mask((options or {}).get("reset_mask"))
        if seed is not None:
            self._seed(seed)
        self._handed = None
        self._begin(np.flatnonzero(mask))
        self.finished = self._finished(np.zeros(0, dtype=np.int64))
        return self._tokens.copy(), {
            "stop_reason": np.full(self.num_envs, "", dtype="<U6"),
            "_stop_reason": mask,
        }

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Appends one token to every running row; see the class for what comes back.

        Args:
            actions: ``[num_envs]`` integers in ``[0, V)``. In mode NEXT_STEP the action of a sub-environment that is
                reset by this step is ignored.

        Raises:
            ValueError: actions of another shape, type or range.
            gymnasium.error.ResetNeeded: before the first reset, or in mode DISABLED after an end.
        """
        actions = self.check_actions(actions)
        self._handed = None
        running = self.running
        rows = np.flatnonzero(running)
        self._begin(np.flatnonzero(~running))  # mode NEXT_STEP
        self._tokens[rows, self._lengths[rows]] = actions[rows]
        self._lengths[rows] += 1

        at_eos = running & (actions == self.eos_token_id) if self.eos_token_id is not None else np.zeros_like(running)
        at_budget = running & ~at_eos & (self._lengths - self._prompt_lengths >= self.max_new_tokens)
        ended = at_eos | at_budget
        truncated = at_budget if self.budget == "truncate" else np.zeros_like(running)
        terminated = ended & ~truncated

        indices = np.flatnonzero(ended)
        self.finished = self._finished(indices)
        reasons = np.where(at_eos, EOS, np.where(at_budget, LENGTH, "")).astype("<U6")
        infos: dict[str, Any] = {"stop_reason": reasons, "_stop_reason": np.ones(self.num_envs, dtype=np.bool_)}
        self._ended = ended
        if self.autoreset_mode is AutoresetMode.SAME_STEP and indices.size:
            infos |= self._final(indices, ended, reasons)
            self._begin(indices)
        return self._tokens.copy(), np.zeros(self.num_envs, dtype=np.float32), terminated, truncated, infos

    def split_rows(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Copies of the rows `indices`: prompts ``[K, P]`` and completions so far ``[K, T]``, right-padded."""
        return split(
            self._tokens[indices],
            self._prompt_lengths[indices],
            self._lengths[indices],
            self.max_prompt_tokens,
            self.max_new_tokens,
        )

    def check_actions(self, actions: Any) -> NDArray[np.int64]:
        """Actions as int64 ``[num_envs]``; raises what `step` raises, and changes nothing."""
        if not self._started.all():
            raise ResetNeeded("call reset() before the first step()")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeeded(
                f"sub-environments {np.flatnonzero(self._ended).tolist()} have ended and autoreset is disabled; call "
                'reset(options={"reset_mask": terminated | truncated}) first'
            )
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"actions: expected {self.num_envs} integers, received shape {array.shape} of type {array.dtype}"
            )
        wrong = np.flatnonzero(self.running & ((array < 0) | (array >= self.vocab_size)))
        if wrong.size:
            raise ValueError(
                f"actions: token id {array[wrong[0]]} of sub-environment {wrong[0]} is outside the vocabulary "
                f"[0, {self.vocab_size})"
            )
        return array.astype(np.int64)

    def hand_logprobs(self, logprobs: Any) -> None:
        """The acting agent's log-probs ``[num_envs]``, nats, of the actions it gives to the next `step`.

        `KLShaping` prices the step by them. They hold for one step. From outside of any wrappers:
        ``envs.unwrapped.hand_logprobs(...)``.

        Raises:
            ValueError: another shape, or NaN or a positive number for a running sub-environment.
        """
        array = np.asarray(logprobs, dtype=np.float32)
        if array.shape != (self.num_envs,):
            raise ValueError(f"logprobs: expected shape ({self.num_envs},), received {array.shape}")
        check_logprobs(array[self.running], "logprobs")
        self._handed = array

    @property
    def handed_logprobs(self) -> NDArray[np.float32] | None:
        """What `hand_logprobs` brought for the next step, or None."""
        return self._handed

    # -- the fast road -------------------------------------------------------------------------------------------------

    def draw_prompts(self, *, seed: int | None = None) -> NDArray[np.int64]:
        """Prompts ``[num_envs, P]``, right-padded: those that ``reset(seed=seed)`` would begin with.

        The prompt sampler moves on as by that reset; the episodes in progress are not touched.
        """
        if seed is not None:
            self._seed(seed)
        drawn = self.prompts.tokens[self._sampler.draw(self.num_envs, self.np_random)]
        return np.pad(drawn, ((0, 0), (0, self.max_prompt_tokens - drawn.shape[1])), constant_values=PAD)

    def play(
        self, prompts: NDArray[np.int64], completions: NDArray[np.int64], logprobs: NDArray[Any] | None = None
    ) -> TokenRows:
        """Finished rows as if their completions had been stepped from their prompts. Touches no state.

        Args:
            prompts: ``[N, P']`` right-padded with PAD; N is free.
            completions: ``[N, T']`` right-padded with PAD, T' up to `max_new_tokens`; each row ends with
                `eos_token_id` or has `max_new_tokens` tokens.
            logprobs: ``[N, T']`` nats, of the agent that acted; padding may hold anything.

        Raises:
            ValueError: rows that no episode could have produced; the message names the first.
        """
        prompts, completions = np.asarray(prompts, dtype=np.int64), np.asarray(completions, dtype=np.int64)
        if prompts.ndim != 2 or completions.ndim != 2 or len(prompts) != len(completions):
            raise ValueError(
                f"prompts and completions: expected [N, P] and [N, T], received {prompts.shape} and {completions.shape}"
            )
        mask = completions != PAD
        at_eos = check_completions(completions, self.eos_token_id, self.vocab_size, self.max_new_tokens)
        rewards = np.zeros(completions.shape, dtype=np.float32)
        if logprobs is not None:
            logprobs = np.asarray(logprobs)
            if logprobs.shape != completions.shape:
                raise ValueError(f"logprobs: expected shape {completions.shape}, received {logprobs.shape}")
            logprobs = np.where(mask, logprobs, 0).astype(np.float32)
            check_logprobs(logprobs, "logprobs")
        truncated = ~at_eos if self.budget == "truncate" else np.zeros_like(at_eos)
        return TokenRows(
            prompts=prompts,
            completions=completions,
            rewards=rewards,
            terminated=~truncated,
            truncated=truncated,
            stop_reason=np.where(at_eos, EOS, LENGTH).astype("<U6"),
            logprobs=logprobs,
        )

    # -- resume --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that changes while the environment runs, of JSON types and numpy arrays."""
        return {
            "tokens": self._tokens.copy(),
            "lengths": self._lengths.copy(),
            "prompt_lengths": self._prompt_lengths.copy(),
            "ended": self._ended.copy(),
            "started": self._started.copy(),
            "sampler": self._sampler.state_dict(),
            "generator": self.np_random.bit_generator.state,
            "prompts": self.prompts.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken.

        Raises:
            ValueError: the state is of an environment with other prompts or another shape.
        """
        missing = [key for key in _EVERYTHING_STATE if key not in state]
        if missing:
            raise ValueError(f"the state lacks {missing}")
        if state["prompts"] != self.prompts.fingerprint():
            raise ValueError("the state is of an environment with other prompts")
        tokens = np.array(state["tokens"], dtype=np.int64)
        if tokens.shape != self._tokens.shape:
            raise ValueError(f"the state has rows of shape {tokens.shape}, this environment {self._tokens.shape}")
        self._sampler.load_state_dict(state["sampler"])
        self.np_random.bit_generator.state = state["generator"]
        self._tokens = tokens
        self._lengths = np.array(state["lengths"], dtype=np.int64)
        self._prompt_lengths = np.array(state["prompt_lengths"], dtype=np.int64)
        self._ended = np.array(state["ended"], dtype=np.bool_)
        self._started = np.array(state["started"], dtype=np.bool_)
        self._handed = None

    # -- inside --------------------------------------------------------------------------------------------------------

    def _seed(self, seed: int) -> None:
        super().reset(seed=seed)
        self._sampler.restart()

    def _begin(self, indices: NDArray[np.int64]) -> None:
        """Opens an episode in each of the sub-environments `indices`."""
        if not indices.size:
            return
        drawn = self._sampler.draw(len(indices), self.np_random)
        self._tokens[indices] = PAD
        self._tokens[indices, : self.prompts.tokens.shape[1]] = self.prompts.tokens[drawn]
        self._lengths[indices] = self._prompt_lengths[indices] = self.prompts.lengths[drawn]
        self._ended[indices] = False
        self._started[indices] = True

    def _finished(self, indices: NDArray[np.int64]) -> Finished:
        return Finished(indices, *self.split_rows(indices))

    def _final(self, indices: NDArray[np.int64], ended: NDArray[np.bool_], reasons: NDArray[np.str_]) -> dict[str, Any]:
        """Gymnasium's entries for episodes that ended and are reset in the same step."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for index in indices:
            final_obs[index] = self._tokens[index].copy()
        final_info = {"stop_reason": reasons.copy(), "_stop_reason": ended.copy()}
        return {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": final_info,
            "_final_info": ended.copy(),
        }

    def _reset_mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask: expected a bool array of shape ({self.num_envs},), received {mask!r}")
        if not mask.any():
            raise ValueError("reset_mask: selects no sub-environment")
        if not (mask | self._started).all():
            never = np.flatnonzero(~(mask | self._started)).tolist()
            raise ValueError(f"reset_mask: leaves out sub-environments {never}, which were never reset")
        return mask.copy()
