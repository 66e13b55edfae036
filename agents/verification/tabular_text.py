"""A tabular policy over whole texts, without a critic, for algorithms that compare texts rather than steps.

Its observations are prompt and tokens so far, right-padded with PAD, as those of the environments.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from agents.functional.distributions import categorical_entropy, categorical_logprob, categorical_logprobs
from agents.interfaces import Evaluation
from agents.lm.generation import Generation
from agents.verification.tabular import TabularPolicy
from textenvs.tokens.rows import PAD


class TabularTextPolicy(nn.Module):
    """Logits for every prefix of every prompt.

    Args:
        states: ``[K, P + T]`` prompts of P tokens without padding, and the tokens so far.
        logits: ``[K, V]`` to start from.
        prompt_length: P, tokens.
        eos_token_id: the token that ends a text.
    """

    keeps_rows = True
    has_critic = False

    def __init__(self, states: np.ndarray, logits: np.ndarray, *, prompt_length: int, eos_token_id: int) -> None:
        super().__init__()
        self.table = TabularPolicy(states, logits.shape[1], logits)
        self.table.value_table.requires_grad_(False)
        self.prompt_length, self.eos_token_id, self.vocab_size = prompt_length, eos_token_id, logits.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the table."""
        return self.table.logits.device

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Evaluation:
        """Log-probabilities and entropies ``[B, T]`` of completions ``[B, T]`` of prompts ``[B, P]``; values are 0.

        Entries where ``mask`` is False are ignored.
        """
        rows = torch.cat([observations[:, : self.prompt_length], actions], dim=1)
        column = torch.arange(rows.shape[1], device=rows.device)
        step = torch.arange(actions.shape[1], device=rows.device)
        seen = torch.where(column < self.prompt_length + step[:, None], rows[:, None], PAD)
        logprobs = categorical_logprobs(self.table.logits[self.table.index(seen)])
        chosen = categorical_logprob(logprobs, actions.clamp(min=0))
        return Evaluation(chosen, categorical_entropy(logprobs), torch.zeros_like(chosen))


@torch.no_grad()
def write(
    policy: TabularTextPolicy, prompts: Tensor, *, max_new_tokens: int, generator: torch.Generator | None = None
) -> Generation:
    """One completion of at most ``max_new_tokens`` for every prompt ``[B, P]``, as
    ``agents.lm.generation.generate``."""
    rows = torch.full((len(prompts), policy.prompt_length + max_new_tokens), PAD, dtype=torch.int64)
    rows[:, : policy.prompt_length] = prompts[:, : policy.prompt_length]
    logprobs = torch.zeros(len(prompts), max_new_tokens)
    running = torch.ones(len(prompts), dtype=torch.bool)
    for step in range(max_new_tokens):
        tokens, chosen = policy.table.act(rows, generator=generator)
        rows[:, policy.prompt_length + step] = torch.where(running, tokens, PAD)
        logprobs[:, step] = torch.where(running, chosen, 0.0)
        running = running & (tokens != policy.eos_token_id)
    return Generation(rows[:, policy.prompt_length :], logprobs, torch.zeros_like(logprobs))
