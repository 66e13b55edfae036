"""Output layer and token log-probabilities fused in one step, without an ``[N, V]`` gradient.

For a linear layer without bias and only a temperature: with ``z = W h / T`` and ``p`` its softmax,
d log p(a) = -(p - 1_a) dz. ``p - 1_a`` is kept, and the backward pass is two matrix products with it; autograd would
pass over ``[N, V]`` several more times. Where ``[N, V]`` is large it never exists: pieces of rows are recomputed in the
backward pass, which adds their gradients of the weight up in one array.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agents.lm.sampling import entropy_gradient, parts_in_cache, read_off
from textenvs.lm.linear_kernels import autocast_off, compute_type, multiply
from textenvs.lm.sizes import sizes

FEWEST_ROWS = 256
"""Rows of a piece at least: each reads the whole weight, which costs more than the products of a few rows. So few
logits take less memory than the weight."""


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits are in memory at once, in an update or in evaluating many states."""
    return max(sizes(device).logits // vocab_size, FEWEST_ROWS)


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
    if hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    return _LinearTokenLogprobs.apply(hidden, weight, tokens, temperature, dtype)  # type: ignore[no-untyped-call]


class _Head(NamedTuple):
    """The distributions of N rows, computed a piece at a time."""

    hidden: Tensor
    weight: Tensor
    tokens: Tensor
    temperature: float
    dtype: torch.dtype

    def pieces(self) -> list[slice]:
        """The rows in pieces."""
        return _slices(0, len(self.tokens), rows_at_once(len(self.weight), self.weight.device))

    def read(self, piece: slice, away: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of a piece; fills ``away`` with its ``p - 1_a``, ``[rows, V]``."""
        found = []
        with autocast_off(self.hidden.device):
            for block in _slices(piece.start, piece.stop, sizes(self.weight.device).product_rows):
                kept = None if away is None else away[block.start - piece.start : block.stop - piece.start]
                logits = multiply(self.hidden[block], self.weight, out=kept)
                found.append(_read_block(logits, self.tokens[block], kept, self.temperature, self.dtype))
        logprobs, entropy = (torch.cat(column) for column in zip(*found, strict=True))
        return logprobs, entropy

    def away(self, piece: slice) -> Tensor:
        """``p - 1_a`` of a piece, recomputed."""
        away = self.hidden.new_empty(piece.stop - piece.start, len(self.weight))
        self.read(piece, away)
        return away


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(begin, min(begin + step, stop)) for begin in range(start, stop, step)] or [slice(start, stop)]


def _read_block(
    logits: Tensor, tokens: Tensor, away: Tensor | None, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a block of rows; fills ``away`` with ``p - 1_a``. Overwrites ``logits``."""
    exact = torch.promote_types(dtype, torch.float32)
    logprobs, entropy = (torch.empty(len(tokens), dtype=exact, device=logits.device) for _ in range(2))
    for part in parts_in_cache(logits):
        taken, scaled = tokens[part], logits[part].to(dtype).to(exact)
        if temperature != 1.0:
            scaled /= temperature
        probabilities = scaled if away is None or away.dtype != exact else away[part]
        logprobs[part], entropy[part] = read_off(scaled, taken, probabilities)
        if away is not None:
            probabilities[torch.arange(len(taken), device=taken.device), taken] -= 1
            away[part] = probabilities
        del scaled, probabilities  # before the next part's are made
    return logprobs, entropy


class _LinearTokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, dtype: torch.dtype):  # type: ignore[no-untyped-def]
        computed = compute_type(dtype, hidden.device)
        head = _Head(hidden.to(computed), weight.to(computed), tokens, temperature, dtype)
        pieces = head.pieces()
        away = None  # p - 1_a
        if any(ctx.needs_input_grad) and len(pieces) == 1:
            away = head.hidden.new_empty(len(tokens), len(weight))
        found = [head.read(piece, away) for piece in pieces]
        logprobs, entropy = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.save_for_backward(head.hidden, head.weight, tokens, away, entropy)
        ctx.temperature, ctx.dtype, ctx.types = temperature, dtype, (hidden.dtype, weight.dtype)
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs: Tensor | None, grad_entropy: Tensor | None):  # type: ignore[no-untyped-def]
        hidden, weight, tokens, kept, entropy = ctx.saved_tensors
        if grad_entropy is None and grad_logprobs is None:
            return (None,) * 5
        head = _Head(hidden, weight, tokens, ctx.temperature, ctx.dtype)
        of_hidden = torch.empty_like(hidden, dtype=ctx.types[0]) if ctx.needs_input_grad[0] else None
        of_weight: Tensor | None = None
        for piece in reversed(head.pieces()):
            away = head.away(piece) if kept is None else kept
            # The gradient with respect to z is -scale, per row, times an array.
            scale = torch.zeros_like(entropy[piece]) if grad_logprobs is None else grad_logprobs[piece]
            if grad_entropy is not None:
                away = _with_entropy(away, tokens[piece], entropy[piece], scale, grad_entropy[piece])
                scale = torch.ones_like(scale)
            scale = (scale / -ctx.temperature)[:, None]
            if of_hidden is not None:
                of_hidden[piece] = multiply(away, weight.t()) * scale
            if ctx.needs_input_grad[1]:
                more = away.t() @ (hidden[piece] * scale).to(away.dtype)
                exact = torch.promote_types(ctx.types[1], torch.float32)
                of_weight = more.to(exact) if of_weight is None else of_weight.add_(more)
                del more
            del away
        return of_hidden, None if of_weight is None else of_weight.to(ctx.types[1]), None, None, None


def _with_entropy(away: Tensor, tokens: Tensor, entropy: Tensor, scale: Tensor, grad_entropy: Tensor) -> Tensor:
    """``[N, V]`` minus the gradient of log-probabilities and entropy together with respect to ``z``."""
    both = torch.empty_like(away)
    for part in parts_in_cache(away):
        probabilities = away[part].to(entropy.dtype, copy=True)
        both[part] = probabilities * scale[part, None]
        probabilities[torch.arange(len(probabilities), device=tokens.device), tokens[part]] += 1
        probabilities.clamp_(min=0)  # (p - 1) + 1 may round below 0
        both[part] -= entropy_gradient(probabilities, entropy[part], grad_entropy[part])
        del probabilities
    return both
