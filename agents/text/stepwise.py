"""Whole texts from a policy that only acts: one call of ``act`` per token, on the row so far."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from agents.interfaces import Policy
from agents.lm.generation import Generation
from textenvs.tokens.end_tokens import EndOfText, end_tensor
from textenvs.tokens.rows import PAD


class TextPolicy(Policy, Protocol):
    """A policy over token ids: observations ``[B, L]`` right-padded with PAD, actions ``[B]``."""

    has_critic: bool

    @property
    def eos_token_id(self) -> EndOfText:
        """The token that ends a text, several, or None."""


@torch.no_grad()
def generate_by_acting(
    policy: TextPolicy,
    prompts: Tensor,
    *,
    max_new_tokens: int,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
) -> Generation:
    """One completion of each prompt; the same arguments and result as ``agents.lm.generation.generate``.

    Args:
        policy: acts on rows of tokens.
        prompts: ``[B, P]`` right-padded with PAD.
        max_new_tokens: budget of each completion.
        generator: of the samples.
        deterministic: take the most likely token.

    Returns:
        ``[B, max_new_tokens]`` each; PAD, or 0, after the end of a row.
    """
    batch, device = len(prompts), prompts.device
    rows = torch.nn.functional.pad(prompts, (0, max_new_tokens), value=PAD)
    lengths, every = (prompts != PAD).sum(1), torch.arange(batch, device=device)
    completions = torch.full((batch, max_new_tokens), PAD, dtype=torch.int64, device=device)
    logprobs = torch.zeros(batch, max_new_tokens, device=device)
    values = torch.zeros_like(logprobs)
    running = torch.ones(batch, dtype=torch.bool, device=device)
    ends = end_tensor(policy.eos_token_id, device)
    for step in range(max_new_tokens):
        tokens, chosen = policy.act(rows, deterministic=deterministic, generator=generator)
        if policy.has_critic:
            values[:, step] = torch.where(running, policy.values(rows), 0.0)
        completions[:, step] = torch.where(running, tokens, PAD)
        logprobs[:, step] = torch.where(running, chosen, 0.0)
        rows[every, lengths] = completions[:, step]
        lengths = lengths + running
        running = running & ~torch.isin(tokens, ends)
        if not running.any():
            break
    return Generation(completions, logprobs, values)
