"""Text generation as a native Gymnasium vector environment, without rewards, which wrappers add.

Two paths give the same tokens and rewards: the step path, `step`, for any agent, and the batch path, `draw_prompts` and
`play`, for one that generates whole rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from textenvs.envs.row_buffer import Finished, RowBuffer
from textenvs.tokens.end_tokens import EndOfText, as_eos_token_id, is_end
from textenvs.tokens.prompts import Prompts, PromptSampler, PromptSource, load_prompts
from textenvs.tokens.rows import (
    EOS,
    LENGTH,
    PAD,
    Columns,
    Floats,
    Ids,
    Mask,
    TokenRows,
    check_completions,
    check_logprobs,
)
from textenvs.tokens.tokenizers import Tokenizer


class TokenVectorEnv(VectorEnv[Ids, Ids, NDArray[Any]]):
    """`num_envs` texts that grow by one token a step, each from a prompt until its end.

    | Observation | Box(-1, V-1, (L,), int64): prompt and tokens so far, right-padded with PAD = -1; L = P + T         |
    | Action      | Discrete(V): the next token id                                                                   |
    | Reward      | 0; wrappers add the preference score (`PreferenceReward`) and the KL penalty (`KLShaping`)         |
    | Termination | the action ends a text (eos_token_id), or max_new_tokens were produced (part of the task)        |
    | Truncation  | never; with budget="truncate" a used-up budget truncates instead of terminating                  |
    | Info        | stop_reason[i] in {"", "eos", "length"}, of the action just taken, in every autoreset mode; the  |
    |             | columns of the rows that the prompts are of, by name (in final_info those of the ended rows)     |
    | Autoreset   | SAME_STEP (default; final_obs and final_info as in SyncVectorEnv), NEXT_STEP or DISABLED         |

    P is the longest prompt's length (or `max_prompt_tokens`), T is `max_new_tokens`, V is `vocab_size`.

    Args:
        num_envs: sub-environments.
        prompts: see `textenvs.tokens.prompts.load_prompts`.
        tokenizer: of text prompts, and of wrappers that read text; None for an environment of bare ids.
        eos_token_id: the action that ends an episode, or several; None if only the budget does.
        vocab_size: V; the tokenizer's length when None.
        max_new_tokens: T, tokens.
        max_prompt_tokens: P, tokens; longer prompts are an error. The longest prompt's length when None.
        shuffle: whether the environment's generator shuffles the prompts each epoch.
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
        eos_token_id: EndOfText,
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
                raise ValueError("vocab_size: expected a number or a tokenizer, received neither")
            vocab_size = len(tokenizer)
        for name, value in {"num_envs": num_envs, "vocab_size": vocab_size, "max_new_tokens": max_new_tokens}.items():
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, received {value!r}")
        if budget not in ("terminate", "truncate"):
            raise ValueError(f'budget: expected "terminate" or "truncate", received {budget!r}')
        self.num_envs, self.max_new_tokens = num_envs, max_new_tokens
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.eos_token_id = as_eos_token_id(eos_token_id, vocab_size)
        self.prompts: Prompts = load_prompts(prompts, tokenizer, vocab_size=vocab_size, max_tokens=max_prompt_tokens)
        self.max_prompt_tokens = max_prompt_tokens or self.prompts.width
        self.budget, self._shuffle = budget, shuffle
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        width = self.max_prompt_tokens + max_new_tokens
        self.single_observation_space = spaces.Box(PAD, vocab_size - 1, (width,), np.int64)
        self.single_action_space = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = RowBuffer(num_envs, self.max_prompt_tokens, max_new_tokens)
        self.set_group_size(group_size)
        self.drawn_columns: Columns = ()  # of the rows of the newest `draw_prompts`, beside the prompt
        self.handed_logprobs: Floats | None = None  # of `hand_logprobs`, for the next step
        self.finished = self._finished(np.zeros(0, dtype=np.int64))

    def set_group_size(self, group_size: int) -> None:
        """Draw each prompt `group_size` times in a row; before the first reset.

        Raises:
            ValueError: `num_envs` is no multiple of it, or prompts were drawn already.
        """
        if group_size < 1 or self.num_envs % group_size:
            raise ValueError(f"group_size: expected a divisor of num_envs {self.num_envs}, received {group_size!r}")
        if self._rows.started.any():
            raise ValueError(f"group_size: expected before the first reset, received {group_size} after it")
        self.group_size = group_size
        self._sampler = PromptSampler(len(self.prompts), shuffle=self._shuffle, repeats=group_size)

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

        A `seed` seeds the generator and starts a new epoch of prompts.

        Raises:
            ValueError: a mask of another shape or type, without a True, or False for a sub-environment that was never
                reset.
        """
        mask = self._rows.check_reset_mask((options or {}).get("reset_mask"))
        if seed is not None:
            self._seed(seed)
        self.handed_logprobs = None
        self._begin(np.flatnonzero(mask))
        self.finished = self._finished(np.zeros(0, dtype=np.int64))
        infos = {"stop_reason": np.full(self.num_envs, "", dtype="<U6"), "_stop_reason": mask}
        return self.tokens.copy(), self.prompts.info(self._rows.numbers, mask) | infos

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
        at_eos = running & is_end(actions, self.eos_token_id)
        at_budget = running & ~at_eos & (self.lengths - self.prompt_lengths >= self.max_new_tokens)
        ended = at_eos | at_budget
        truncated = at_budget if self.budget == "truncate" else np.zeros_like(running)
        terminated = ended & ~truncated
        indices = np.flatnonzero(ended)
        self.finished = self._finished(indices)
        reasons = np.where(at_eos, EOS, np.where(at_budget, LENGTH, "")).astype("<U6")
        infos: dict[str, Any] = {"stop_reason": reasons, "_stop_reason": np.ones(self.num_envs, dtype=np.bool_)}
        self._rows.ended = ended
        if self.autoreset_mode is AutoresetMode.SAME_STEP and indices.size:
            infos |= self._final(indices, ended, reasons)
            self._begin(indices)
        infos = self.prompts.info(self._rows.numbers) | infos
        return self.tokens.copy(), np.zeros(self.num_envs, dtype=np.float32), terminated, truncated, infos

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

    def draw_prompts(self, *, seed: int | None = None) -> Ids:
        """Prompts ``[num_envs, P]``, right-padded: those of ``reset(seed=seed)``; running episodes do not change."""
        if seed is not None:
            self._seed(seed)
        numbers = self._sampler.draw(self.num_envs, self.np_random)
        self.drawn_columns = [self.prompts.columns[number] for number in numbers]
        drawn = self.prompts.padded(numbers)
        return np.pad(drawn, ((0, 0), (0, self.max_prompt_tokens - drawn.shape[1])), constant_values=PAD)

    def play(
        self, prompts: Ids, completions: Ids, logprobs: ArrayLike | None = None, *, columns: Columns = ()
    ) -> TokenRows:
        """Finished rows as if their completions had been stepped from their prompts, without a change of state.

        ``prompts [N, P']`` and ``completions [N, T']`` are right-padded with PAD; each completion ends with
        `eos_token_id` or has `max_new_tokens` tokens. ``logprobs [N, T']``, nats, are the agent's, any at padding.
        ``columns`` are the N prompts' other columns, for scorers: `drawn_columns` for prompts of `draw_prompts`.

        Raises:
            ValueError: rows that no episode can produce; the message names the first.
        """
        prompts, completions = np.asarray(prompts, dtype=np.int64), np.asarray(completions, dtype=np.int64)
        if prompts.ndim != 2 or completions.ndim != 2 or len(prompts) != len(completions):
            raise ValueError(
                f"prompts and completions: expected [N, P] and [N, T], received {prompts.shape} and {completions.shape}"
            )
        at_eos = check_completions(completions, self.eos_token_id, self.vocab_size, self.max_new_tokens)
        acted = None
        if logprobs is not None:
            acted = np.asarray(logprobs)
            if acted.shape != completions.shape:
                raise ValueError(f"logprobs: expected shape {completions.shape}, received {acted.shape}")
            acted = np.where(completions != PAD, acted, 0).astype(np.float32)
            check_logprobs(acted, "logprobs")
        truncated = ~at_eos if self.budget == "truncate" else np.zeros_like(at_eos)
        return TokenRows(
            prompts=prompts,
            completions=completions,
            rewards=np.zeros(completions.shape, dtype=np.float32),
            terminated=~truncated,
            truncated=truncated,
            stop_reason=np.where(at_eos, EOS, LENGTH).astype("<U6"),
            logprobs=acted,
        )

    def state_dict(self) -> dict[str, Any]:
        """The environment's whole changing state, of JSON types and numpy arrays."""
        return {
            **self._rows.state_dict(),
            "sampler": self._sampler.state_dict(),
            "generator": self.np_random.bit_generator.state,
            "prompts": self.prompts.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state belongs to an environment with other prompts or another shape.
        """
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise ValueError(f"state: expected the keys {missing}, received none of them")
        if state["prompts"] != self.prompts.fingerprint():
            raise ValueError("state: expected the same prompts, received a state of other prompts")
        self._rows.load_state_dict(state)
        self._sampler.load_state_dict(state["sampler"])
        self.np_random.bit_generator.state = state["generator"]
        self.handed_logprobs = None

    def _seed(self, seed: int) -> None:
        super().reset(seed=seed)
        self._sampler.restart()

    def _begin(self, indices: Ids) -> None:
        """Start an episode in each of the sub-environments `indices`."""
        if indices.size:
            self._rows.begin(indices, self.prompts, self._sampler.draw(len(indices), self.np_random))

    def _finished(self, indices: Ids) -> Finished:
        return Finished(indices, *self.split_rows(indices), self._rows.numbers[indices])

    def _final(self, indices: Ids, ended: Mask, reasons: NDArray[np.str_]) -> dict[str, Any]:
        """Gymnasium's info entries of episodes that ended and are reset in the same step."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for index in indices:
            final_obs[index] = self.tokens[index].copy()
        final_info = {"stop_reason": reasons.copy(), "_stop_reason": ended.copy()}
        finals = {"final_obs": final_obs, "final_info": self.prompts.info(self._rows.numbers, ended) | final_info}
        return finals | {f"_{name}": ended.copy() for name in finals}
