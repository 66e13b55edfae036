"""A preallocated key-value cache whose finished rows are replaced by new ones; for `agents.lm.generation`.

Every row's newest token is in the same column, regardless of its length, with older tokens before it and masked columns
before those. Columns form a ring: the next token overwrites the oldest one, which no running row needs any more. It
needs models for which the order of keys is irrelevant (`textenvs.lm.cache_layout`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from textenvs.lm.cache_layout import any_key_order
from textenvs.lm.linear_kernels import HALF, cache_keyword


class _PlainLayer(DynamicLayer):
    """Keys and values of one layer, ``[max_concurrent_rows, H, capacity, D]``; the first ``rows`` rows are in use."""

    def __init__(self, max_concurrent_rows: int, capacity: int, float32: bool) -> None:
        super().__init__()
        self.max_concurrent_rows, self.capacity, self.float32 = max_concurrent_rows, capacity, float32
        self.rows = 0
        self.column = 0
        """Number of columns used so far; modulo ``capacity`` the column of the next token."""
        self.joining: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values; returns those to attend to: the new ones where rows join, else views of all."""
        if not self.is_initialized:
            # Zeros: masked entries are multiplied by 0 and must be finite.
            self.keys, self.values = self._zeros(key_states), self._zeros(value_states)
            self.is_initialized = True
        assert self.keys is not None
        assert self.values is not None
        if self.joining is not None:
            self._append_rows(key_states, value_states, self.joining)
            self.joining = None
            return key_states, value_states
        at = self.column % self.capacity
        keys, values = self.keys[: self.rows], self.values[: self.rows]
        keys[:, :, at : at + 1] = key_states
        values[:, :, at : at + 1] = value_states
        self.column += 1
        end = min(self.column, self.capacity)
        return keys[:, :, :end], values[:, :, :end]

    def _zeros(self, states: Tensor) -> Tensor:
        dtype = torch.float32 if self.float32 and states.dtype in HALF else states.dtype
        return states.new_zeros(self.max_concurrent_rows, states.shape[1], self.capacity, states.shape[-1], dtype=dtype)

    def _append_rows(self, key_states: Tensor, value_states: Tensor, source: Tensor) -> None:
        begin, self.rows = self.rows, self.rows + len(source)
        columns = torch.arange(self.column - key_states.shape[-2], self.column, device=source.device) % self.capacity
        for all_rows, states in ((self.keys, key_states), (self.values, value_states)):
            assert all_rows is not None
            few = states if len(states) == len(source) else states[source]
            all_rows[begin : self.rows].index_copy_(2, columns, few.to(all_rows.dtype))

    def get_seq_length(self) -> int:
        """Cached tokens that the next ones attend to; in a full ring the last column is the query's own."""
        return 0 if self.joining is not None else min(self.column, self.capacity - 1)

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Move row ``movers[i]`` to ``holes[i]`` and keep the first ``count`` rows."""
        assert self.keys is not None
        assert self.values is not None
        end = min(self.column, self.capacity)
        if len(holes):
            self.keys[holes, :, :end] = self.keys[movers, :, :end]
            self.values[holes, :, :end] = self.values[movers, :, :end]
        self.rows = count


class PlainCache(Cache):
    """A preallocated cache for models whose layers all attend to every key, in any order.

    ``capacity`` is the longest row, its newest token included. With ``float32`` half precision is stored as float32.
    """

    def __init__(self, num_layers: int, *, max_concurrent_rows: int, capacity: int, float32: bool = False) -> None:
        super().__init__(layers=[_PlainLayer(max_concurrent_rows, capacity, float32) for _ in range(num_layers)])

    def expect(self, source: Tensor, column: int) -> None:
        """Announce that the next forward pass prefills prompts, ``[M, W]`` right-aligned, of rows to append.

        ``source [R]`` is the index of each new row's prompt, 0 to M - 1 in order if R is M; prompts end right before
        ``column``, that of all rows' next token.
        """
        for layer in self.layers:
            layer.joining, layer.column = source, column  # type: ignore[union-attr]

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Move rows ``movers`` to ``holes`` in every layer and keep the first ``count``."""
        for layer in self.layers:
            layer.move(movers, holes, count)  # type: ignore[union-attr]


def new_cache(trunk: PreTrainedModel, *, max_concurrent_rows: int, capacity: int, float32: bool = False) -> Cache:
    """An empty cache for ``trunk``: a `PlainCache` if its keys may be in any order, else transformers' growing one."""
    if any_key_order(trunk):
        return PlainCache(
            trunk.config.num_hidden_layers, max_concurrent_rows=max_concurrent_rows, capacity=capacity, float32=float32
        )
    return DynamicCache(config=trunk.config)


def check_has_cache(model: PreTrainedModel) -> None:
    """Raise ValueError unless ``model`` takes a cache whose layers hold keys and values only (Mamba's do not)."""
    trunk = model.base_model
    takes_one = cache_keyword(trunk) in inspect.signature(trunk.forward).parameters
    # Finished rows leave the batch, which transformers supports for keys and values only.
    if not takes_one or not all(hasattr(x, "batch_select_indices") for x in DynamicCache(config=model.config).layers):
        raise ValueError(
            f"expected attention layers with a key-value cache (no recurrent layers), received {type(model).__name__}"
        )
