"""What a transformers model must be to act as a policy: its logits, and the token that ends a text."""

from __future__ import annotations

from typing import Any

import torch

from textenvs.lm.packed_forward import trunk_forward


@torch.no_grad()
def check_head(policy: Any) -> None:
    """Raise ValueError unless the model's logits are its output embedding of its trunk's last hidden state."""
    tokens = torch.arange(min(4, policy.vocab_size), device=policy.device)[None]
    with policy.acting():
        ours = policy.head_logits(trunk_forward(policy.model.base_model, tokens)[0])
        theirs = policy.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(policy.model).__name__} does more with its logits than its output embedding (a soft cap or a "
            "scale); CausalLMPolicy would log other probabilities than the model has"
        )


def end_of_text(model: Any) -> int:
    """The token by which the model's configuration ends a text.

    Raises:
        ValueError: if it names none.
    """
    eos = model.config.eos_token_id
    if isinstance(eos, (list, tuple)):
        eos = eos[0] if eos else None
    if eos is None:
        raise ValueError(f"{type(model).__name__} names no end-of-text token; pass eos_token_id (None: there is none)")
    return int(eos)
