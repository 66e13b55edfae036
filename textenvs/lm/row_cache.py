"""A key-value cache of rows of different lengths, to any of which any number of tokens can be appended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class RowCache(Cache):
    """Keys and values of N rows in memory of ``[N, heads, L + 1, size]`` a layer.

    Each row holds its own positions from 0 on, without padding between them; entries beyond a row's length are never
    attended to, and the last entry takes what is written beyond L. It needs a model for which `any_key_order` is true.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__(layers=[])
        self._num_rows, self._width = num_rows, width
        self._memory: list[tuple[Tensor, Tensor]] = []
        self._rows = self._positions = torch.zeros(0, dtype=torch.long)
        self._used, self._all = 0, False

    def append(self, rows: Tensor | None, positions: Tensor, used: int) -> None:
        """Prepare a pass with tokens of ``rows [n]``, None: of all in order, at ``positions [n, S]`` below ``used``.

        Tokens of padding may have any position behind those of their row: they are overwritten before they are seen.
        """
        self._all = rows is None
        self._rows = torch.arange(self._num_rows, device=positions.device) if rows is None else rows
        self._positions, self._used = positions.clamp(max=self._width), used

    @property
    def mask(self) -> Tensor:
        """``[n, 1, S, used]`` bool: keys at or before the query's own position."""
        keys = torch.arange(self._used, device=self._positions.device)
        return (keys <= self._positions[:, :, None])[:, None]

    @property
    def position_ids(self) -> Tensor:
        """``[n, S]`` positions of the pass's tokens."""
        return self._positions.clamp(max=self._width - 1)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the pass's ``[n, heads, S, size]`` and return the keys and values that its queries may attend to."""
        while len(self._memory) <= layer_idx:
            shapes = [(self._num_rows, x.shape[1], self._width + 1, x.shape[3]) for x in (key_states, value_states)]
            self._memory.append((key_states.new_zeros(shapes[0]), value_states.new_zeros(shapes[1])))
        found = []
        for memory, states in zip(self._memory[layer_idx], (key_states, value_states), strict=True):
            memory[self._rows[:, None], :, self._positions] = states.transpose(1, 2)
            used = memory[:, :, : self._used]  # a view costs nothing
            found.append(used if self._all else used[self._rows])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are given with every pass."""
        return 0
