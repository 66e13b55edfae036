"""Requirements of a transformers model to act as a policy: its logits, and its end-of-text token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from textenvs.lm.packed_forward import trunk_forward

if TYPE_CHECKING:
    from agents.lm.causal_lm import CausalLMPolicy


@torch.no_grad()
def check_head(policy: CausalLMPolicy) -> None:
    """Raise ValueError unless the model's logits are its output embedding of its trunk's last hidden state."""
    tokens = torch.arange(min(4, policy.vocab_size), device=policy.device)[None]
    with policy.forward_context():
        ours = policy.head_logits(trunk_forward(policy.model.base_model, tokens)[0])
        theirs = policy.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"expected logits equal to the output embedding of the last hidden state, received other ones from "
            f"{type(policy.model).__name__} (a soft cap or a scale)"
        )
