"""A key-value cache that is allocated once, and whose rows may end and make room for others; for
`agents.lm.generation`.

Every row's newest token stands in the same column, whatever its length: what is older stands before it, and before
that nothing that the row may see. Columns form a ring: when all were used, the next token takes the place of the oldest
one, which by then no running row needs. So nothing ever moves along a row, however many rows follow one another.
The models that it is for do not mind in which order keys stand, since positions are in them
(`textenvs.lm.cache_layout`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from textenvs.lm.cache_layout import any_key_order
from textenvs.lm.linear_kernels import HALF, cache_keyword


class _PlainLayer(DynamicLayer):
    """Keys and values of one layer: ``[max_concurrent_rows, H, capacity, D]``, of which the first ``rows`` rows are
    in use."""

    def __init__(self, max_concurrent_rows: int, capacity: int, float32: bool) -> None:
        super().__init__()
        self.max_concurrent_rows, self.capacity, self.float32 = max_concurrent_rows, capacity, float32
        self.rows = 0
        self.column = 0
        """Where the next token goes, not yet wrapped round the ring: so many columns were used."""
        self.joining: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in the new tokens' keys and values; returns what they may see.

        That is the new tokens themselves where rows join, and views of all so far where each row gets one more.
        """
        if not self.is_initialized:
            # Zeros: what no row may see is multiplied by 0, and must be finite for that.
            self.keys, self.values = self._zeros(key_states), self._zeros(value_states)
            self.is_initialized = True
        assert self.keys is not None
        assert self.values is not None
        if self.joining is not None:
            self._take_in(key_states, value_states, self.joining)
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

    def _take_in(self, key_states: Tensor, value_states: Tensor, source: Tensor) -> None:
        begin, self.rows = self.rows, self.rows + len(source)
        columns = torch.arange(self.column - key_states.shape[-2], self.column, device=source.device) % self.capacity
        for all_rows, states in ((self.keys, key_states), (self.values, value_states)):
            assert all_rows is not None
            few = states if len(states) == len(source) else states[source]
            all_rows[begin : self.rows].index_copy_(2, columns, few.to(all_rows.dtype))

    def get_seq_length(self) -> int:
        """Tokens that the next ones may see; with one query a row the last column of a full ring counts as its own."""
        return 0 if self.joining is not None else min(self.column, self.capacity - 1)

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Put row ``movers[i]`` in place ``holes[i]`` and keep the first ``count`` rows."""
        assert self.keys is not None
        assert self.values is not None
        end = min(self.column, self.capacity)
        if len(holes):
            self.keys[holes, :, :end] = self.keys[movers, :, :end]
            self.values[holes, :, :end] = self.values[movers, :, :end]
        self.rows = count


class PlainCache(Cache):
    """A preallocated cache for models whose layers all attend to everything, in any order.

    Args:
        num_layers: of the model.
        max_concurrent_rows: rows that it can hold at a time.
        capacity: columns; a row in it is never longer, its newest token included.
        float32: keep keys and values of half types as float32.
    """

    def __init__(self, num_layers: int, *, max_concurrent_rows: int, capacity: int, float32: bool = False) -> None:
        super().__init__(layers=[_PlainLayer(max_concurrent_rows, capacity, float32) for _ in range(num_layers)])

    def expect(self, source: Tensor, column: int) -> None:
        """The next forward pass reads prompts, ``[M, W]`` flush right, of rows that join behind those in use.

        Args:
            source: ``[R]``, of each joining row which of the M prompts it has; 0 to M - 1 in order if R is M.
            column: where all rows' next token will go, at least W: the prompts end right before it.
        """
        for layer in self.layers:
            layer.joining, layer.column = source, column  # type: ignore[union-attr]

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """As in the layers, for all of them."""
        for layer in self.layers:
            layer.move(movers, holes, count)  # type: ignore[union-attr]


def new_cache(trunk: Any, *, max_concurrent_rows: int, capacity: int, float32: bool = False) -> Cache:
    """An empty cache for ``trunk``: ours if its keys may stand in any order, else transformers' own.

    The arguments are `PlainCache`'s; transformers' own grows as it needs.
    """
    if any_key_order(trunk):
        return PlainCache(
            trunk.config.num_hidden_layers, max_concurrent_rows=max_concurrent_rows, capacity=capacity, float32=float32
        )
    return DynamicCache(config=trunk.config)


def check_has_cache(model: Any) -> None:
    """Whether rows can be decoded with ``model``, each layer of which must keep keys and values, or nothing.

    Raises:
        ValueError: for a model that keeps states of another kind (Mamba), or takes no cache.
    """
    trunk = model.base_model
    takes_one = cache_keyword(trunk) in inspect.signature(trunk.forward).parameters
    # Rows that end leave the batch: a state that transformers cannot take rows from is none of keys and values.
    if not takes_one or not all(hasattr(x, "batch_select_indices") for x in DynamicCache(config=model.config).layers):
        raise ValueError(
            f"{type(model).__name__} cannot be decoded here: only causal LMs can whose layers are attention with a "
            "key-value cache, with absolute, rotary or ALiBi positions (no state-space or other recurrent layers)"
        )
