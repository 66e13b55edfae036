"""A trunk's hidden states where tokens were chosen: before each token of completions, or behind a whole row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenvs.lm.packed_attention import Beginnings
from textenvs.lm.packed_forward import hidden_states, trunk_forward
from textenvs.tokens.rows import PAD


def states_at_decisions(trunk: Any, rows: Tensor, prompts: Tensor, mask: Tensor) -> Tensor:
    """The states that were acted in; what several rows have for a prompt is read once.

    Args:
        trunk: a transformers model.
        rows: ``[B, W]`` prompts and completions without a hole between them, right-padded with PAD.
        prompts: ``[B, P]`` with PAD.
        mask: ``[B, T]`` True on completions' tokens that count.

    Returns:
        ``[N, D]`` before each token that counts, row after row.

    Raises:
        ValueError: if a prompt is empty.
    """
    prompt_lengths = (prompts != PAD).sum(1)
    # The state before token t is read at the position of token t - 1; the last token is never an input.
    where = (prompt_lengths[:, None] - 1 + torch.arange(mask.shape[1], device=mask.device))[mask]
    row = torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask)[mask]
    if bool((where < 0).any()):
        raise ValueError("a prompt is empty: there is no state before the first token; begin prompts with a token")
    lengths = (rows != PAD).sum(1) - 1
    which = prompts.unique(dim=0, return_inverse=True)[1]
    return hidden_states(trunk, rows[:, :-1], lengths, row, where, beginnings=Beginnings(which, prompt_lengths))


def states_at_ends(trunk: Any, rows: Tensor) -> Tensor:
    """Hidden states at the last token of ``[B, W]`` right-padded rows: ``[B, D]``.

    Raises:
        ValueError: if a row is empty.
    """
    lengths = (rows != PAD).sum(1)
    if bool((lengths == 0).any()):
        raise ValueError("an observation holds no token: begin prompts with a token")
    hidden = trunk_forward(trunk, rows[:, : int(lengths.max())].clamp(min=0))
    return hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """``[N]`` to ``[B, T]``: in order where ``mask``, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
