"""What a policy writes for given prompts, in batches, with a seed of its own: for evaluation and for looking at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from textenvs.tokens.prompts import PromptSource, load_prompts
from textenvs.tokens.rows import PAD
from textenvs.tokens.tokenizers import decode_rows

EVAL_SEED = 12345
"""Of every evaluation, so that each policy is given the same uniform numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """N texts that one policy wrote.

    Attributes:
        prompts: ``[N, P]`` token ids, right-padded with PAD.
        completions: ``[N, T]`` token ids, right-padded with PAD.
        logprobs: ``[N, T]`` nats, of the policy that wrote; 0 on PAD.
        openings: N decoded prompts.
        endings: N decoded completions; opening + ending is the text.
    """

    prompts: np.ndarray
    completions: np.ndarray
    logprobs: np.ndarray
    openings: list[str]
    endings: list[str]

    @property
    def mask(self) -> np.ndarray:
        """``[N, T]`` True on the completions' tokens."""
        return self.completions != PAD

    @property
    def texts(self) -> list[str]:
        """N whole texts."""
        return [opening + ending for opening, ending in zip(self.openings, self.endings, strict=True)]


def write_samples(
    policy: CausalLMPolicy,
    tokenizer: Any,
    prompts: PromptSource,
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 256,
    max_concurrent_rows: int | None = None,
) -> Samples:
    """Let ``policy`` write one completion for every prompt; the same seed gives every policy the same luck.

    Args:
        policy: what writes.
        tokenizer: its tokenizer.
        prompts: N texts, or what else `load_prompts` takes.
        max_new_tokens: budget, tokens.
        seed: of the draws.
        batch_size: rows that are handed over together.
        max_concurrent_rows: rows of them decoded at a time, as ``agents.lm.generation.generate`` takes it. None: all.
    """
    tokens = load_prompts(prompts, tokenizer, vocab_size=policy.vocab_size).tokens
    generator = torch.Generator().manual_seed(seed)
    parts = [
        generate(
            policy,
            torch.from_numpy(tokens[start : start + batch_size]).to(policy.device),
            max_new_tokens=max_new_tokens,
            generator=generator,
            with_values=False,
            max_concurrent_rows=max_concurrent_rows,
        )
        for start in range(0, len(tokens), batch_size)
    ]
    completions = torch.cat([part.completions for part in parts]).cpu().numpy()
    openings, endings = decode_rows(tokenizer, tokens, completions)
    return Samples(
        prompts=tokens,
        completions=completions,
        logprobs=torch.cat([part.logprobs for part in parts]).cpu().numpy(),
        openings=openings,
        endings=endings,
    )
