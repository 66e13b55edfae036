"""The states in which completions' tokens were chosen: packed rows, and the positions whose hidden states are read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from textenvs.lm.packed_attention import SharedPrefixes
from textenvs.lm.packed_forward import hidden_states, pack_rows, trunk_forward
from textenvs.tokens.rows import PAD


class Decisions(NamedTuple):
    """The N selected tokens of a batch, in row order, and the states in which they were chosen."""

    rows: Tensor
    """``[B, W]`` prompts and completions concatenated, right-padded with PAD."""
    lengths: Tensor
    """``[B]`` tokens of each row up to the last state that is read, at least 1."""
    row: Tensor
    """``[N]`` row of each token."""
    position: Tensor
    """``[N]`` position in ``rows`` of the preceding token, whose hidden state is read."""
    tokens: Tensor
    """``[N]`` the tokens."""
    steps: Tensor
    """``[N]`` completion tokens before it."""
    prefixes: SharedPrefixes
    """The prompts that rows share."""

    @classmethod
    def find(cls, prompts: Tensor, completions: Tensor, mask: Tensor) -> Decisions:
        """The tokens of ``completions [B, T]`` behind ``prompts [B, P]`` that ``mask [B, T]`` selects; all tokens but
        PAD are context, selected or not.

        Raises:
            ValueError: if ``mask`` selects padding, or a prompt is empty where it selects a token.
        """
        real = completions != PAD
        prompt_lengths = (prompts != PAD).sum(1)
        if bool((mask & ~real).any()):
            raise ValueError("mask: expected False on padding, received True")
        before = real.long().cumsum(1) - 1
        # The state before token t is read at the position of token t - 1.
        positions = prompt_lengths[:, None] - 1 + before
        if bool((mask & (positions < 0)).any()):
            raise ValueError(
                "expected a prompt of a token or more, since the first action needs a state, received an empty one"
            )
        row = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
        return cls(
            rows=pack_rows(prompts, completions),
            lengths=positions.masked_fill(~mask, 0).amax(1) + 1,
            row=row,
            position=positions[mask],
            tokens=completions[mask],
            steps=before[mask],
            prefixes=SharedPrefixes(prompts.unique(dim=0, return_inverse=True)[1], prompt_lengths),
        )

    def states(self, trunk: nn.Module) -> Tensor:
        """``[N, D]`` last hidden states of ``trunk``, a transformers model; shared prompts are computed once."""
        return hidden_states(trunk, self.rows, self.lengths, self.row, self.position, prefixes=self.prefixes)


def states_at_ends(trunk: nn.Module, rows: Tensor) -> Tensor:
    """Hidden states at the last token of ``[B, W]`` right-padded rows: ``[B, D]``; ValueError if a row is empty."""
    lengths = (rows != PAD).sum(1)
    if bool((lengths == 0).any()):
        raise ValueError("expected observations of a token or more, received an empty one")
    hidden = trunk_forward(trunk, rows[:, : int(lengths.max())].clamp(min=0))
    return hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """``[N, ...]`` to ``[B, T, ...]``: in order where ``mask``, 0 elsewhere."""
    shape = mask.shape + flat.shape[1:]
    where = mask.view(mask.shape + (1,) * (flat.dim() - 1))
    return torch.zeros(shape, dtype=flat.dtype, device=flat.device).masked_scatter(where, flat)
