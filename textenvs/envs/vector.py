"""Text generation as a native Gymnasium vector environment, without rewards, which wrappers add."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike

from textenvs.envs.base import Judged, TokenVectorBase, as_acted, check_whole, vocabulary
from textenvs.tokens.end_tokens import EndOfText, is_end
from textenvs.tokens.prompts import Prompts, PromptSampler, PromptSource, load_prompts
from textenvs.tokens.rows import EOS, LENGTH, PAD, Columns, Ids, Mask, TokenRows, check_completions
from textenvs.tokens.tokenizers import Tokenizer


class TokenVectorEnv(TokenVectorBase):
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
        vocab_size = vocabulary(vocab_size, tokenizer)
        check_whole(1, max_new_tokens=max_new_tokens)
        if max_prompt_tokens is not None:
            check_whole(1, max_prompt_tokens=max_prompt_tokens)
        self.max_new_tokens, self._shuffle = max_new_tokens, shuffle
        self.prompts: Prompts = load_prompts(prompts, tokenizer, vocab_size=vocab_size, max_tokens=max_prompt_tokens)
        self.max_prompt_tokens = width = max_prompt_tokens or self.prompts.width
        super().__init__(
            num_envs, tokenizer=tokenizer, eos_token_id=eos_token_id, vocab_size=vocab_size,
            widths=(width + max_new_tokens, width, max_new_tokens), group_size=group_size,
            autoreset_mode=autoreset_mode, budget=budget,
        )  # fmt: skip

    def set_group_size(self, group_size: int) -> None:
        """Draw each prompt `group_size` times in a row; before the first reset. Raises as the base's."""
        super().set_group_size(group_size)
        self._sampler = PromptSampler(len(self.prompts), shuffle=self._shuffle, repeats=group_size)

    @property
    def column_names(self) -> list[str]:
        """As in the base."""
        return list(self.prompts.names)

    @property
    def longest_row(self) -> tuple[int, str, str]:
        """As in the base."""
        longest = int(self.prompts.lengths.argmax())
        length = int(self.prompts.lengths[longest])
        what = f"a prompt of {length} and {self.max_new_tokens} new ones"
        return length + self.max_new_tokens, self.prompts.places[longest], what

    def draw_prompts(self, *, seed: int | None = None) -> Ids:
        """As in the base."""
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
                f"expected prompts [N, P], completions [N, T], received {prompts.shape} {completions.shape}"
            )
        at_eos = check_completions(completions, self.eos_token_id, self.vocab_size, self.max_new_tokens)
        truncated = ~at_eos if self.budget == "truncate" else np.zeros_like(at_eos)
        return TokenRows(
            prompts=prompts,
            completions=completions,
            rewards=np.zeros(completions.shape, dtype=np.float32),
            terminated=~truncated,
            truncated=truncated,
            stop_reason=np.where(at_eos, EOS, LENGTH),
            logprobs=as_acted(logprobs, completions, completions != PAD),
        )

    def state_dict(self) -> dict[str, Any]:
        """As in the base, with the place in the prompts."""
        return {
            **super().state_dict(),
            "sampler": self._sampler.state_dict(),
            "prompts": self.prompts.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state belongs to an environment with other prompts or another shape.
        """
        if state.get("prompts", self.prompts.fingerprint) != self.prompts.fingerprint:
            raise ValueError("state: expected the same prompts, received a state of other prompts")
        super().load_state_dict(state)
        self._sampler.load_state_dict(state["sampler"])

    def _seed(self, seed: int) -> None:
        super()._seed(seed)
        self._sampler.restart()

    def _begin(self, indices: Ids) -> None:
        if indices.size:
            drawn = self._sampler.draw(len(indices), self.np_random)
            self._rows.begin(indices, self.prompts.padded(drawn), self.prompts.lengths[drawn], drawn)

    def _judge(self, actions: Ids, running: Mask) -> Judged:
        at_eos = running & is_end(actions, self.eos_token_id)
        at_budget = running & ~at_eos & (self.lengths - self.prompt_lengths >= self.max_new_tokens)
        truncated = at_budget if self.budget == "truncate" else np.zeros_like(running)
        reasons = np.where(at_eos, EOS, np.where(at_budget, LENGTH, "")).astype("<U10")
        return Judged(np.zeros(self.num_envs, np.float32), (at_eos | at_budget) & ~truncated, truncated, reasons)

    def _row_info(self, mask: Mask | None = None) -> dict[str, Any]:
        return self.prompts.info(self._rows.numbers, mask)

    def _columns(self, indices: Ids) -> Columns:
        return [self.prompts.columns[number] for number in self._rows.numbers[indices]]
