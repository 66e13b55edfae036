"""Attention of packed rows by torch's kernel for rows of different lengths, which needs a CUDA device."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from textenvs.lm.linear_kernels import HALF

NEEDED = {"window_size", "enable_gqa"}
"""Arguments of the kernel; torch before 2.12 has others, and rows are unpacked there."""
OTHER_ATTENTION = ("dropout", "sliding_window", "softcap", "s_aux")
"""Options of a layer that this kernel does not have, if they are set."""


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    *,
    real: int,
    scaling: float | None = None,
    **options: Any,
) -> Tensor | None:
    """Causal attention within rows that stand one behind the other.

    Args:
        query: ``[1, H, N, D]``.
        key: ``[1, K, N, D]``, where H is a multiple of K.
        value: as ``key``.
        bounds: ``[B + 1]`` int32, where rows begin, and where the last one ends.
        longest: tokens of the longest row.
        real: tokens of all rows; those behind are none, and get zeros.
        scaling: of the scores; None: ``1 / sqrt(D)``.
        **options: further ones of the layer.

    Returns:
        ``[1, N, H, D]``; None on another device, in another precision, without the kernel, for heads that it does not
        take, or for a layer that asks for more.
    """
    kernel = _kernel()
    if kernel is None or not runs_on(query) or any(options.get(name) for name in OTHER_ATTENTION):
        return None
    if not takes_heads(query.shape[-1], value.shape[-1]):
        return None
    tokens = query.shape[2]
    query, key, value = (part[0].transpose(0, 1)[:real] for part in (query, key, value))
    grouped = key.shape[1] != query.shape[1]
    found: Tensor = kernel(
        query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    return pad(found, (0, 0, 0, 0, 0, tokens - real))[None]


def runs_on(query: Tensor) -> bool:
    """True on a CUDA device of compute capability 8.0 (Ampere) or more, in half precision."""
    return query.is_cuda and query.dtype in HALF and torch.cuda.get_device_capability(query.device) >= (8, 0)


def takes_heads(query: int, value: int) -> bool:
    """Whether the kernel, unlike scaled dot-product attention, takes heads of so many numbers as they are."""
    return query == value <= 256 and query % 8 == 0


@cache
def _kernel() -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if set(inspect.signature(found).parameters) >= NEEDED else None
