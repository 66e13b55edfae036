"""Whole texts from a policy that only acts: one call of ``act`` per token, on the row so far."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from agents.interfaces import Policy
from agents.lm.decoder import Generation
from agents.lm.dialogues import Dialogue, OneTurn, Rows
from textenvs.lm.packed_forward import pack_rows
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
    dialogue: Dialogue | None = None,
) -> Generation:
    """One completion or dialogue of each prompt; arguments and result as ``agents.lm.generation.generate``."""
    lengths, every = (prompts != PAD).sum(1), torch.arange(len(prompts), device=prompts.device)
    ends = end_tensor(policy.eos_token_id, prompts.device)
    completion = max_new_tokens if dialogue is None else dialogue.max_tokens - 1
    width = prompts.shape[1] + max_new_tokens if dialogue is None else dialogue.max_tokens
    talk = Rows(dialogue or OneTurn(), lengths, completion, max_turn_tokens=max_new_tokens, ends=ends)
    logprobs = torch.zeros(talk.tokens.shape, device=prompts.device)
    values = torch.zeros_like(logprobs)
    while not bool(talk.ended.all()):
        rows = pack_rows(prompts, talk.tokens)
        rows = torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=PAD)
        tokens, chosen = policy.act(rows, deterministic=deterministic, generator=generator)
        running = every[~talk.ended]
        place = running, talk.filled[running]
        if policy.has_critic:
            values[place] = policy.values(rows)[running]
        logprobs[place] = chosen[running]
        talk.append(running, tokens[running])
    return Generation(talk.tokens, logprobs, values)
