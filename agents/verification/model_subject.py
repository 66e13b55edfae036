"""The language model of ``verify --model``: a policy and a reference that wrap it, and rows of tokens to evaluate.

The model is any that ``transformers`` loads; only token ids are used, so no tokenizer is needed. The value head
is random, because a head of zeros would pass every comparison. No checks here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from textenvs.lm.loading import load_causal_lm
from textenvs.tokens.end_of_text import end_tokens, ends_text
from textenvs.tokens.rows import PAD
from textenvs.wrappers.reference import CausalLMReference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 5e-4
"""Nats, or units of V: above float32 rounding, below any real error."""
ROWS, PROMPT, BUDGET, LONGEST = 6, 5, 6, 2048
"""Rows; widths in tokens; models with more positions than LONGEST are not filled to the last one."""


class Model:
    """A causal LM, a policy and a reference that wrap it, and rows of tokens to evaluate.

    Args:
        model: a ``transformers`` causal LM, or its directory.
        seed: of tokens and value head.

    Raises:
        ValueError: no causal LM can be loaded from there, or it is one that the policy refuses.
    """

    def __init__(self, model: PreTrainedModel | str | Path, *, seed: int = 0) -> None:
        self.model = load_causal_lm(model) if isinstance(model, (str, Path)) else model
        named = getattr(self.model.config, "eos_token_id", None) is not None
        self.eos = "model" if named else None
        self.policy = self.policy_with()
        ends = end_tokens(self.policy.eos_token_id)
        self.eos_token_id = ends[0] if ends else None
        other = next(token for token in range(1, self.policy.vocab_size) if token not in ends)
        self.reference = CausalLMReference(copy.deepcopy(self.model))
        generator = torch.Generator().manual_seed(seed)
        self.prompts = torch.randint(1, self.policy.vocab_size, (ROWS, PROMPT), generator=generator)
        self.completions = torch.randint(1, self.policy.vocab_size, (ROWS, BUDGET), generator=generator)
        for rows in (self.prompts, self.completions):
            rows[ends_text(rows, ends)] = other
        for i in range(ROWS):
            self.prompts[i, 1 + i % PROMPT :] = PAD
            length = 1 + (3 * i + 1) % BUDGET
            self.completions[i, length:] = PAD
            if self.eos_token_id is not None and i % 2:
                self.completions[i, length - 1] = self.eos_token_id
        self.mask = self.completions != PAD

    def policy_with(self, **options: Any) -> CausalLMPolicy:
        """A policy over the same weights, its random value head always the same."""
        policy = CausalLMPolicy(self.model, eos_token_id=self.eos, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            torch.nn.init.normal_(policy.value_head.weight, std=policy.value_head.in_features**-0.5)
        return policy

    @torch.no_grad()
    def evaluate(self, prompts: Tensor, completions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, values and the reference's log-probabilities, ``[B, T]``."""
        evaluation = self.policy.evaluate(prompts, completions)
        reference = torch.from_numpy(self.reference(prompts.numpy(), completions.numpy()))
        return evaluation.logprobs, evaluation.values, reference

    @torch.no_grad()
    def prefix_by_prefix(self, row: int) -> tuple[Tensor, Tensor]:
        """Plain logits ``[n, V]`` and tokens ``[n]`` of one completion, a forward pass a token, straight from it."""
        tokens = self.prompts[row][self.prompts[row] != PAD].tolist()
        actions, logits = self.completions[row][self.mask[row]].tolist(), []
        for action in actions:
            logits.append(self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float())
            tokens.append(action)
        return torch.stack(logits), torch.tensor(actions)
