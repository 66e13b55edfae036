"""Causal attention over rows so short that all scores of a row fit into the cache, as batched products.

On a CPU, torch's flash attention goes through a row's queries in blocks of 32, which for rows of tens of tokens takes
one and a half times to twice as long as whole products (measured with 4 heads of 64, forward and backward).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 128
"""Tokens of a row up to which this pays."""
MOST_SCORES = 2**22
"""Scores that a layer may keep for the backward pass (16 MB in float32)."""


def is_short(query: Tensor) -> bool:
    """Whether rows of queries ``[B, H, W, D]`` are better attended here."""
    batch, heads, width, _ = query.shape
    return query.device.type == "cpu" and 1 < width <= LONGEST and batch * heads * width**2 <= MOST_SCORES


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale query key^T) value over each position and those before it (Vaswani et al. 2017, section 3.2.1).

    Args:
        query, key, value: ``[B, H, W, D]``, of any strides.
        scale: of the scores.

    Returns:
        ``[B, H, W, D]``, differentiable.
    """
    return _CausalAttention.apply(query, key, value, scale)  # type: ignore[no-any-return]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float):  # type: ignore[no-untyped-def, override]
        shape = query.shape
        query, key, value = (part.reshape(-1, *part.shape[2:]) for part in (query, key, value))
        unseen = query.new_full((1, shape[2], shape[2]), -math.inf).triu(1)
        weights = torch.baddbmm(unseen, query, key.mT, alpha=scale).softmax(-1)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale, ctx.shape = scale, shape
        return (weights @ value).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        query, key, value, weights = ctx.saved_tensors
        grad = grad.reshape(query.shape)
        of_weights = grad @ value.mT
        # d softmax: w (g - sum_k w_k g_k)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        parts = of_scores @ key, of_scores.mT @ query, weights.mT @ grad
        return (*(part.view(ctx.shape) for part in parts), None)
