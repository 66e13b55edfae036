"""Tokens that end a text, written as transformers writes them: ``eos_token_id`` is one id, several, or None (only the
budget ends a text). Which a model has is found in `textenvs.tokens.end_of_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from textenvs.tokens.rows import Ids, Mask

EndOfText: TypeAlias = "int | Sequence[int] | None"
"""One token id, several, or None."""


def end_tokens(eos_token_id: EndOfText) -> tuple[int, ...]:
    """The ids in ``eos_token_id``, sorted, each once."""
    if eos_token_id is None:
        return ()
    return tuple(sorted({int(token) for token in np.atleast_1d(np.asarray(eos_token_id))}))


def as_eos_token_id(tokens: EndOfText, vocab_size: int | None = None) -> int | tuple[int, ...] | None:
    """``tokens`` in their shortest form: None, one id, or a sorted tuple.

    Raises:
        ValueError: one is outside ``[0, vocab_size)``.
    """
    ids = end_tokens(tokens)
    if vocab_size is not None and not all(0 <= token < vocab_size for token in ids):
        raise ValueError(f"eos_token_id: expected ids in [0, {vocab_size}), received {tokens!r}")
    return None if not ids else ids[0] if len(ids) == 1 else ids


def is_end(tokens: Ids, eos_token_id: EndOfText) -> Mask:
    """True where ``tokens``, of any shape, is one that ends a text."""
    return np.isin(tokens, end_tokens(eos_token_id))


def end_tensor(eos_token_id: EndOfText, device: torch.device) -> Tensor:
    """`end_tokens` as int64 on a device, for ``torch.isin``."""
    import torch

    return torch.tensor(end_tokens(eos_token_id), dtype=torch.int64, device=device)
