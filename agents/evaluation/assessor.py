"""Evaluates a policy on held-out prompts: its texts, their scores, and the exact KL to the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.engines.local import LocalEngine
from agents.engines.protocol import Engine, Sampling
from agents.evaluation.metrics import Assessment, Passed, PassingRule, TextJudge
from agents.evaluation.samples import EVAL_SEED, Samples, write_samples
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.policy_reference import PolicyReference
from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.prompts import PromptSource
from textenvs.tokens.rows import TokenRows
from textenvs.tokens.tokenizers import decode_rows
from textenvs.wrappers.chat_prompts import ChatTemplate
from textenvs.wrappers.preference import PreferenceReward, ScoredRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 64
"""Texts in one forward pass."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessor:
    """Evaluates policies on the same prompts, with the same seed and scorers."""

    tokenizer: PreTrainedTokenizerBase  # of the policies
    reward: PreferenceReward | None = None  # whose scores are reported, reward units; None: see `EpisodeAssessor`
    reference: PolicyReference | None = None  # of the KL; None: only `figures` are measured
    prompts: PromptSource  # held out from training
    max_new_tokens: int  # budget of a completion
    max_concurrent_rows: int | None = None  # texts decoded at a time; None: all
    chat: ChatTemplate | None = None  # the template of the prompts
    judge: TextJudge | None = None  # independent of the reward
    passing: PassingRule | None = None  # None: right and wrong are not told apart
    engine: Callable[[CausalLMPolicy], Engine] | None = None  # that writes by a policy's weights; None: the policy

    def write(self, policy: CausalLMPolicy, *, seed: int = EVAL_SEED, deterministic: bool = False) -> Samples:
        """One completion by ``policy`` for every prompt, from a separate generator; without chat markup."""
        samples = write_samples(
            policy, self.tokenizer, self.prompts, max_new_tokens=self.max_new_tokens, seed=seed,
            max_concurrent_rows=self.max_concurrent_rows, deterministic=deterministic,
            engine=self.engine and self.engine(policy),
        )  # fmt: skip
        return samples if self.chat is None else replace(samples, openings=self.chat.plain(samples.openings))

    def score(self, samples: Samples) -> ScoredRows:
        """Scores of the reward, of its members, and their standard deviation."""
        assert self.reward is not None
        return self.reward.score_rows(samples.prompts, samples.completions, samples.columns)

    @torch.no_grad()
    def assess(self, policy: CausalLMPolicy) -> Assessment:
        """Texts by ``policy`` with scores, the judge's scores and the KL; does not change training state."""
        samples = self.write(policy)
        scored = self.score(samples)
        assert self.reference is not None
        parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(samples.prompts), ROWS_AT_ONCE)]
        ref_logprobs = [self.reference(samples.prompts[part], samples.completions[part]) for part in parts]
        return Assessment(
            samples=samples,
            scored=scored,
            passed=None if self.passing is None else self._passed(policy, scored, self.passing),
            judged=None if self.judge is None else self.judge.score(samples.texts),
            ref_logprobs=np.concatenate(ref_logprobs),
            kl=np.concatenate([self._kl(policy, samples, part) for part in parts]).sum(1),
        )

    @torch.no_grad()
    def figures(self, policy: CausalLMPolicy, rule: PassingRule) -> dict[str, float]:
        """The mean score of one text a prompt, accuracy and pass@k, without those that apply to no prompt."""
        scored = self.score(self.write(policy))
        found = {"score": float(scored.scores.mean()), **self._passed(policy, scored, rule).metrics()}
        return {name: value for name, value in found.items() if value is not None}

    def _passed(self, policy: CausalLMPolicy, scored: ScoredRows, rule: PassingRule) -> Passed:
        """Which texts are right: one of the likeliest tokens a row, and samples, of which ``scored`` are the first."""
        greedy = self.score(self.write(policy, deterministic=True))
        more = [self.score(self.write(policy, seed=EVAL_SEED + number)) for number in range(1, rule.samples)]
        likeliest, *sampled = (next(iter(each.members.values())) for each in (greedy, scored, *more))
        return Passed.of(likeliest, np.stack(sampled, axis=1), rule)

    def _kl(self, policy: CausalLMPolicy, samples: Samples, part: slice) -> NDArray[np.float32]:
        """Exact KL(policy || reference) ``[N, T]``, nats, in each state of a part of ``samples``; 0 at padding."""
        prompts, completions, mask = (
            torch.as_tensor(rows[part]).to(policy.device)
            for rows in (samples.prompts, samples.completions, samples.mask)
        )
        assert self.reference is not None
        kl = policy.evaluate(prompts, completions, mask, reference=self.reference.policy).kl
        assert kl is not None
        return kl.cpu().numpy()

    def judge_rows(self, rows: TokenRows) -> NDArray[Any]:
        """The independent judge's scores ``[N]`` of finished rows."""
        assert self.judge is not None
        openings, endings = self.decode(rows, len(rows.prompts))
        return self.judge.score([opening + ending for opening, ending in zip(openings, endings, strict=True)])

    def decode(self, rows: TokenRows, count: int) -> tuple[list[str], list[str]]:
        """Prompts and completions of the first ``count`` of ``rows`` as text, without chat markup."""
        openings, endings = decode_rows(self.tokenizer, rows.prompts[:count], rows.completions[:count])
        return (openings if self.chat is None else self.chat.plain(openings)), endings


