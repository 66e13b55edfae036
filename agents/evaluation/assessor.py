"""Writes on held-out prompts with a policy, scores the texts, and measures the KL to the reference. Trains nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agents.evaluation.kl_along import ROWS_AT_ONCE, kl_along
from agents.evaluation.metrics import Assessment, TextJudge
from agents.evaluation.samples import EVAL_SEED, Samples, write_samples
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.policy_reference import PolicyReference
from textenvs.tokens.prompts import PromptSource
from textenvs.tokens.rows import TokenRows
from textenvs.tokens.tokenizers import decode_rows
from textenvs.wrappers.chat_prompts import ChatTemplate
from textenvs.wrappers.preference import PreferenceReward, ScoredRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessor:
    """Assesses any policy in the same way: same prompts, same seed, same scorers.

    Attributes:
        tokenizer: of the policies.
        reward: whose scores are reported, reward units.
        reference: from which the KL is measured.
        prompts: held out from training.
        max_new_tokens: budget of a text, tokens.
        max_concurrent_rows: texts decoded at a time; None: all.
        chat: the template that prompts were put into, or None.
        judge: independent of the reward, or None.
    """

    tokenizer: PreTrainedTokenizerBase
    reward: PreferenceReward
    reference: PolicyReference
    prompts: PromptSource
    max_new_tokens: int
    max_concurrent_rows: int | None = None
    chat: ChatTemplate | None = None
    judge: TextJudge | None = None

    def write(self, policy: CausalLMPolicy, *, seed: int = EVAL_SEED) -> Samples:
        """One completion by ``policy`` for every prompt, from a generator of its own; chat markup is left out."""
        samples = write_samples(
            policy,
            self.tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
            max_concurrent_rows=self.max_concurrent_rows,
        )
        return samples if self.chat is None else replace(samples, openings=self.chat.plain(samples.openings))

    def score(self, samples: Samples) -> ScoredRows:
        """Scores of the reward, with each member's and how far they are apart."""
        return self.reward.score_rows(samples.prompts, samples.completions)

    def assess(self, policy: CausalLMPolicy) -> Assessment:
        """Texts by ``policy`` with scores, the judge's opinion and the KL; training state stays untouched."""
        samples = self.write(policy)
        parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(samples.prompts), ROWS_AT_ONCE)]
        return Assessment(
            samples=samples,
            scored=self.score(samples),
            judged=None if self.judge is None else self.judge.score(samples.texts),
            ref_logprobs=np.concatenate([self.reference(samples.prompts[p], samples.completions[p]) for p in parts]),
            kl=kl_along(policy, self.reference.policy, samples).sum(1),
        )

    def decode(self, rows: TokenRows, count: int) -> tuple[list[str], list[str]]:
        """Prompts and completions, as text, of the first ``count`` of ``rows``; chat markup is left out."""
        openings, endings = decode_rows(self.tokenizer, rows.prompts[:count], rows.completions[:count])
        return (openings if self.chat is None else self.chat.plain(openings)), endings
