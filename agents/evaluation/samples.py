"""A policy's completions of given prompts, in batches, with a separate seed: for evaluation and inspection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from agents.engines.local import LocalEngine
from agents.engines.protocol import Engine, Sampling
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from textenvs.tokens.prompts import PromptSource, load_prompts
from textenvs.tokens.rows import PAD, Columns, TokenRows
from textenvs.tokens.tokenizers import decode_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 256
"""Rows per call of `generate`."""
EVAL_SEED = 12345
"""Seed of every evaluation, so that all policies use the same random numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """N texts of one policy."""

    prompts: np.ndarray  # [N, P] token ids, right-padded with PAD
    completions: np.ndarray  # [N, T] token ids, right-padded with PAD
    logprobs: np.ndarray  # [N, T] nats, of the policy; 0 on PAD
    openings: list[str]  # N decoded prompts
    endings: list[str]  # N decoded completions; opening + ending is the text
    columns: Columns = ()  # of the prompts' rows, beside the prompt
    played: TokenRows | None = None  # episodes of an environment, as it finished them; None for texts after prompts

    @property
    def mask(self) -> np.ndarray:
        """``[N, T]`` True on the policy's tokens."""
        return self.completions != PAD if self.played is None else self.played.mask

    @property
    def texts(self) -> list[str]:
        """N whole texts."""
        return [opening + ending for opening, ending in zip(self.openings, self.endings, strict=True)]


def write_samples(
    policy: CausalLMPolicy, tokenizer: PreTrainedTokenizerBase, prompts: PromptSource, *, max_new_tokens: int,
    seed: int, max_concurrent_rows: int | None = None, deterministic: bool = False, engine: Engine | None = None,
) -> Samples:  # fmt: skip
    """One completion by ``policy`` for every prompt; the same seed means the same random numbers for every policy.

    ``prompts`` are N texts or another source for `load_prompts`, ``max_new_tokens`` the budget of a completion, and
    ``max_concurrent_rows`` the rows decoded at a time; None: all of a batch. ``deterministic``: the likeliest tokens.
    ``engine`` holds the policy's weights and writes in its place; None: the policy itself.
    """
    read = load_prompts(prompts, tokenizer, vocab_size=policy.vocab_size)
    tokens = read.tokens
    sampling = Sampling(
        max_new_tokens=max_new_tokens, rules=policy.sampling, eos_token_id=policy.eos_token_id, greedy=deterministic,
        generator=torch.Generator().manual_seed(seed), max_concurrent_rows=max_concurrent_rows,
    )  # fmt: skip
    engine = engine or LocalEngine(policy, partial(generate, with_values=False))
    parts = [engine.generate(rows.to(policy.device), sampling) for rows in torch.from_numpy(tokens).split(BATCH_SIZE)]
    completions = torch.cat([part.ids for part in parts]).cpu().numpy()
    openings, endings = decode_rows(tokenizer, tokens, completions)
    return Samples(
        prompts=tokens, completions=completions, logprobs=torch.cat([part.logprobs for part in parts]).cpu().numpy(),
        openings=openings, endings=endings, columns=read.columns,
    )  # fmt: skip