EVAL_EPISODES = 2**40
"""Seed of the episodes of every evaluation; training begins with small ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeAssessor(Assessor):
    """Evaluates policies on the same episodes of an environment; the score of one is its return, reward units."""

    envs: TokenVectorBase | TokenVectorWrapper  # an episode in each sub-environment; its rewards, and no KL

    def write(self, policy: CausalLMPolicy, *, seed: int = EVAL_SEED, deterministic: bool = False) -> Samples:
        """An episode by ``policy`` in every sub-environment; ``seed`` is of its tokens only."""
        base = self.envs.unwrapped
        assert isinstance(base, TokenVectorBase)
        prompts = self.envs.draw_prompts(seed=EVAL_EPISODES)
        engine = self.engine(policy) if self.engine else LocalEngine(policy, partial(generate, with_values=False))
        sampling = Sampling(
            max_new_tokens=base.max_new_tokens, rules=policy.sampling, eos_token_id=policy.eos_token_id,
            generator=torch.Generator().manual_seed(seed), max_concurrent_rows=self.max_concurrent_rows,
            greedy=deterministic, dialogue=base if isinstance(base, DialogueVectorEnv) else None,
        )  # fmt: skip
        written = engine.generate(torch.from_numpy(prompts).to(policy.device), sampling)
        completions, logprobs = written.ids.cpu().numpy(), written.logprobs.cpu().numpy()
        played = self.envs.play(prompts, completions, logprobs, columns=base.drawn_columns)
        if isinstance(base, DialogueVectorEnv):
            dialogues = [told(each["messages"]) for each in base.drawn_columns]
            openings, endings = [first for first, _ in dialogues], [rest for _, rest in dialogues]
        else:
            openings, endings = self.decode(played, len(prompts))
        return Samples(
            prompts=prompts, completions=completions, logprobs=logprobs, openings=openings,
            endings=endings, columns=base.drawn_columns, played=played,
        )  # fmt: skip

    def score(self, samples: Samples) -> ScoredRows:
        """Returns of the episodes."""
        assert samples.played is not None
        returns = samples.played.rewards.sum(axis=1)
        return ScoredRows(scores=returns, std=np.zeros_like(returns), members={"return": returns})


def told(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A dialogue for people: what comes before the first answer, and the rest, a turn a line with its role."""
    first = next((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), len(messages))
    rest = [f"{turn['role']}: {turn['content']}" for turn in messages[first:]]
    return "\n".join(str(turn["content"]) for turn in messages[:first]), "\n".join(rest)
