"""Where tokens of completions were chosen: the packed rows, and the positions whose hidden states the heads read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from textenvs.lm.packed_attention import Beginnings
from textenvs.lm.packed_forward import hidden_states, pack_rows, trunk_forward
from textenvs.tokens.rows import PAD


class Decisions(NamedTuple):
    """The N tokens of a batch of rows that count, row after row, and the states that they were chosen in."""

    rows: Tensor
    """``[B, W]`` prompts and completions without a hole between them, right-padded with PAD."""
    lengths: Tensor
    """``[B]`` tokens of each row up to its last state that is read, at least 1."""
    row: Tensor
    """``[N]`` row of each token."""
    position: Tensor
    """``[N]`` position in ``rows`` of the token before it, where its state is read."""
    tokens: Tensor
    """``[N]`` the tokens."""
    steps: Tensor
    """``[N]`` tokens of the completion before it."""
    beginnings: Beginnings
    """Which rows share their prompt."""

    @classmethod
    def find(cls, prompts: Tensor, completions: Tensor, mask: Tensor) -> Decisions:
        """The tokens that ``mask`` selects. All that is not PAD is context, whether ``mask`` selects it or not.

        Args:
            prompts: ``[B, P]`` with PAD.
            completions: ``[B, T]`` with PAD.
            mask: ``[B, T]`` True on tokens of completions that count.

        Raises:
            ValueError: if ``mask`` selects padding, or a prompt is empty where it selects a token.
        """
        real = completions != PAD
        prompt_lengths = (prompts != PAD).sum(1)
        if bool((mask & ~real).any()):
            raise ValueError("expected a mask that is False on padding, received one that selects it")
        before = real.long().cumsum(1) - 1
        # The state before token t is read at the position of token t - 1.
        positions = prompt_lengths[:, None] - 1 + before
        if bool((mask & (positions < 0)).any()):
            raise ValueError("a prompt is empty: there is no state before the first token; begin prompts with a token")
        row = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
        return cls(
            rows=pack_rows(prompts, completions),
            lengths=positions.masked_fill(~mask, 0).amax(1) + 1,
            row=row,
            position=positions[mask],
            tokens=completions[mask],
            steps=before[mask],
            beginnings=Beginnings(prompts.unique(dim=0, return_inverse=True)[1], prompt_lengths),
        )

    def states(self, trunk: Any) -> Tensor:
        """``[N, D]`` last hidden states of ``trunk``, a transformers model; a shared prompt is read once."""
        return hidden_states(trunk, self.rows, self.lengths, self.row, self.position, beginnings=self.beginnings)


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
