"""The batch path: finished rows become the result of stepping through them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from textenvs.tokens.checks import check_completions, check_logprobs
from textenvs.tokens.end_of_text import EndOfText
from textenvs.tokens.rows import EOS, LENGTH, PAD, Ids, TokenRows


def finished_rows(
    prompts: Ids,
    completions: Ids,
    logprobs: ArrayLike | None,
    *,
    eos_token_id: EndOfText,
    vocab_size: int,
    max_new_tokens: int,
    budget_truncates: bool,
) -> TokenRows:
    """Rows with rewards of 0: `TokenVectorEnv.play` with the environment's settings as arguments."""
    prompts, completions = np.asarray(prompts, dtype=np.int64), np.asarray(completions, dtype=np.int64)
    if prompts.ndim != 2 or completions.ndim != 2 or len(prompts) != len(completions):
        raise ValueError(
            f"prompts and completions: expected [N, P] and [N, T], received {prompts.shape} and {completions.shape}"
        )
    at_eos = check_completions(completions, eos_token_id, vocab_size, max_new_tokens)
    acted = None
    if logprobs is not None:
        acted = np.asarray(logprobs)
        if acted.shape != completions.shape:
            raise ValueError(f"logprobs: expected shape {completions.shape}, received {acted.shape}")
        acted = np.where(completions != PAD, acted, 0).astype(np.float32)
        check_logprobs(acted, "logprobs")
    truncated = ~at_eos if budget_truncates else np.zeros_like(at_eos)
    return TokenRows(
        prompts=prompts,
        completions=completions,
        rewards=np.zeros(completions.shape, dtype=np.float32),
        terminated=~truncated,
        truncated=truncated,
        stop_reason=np.where(at_eos, EOS, LENGTH).astype("<U6"),
        logprobs=acted,
    )
