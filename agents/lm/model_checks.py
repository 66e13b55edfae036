"""Requirements of a transformers model to act as a policy: its logits, and its end-of-text token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.lm.decision_states import states_at_ends
from agents.lm.token_head import LogitTransform
from textenvs.lm.fast_paths import tolerance
from textenvs.lm.packed_forward import trunk_forward
from textenvs.tokens.rows import PAD

if TYPE_CHECKING:
    from agents.lm.causal_lm import CausalLMPolicy


LEVELS = (2.0**-14, -(2.0**-14), 1.0, -1.0, 8.0, -64.0, 1024.0, 2.0**40)
"""Products of the output layer that show what the model does to them: small, large, of both signs."""


def check_model(policy: CausalLMPolicy) -> None:
    """Set ``policy.transform``, and raise ValueError unless its model runs as a policy in every path; not on "meta"."""
    if policy.device.type == "meta":
        return
    try:
        policy.transform = find_transform(policy)
        check_head(policy)
        check_decoding(policy)
    except ValueError:
        raise
    except Exception as fault:  # other models may raise anything
        raise ValueError(
            f"expected a causal language model of text with a key-value cache for rows of different lengths, received "
            f"{type(policy.model).__name__}, which fails: {type(fault).__name__}: {fault}"
        ) from fault


@torch.no_grad()
def find_transform(policy: CausalLMPolicy) -> LogitTransform:
    """What the model makes of its output layer's product, found by handing it products whose result tells.

    Raises:
        ValueError: neither a scale nor a soft cap explains the model's logits.
    """
    tokens = torch.arange(min(4, policy.vocab_size), device=policy.device)[None]
    levels = torch.tensor(LEVELS, device=policy.device)
    size = tokens.numel() * policy.vocab_size
    products = levels.repeat(-(-size // len(LEVELS)))[:size].view(*tokens.shape, policy.vocab_size)
    seen: list[bool] = []

    def replace(layer: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        seen.append(output.shape == products.shape)
        return products if seen[-1] else output

    with policy.output_layer.register_forward_hook(replace), policy.forward_context():
        logits = policy.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    if seen != [True]:
        return LogitTransform()  # the layer is used otherwise; `check_head` compares what comes out
    found = logits.float().flatten()[: len(LEVELS)]
    scale = float(found[0] / levels[0])
    last = min(len(found), len(LEVELS)) - 1
    bounded = abs(float(found[-1])) < abs(scale) * abs(LEVELS[last]) / 2
    transform = LogitTransform(scale=scale, cap=abs(float(found[-1])) if bounded else None)
    if not torch.allclose(transform(levels[: len(found)]), found, rtol=1e-4, atol=1e-9):
        raise ValueError(
            f"expected logits equal to the output embedding of the last hidden state, or scaled, or with a soft cap; "
            f"{type(policy.model).__name__} makes {found.tolist()} of {list(LEVELS)}"
        )
    return transform


@torch.no_grad()
def check_head(policy: CausalLMPolicy) -> None:
    """Raise ValueError unless the model is causal and its logits are its output embedding of its last hidden states."""
    tokens = torch.arange(min(4, policy.vocab_size), device=policy.device)[None]
    with policy.forward_context():
        ours = policy.head_logits(trunk_forward(policy.trunk, tokens)[0])
        theirs = policy.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
        first = policy.model(input_ids=tokens[:, :1], attention_mask=tokens.new_ones(1, 1), use_cache=False).logits[0]
    rounding = 1e-4 if theirs.dtype == torch.float32 and policy.autocast is None else 2e-2
    if float((first - theirs[:1]).abs().max()) > rounding * float(theirs.abs().max()):
        raise ValueError(
            f"expected a causal model, received {type(policy.model).__name__}, in which a later token changes earlier "
            "logits (an encoder needs is_decoder=True in its configuration)"
        )
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"expected logits equal to the output embedding of the last hidden state, received other ones from "
            f"{type(policy.model).__name__}"
        )


@torch.no_grad()
def check_decoding(policy: CausalLMPolicy) -> None:
    """Raise ValueError unless decoding with a cache gives the states of whole rows: rows of different lengths, a prompt
    that occurs twice, and a row that leaves after two tokens."""
    from agents.lm.decoder import Decoder  # which imports the policy

    device, steps, lengths = policy.device, 3, torch.tensor([3, 1, 1], device=policy.device)
    if policy.max_positions is not None and policy.max_positions < 3 + steps:
        return
    columns, number = torch.arange(3 + steps, device=device), torch.arange(3, device=device)[:, None]
    rows = (5 * (number > 0) + columns + number * (columns > 0)) % policy.vocab_size
    with policy.forward_context():
        decoder = Decoder(policy, 3, 3, steps + 1, device)
        decoder.join(rows[:, :3].masked_fill(columns[:3] >= lengths[:, None], PAD), lengths)
        for step in range(steps):
            if step == 2:
                keep = decoder.compact(torch.tensor([False, True, True], device=device))
                rows, lengths = rows[keep], lengths[keep]
            tokens = rows.gather(1, lengths[:, None] + step)[:, 0]
            decoder.advance(tokens, torch.ones_like(tokens, dtype=torch.bool))
        found = decoder.hidden
        expected = states_at_ends(policy.trunk, rows.masked_fill(columns >= lengths[:, None] + steps, PAD))
    difference = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not difference <= tolerance(
        expected.to(policy.autocast or expected.dtype), policy.trunk.config.num_hidden_layers
    ):
        raise ValueError(
            f"expected a model whose states with a key-value cache are those without, received "
            f"{type(policy.model).__name__}, in which they differ by {difference:.1e} (relative)"
        )
