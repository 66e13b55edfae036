"""Output layer and token log-probabilities fused in one step, without an ``[N, V]`` gradient.

For a linear layer without bias and only a temperature: with ``z = W h / T`` and ``p`` its softmax,
d log p(a) = -(p - 1_a) dz. ``p - 1_a`` is kept, and the backward pass is two matrix products with it; autograd would
pass over ``[N, V]`` several more times.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agents.lm.sampling import entropy_gradient, parts_in_cache, read_off
from textenvs.lm.linear_kernels import compute_type, multiply


def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """As ``token_logprobs(hidden @ weight.T / temperature, tokens)``, the product in autocast's type, the rest float32.

    Args:
        hidden: ``[N, D]``.
        weight: ``[V, D]``.
        tokens: ``[N]`` int64 in ``[0, V)``.
        temperature: logits are divided by it.

    Returns:
        ``(logprobs [N], entropy [N])`` in nats, float32 (float64 if the product is); both differentiable.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    return _LinearTokenLogprobs.apply(hidden, weight, tokens, temperature, dtype)  # type: ignore[no-untyped-call]


ROWS_AT_ONCE = 128
"""Rows of one product: each product reads the whole weight, so a few rows at a time would read it again and again."""


def _read_block(logits: Tensor, tokens: Tensor, away: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a block of rows; fills ``away`` with ``p - 1_a``. Overwrites ``logits``."""
    logprobs, entropy = logits.new_empty(len(tokens)), logits.new_empty(len(tokens))
    for part in parts_in_cache(*logits.shape):
        taken = tokens[part]
        probabilities = logits[part] if away is None or away.dtype != logits.dtype else away[part]
        logprobs[part], entropy[part] = read_off(logits[part], taken, probabilities)
        if away is not None:
            probabilities[torch.arange(len(taken), device=taken.device), taken] -= 1
            away[part] = probabilities
    return logprobs, entropy


class _LinearTokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, dtype: torch.dtype):  # type: ignore[no-untyped-def]
        shape, exact = (len(tokens), len(weight)), torch.promote_types(dtype, torch.float32)
        computed = compute_type(dtype, hidden.device)
        hidden_, weight_ = hidden.to(computed), weight.to(computed)
        away = hidden_.new_empty(shape) if any(ctx.needs_input_grad) else None  # p - 1_a
        logprobs, entropy = (torch.empty(shape[0], dtype=exact, device=hidden.device) for _ in range(2))
        with torch.autocast(hidden.device.type, enabled=False):
            for block in (slice(start, start + ROWS_AT_ONCE) for start in range(0, shape[0], ROWS_AT_ONCE)):
                logits = multiply(hidden_[block], weight_).to(dtype).to(exact)
                if temperature != 1.0:
                    logits /= temperature
                kept = None if away is None else away[block]
                logprobs[block], entropy[block] = _read_block(logits, tokens[block], kept)
        ctx.save_for_backward(hidden_, weight_, tokens, away, entropy)
        ctx.temperature, ctx.types = temperature, (hidden.dtype, weight.dtype)
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs: Tensor | None, grad_entropy: Tensor | None):  # type: ignore[no-untyped-def]
        hidden, weight, tokens, away, entropy = ctx.saved_tensors
        if grad_entropy is None and grad_logprobs is None:
            return (None,) * 5
        # The gradient with respect to z is -scale, per row, times an array.
        scale = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs
        if grad_entropy is not None:
            away = _with_entropy(away, tokens, entropy, scale, grad_entropy)
            scale = torch.ones_like(entropy)
        scale = (scale / -ctx.temperature)[:, None]
        of_hidden = of_weight = None
        if ctx.needs_input_grad[0]:
            of_hidden = (multiply(away, weight.t()) * scale).to(ctx.types[0])
        if ctx.needs_input_grad[1]:
            of_weight = (away.t() @ (hidden * scale).to(away.dtype)).to(ctx.types[1])
        return of_hidden, of_weight, None, None, None


def _with_entropy(away: Tensor, tokens: Tensor, entropy: Tensor, scale: Tensor, grad_entropy: Tensor) -> Tensor:
    """``[N, V]`` minus the gradient of log-probabilities and entropy together with respect to ``z``."""
    both = torch.empty_like(away)
    for part in parts_in_cache(*away.shape):
        probabilities = away[part].to(entropy.dtype, copy=True)
        both[part] = probabilities * scale[part, None]
        probabilities[torch.arange(len(probabilities), device=tokens.device), tokens[part]] += 1
        probabilities.clamp_(min=0)  # (p - 1) + 1 may round below 0
        both[part] -= entropy_gradient(probabilities, entropy[part], grad_entropy[part])
    return both
