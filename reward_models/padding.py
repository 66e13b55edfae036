"""Token rows as a batch for a backbone: how long they may be, and what becomes of longer ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def num_positions(backbone: Any) -> int:
    """Tokens in the longest row of a model; RoBERTa and its kin count positions from behind their padding index."""
    limit = getattr(backbone.config, "max_position_embeddings", None) or 2048
    tables = [module for module in backbone.modules() if isinstance(module, nn.Embedding)]
    skipped = [table.padding_idx for table in tables if table.num_embeddings == limit != backbone.config.vocab_size]
    return limit - max((index + 1 for index in skipped if index is not None), default=0)


def right_padded(rows: Sequence[Sequence[int]], max_length: int, fill: int = 0) -> tuple[Tensor, Tensor]:
    """``tokens [N, T]`` with ``fill`` on the right, and ``mask [N, T]`` True on real tokens.

    Rows longer than ``max_length`` keep their newest tokens, with a warning.

    Raises:
        ValueError: a row is empty.
    """
    kept = [row[-max_length:] for row in rows]
    if any(not row for row in kept):
        raise ValueError("rows: expected tokens, received an empty row (the tokenizer has no bos token)")
    if any(len(row) > max_length for row in rows):
        warnings.warn(
            f"texts are longer than the {max_length} tokens that the reward model reads: it does not see how they "
            "begin",
            stacklevel=3,
        )
    width = max(map(len, kept))
    tokens = torch.tensor([[*row, *[fill] * (width - len(row))] for row in kept])
    lengths = torch.tensor([len(row) for row in kept])
    return tokens, torch.arange(width) < lengths[:, None]
