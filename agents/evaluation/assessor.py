"""Evaluates a policy on held-out prompts: its texts, their scores, and the exact KL to the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

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

ROWS_AT_ONCE = 64
"""Texts in one forward pass."""


@torch.no_grad()
def completion_kl(policy: CausalLMPolicy, reference: CausalLMPolicy, samples: Samples) -> NDArray[np.float32]:
    """Exact KL(policy || reference) ``[N, T]``, nats, in each state of ``samples``, by ``policy``; 0 at padding.

    KL_t = sum_a pi(a | s_t) (log pi(a | s_t) - log pi_ref(a | s_t))
    """
    found = []
    for start in range(0, len(samples.prompts), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        prompts, completions = (
            torch.as_tensor(rows[part]).to(policy.device) for rows in (samples.prompts, samples.completions)
        )
        kl = policy.evaluate(prompts, completions, reference=reference).kl
        assert kl is not None
        found.append(kl.cpu().numpy())
    return np.concatenate(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessor:
    """Evaluates policies on the same prompts, with the same seed and scorers.

    Attributes:
        tokenizer: of the policies.
        reward: whose scores are reported, reward units.
        reference: of the KL.
        prompts: held out from training.
        max_new_tokens: budget of a completion, tokens.
        max_concurrent_rows: texts decoded at a time; None: all.
        chat: the template of the prompts, or None.
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
        """One completion by ``policy`` for every prompt, from a separate generator; without chat markup."""
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
        """Scores of the reward, of its members, and their standard deviation."""
        return self.reward.score_rows(samples.prompts, samples.completions)

    def assess(self, policy: CausalLMPolicy) -> Assessment:
        """Texts by ``policy`` with scores, the judge's scores and the KL; does not change training state."""
        samples = self.write(policy)
        parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(samples.prompts), ROWS_AT_ONCE)]
        return Assessment(
            samples=samples,
            scored=self.score(samples),
            judged=None if self.judge is None else self.judge.score(samples.texts),
            ref_logprobs=np.concatenate([self.reference(samples.prompts[p], samples.completions[p]) for p in parts]),
            kl=completion_kl(policy, self.reference.policy, samples).sum(1),
        )

    def decode(self, rows: TokenRows, count: int) -> tuple[list[str], list[str]]:
        """Prompts and completions of the first ``count`` of ``rows`` as text, without chat markup."""
        openings, endings = decode_rows(self.tokenizer, rows.prompts[:count], rows.completions[:count])
        return (openings if self.chat is None else self.chat.plain(openings)), endings
