"""Weights and gradients that processes may have shared out among them, as DTensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_shard(tensor: Tensor) -> bool:
    """Whether processes have shared ``tensor`` out among them: a DTensor, whose import takes seconds."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """``tensor``, gathered from all processes if it is a shard, which all have to ask for."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def clip_gradient(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale gradients down to Euclidean norm ``max_norm`` if they exceed it; returns the original norm."""
    if len(parameters) > 1:
        norm = whole(torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None]))
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm
    gradient = parameters[0].grad
    assert gradient is not None
    norm = torch.linalg.vector_norm(gradient)
    gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))  # 1e-6 as in torch.nn.utils
    return norm
